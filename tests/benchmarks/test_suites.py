"""The suites' gates: what is timed is the literal form's equal, and a step that is not is refused."""

import pytest


def test_every_step_is_the_one_that_it_is_named():
    from infobert_fast.benchmarks.suites import bench_step

    for name, step in bench_step.IMPLEMENTATIONS.items():
        bench_step.check(step, name)
    with pytest.raises(AssertionError):  # FreeLB lacks the regularisers' gradients
        bench_step.check(bench_step.IMPLEMENTATIONS["FreeLB"], "infobert-fast")
    with pytest.raises(AssertionError):
        bench_step.check(bench_step.IMPLEMENTATIONS["infobert-fast"], "FreeLB")


@pytest.mark.parametrize("chunked", [True, False])
def test_every_path_is_the_literal_one(chunked):
    from infobert_fast.benchmarks.suites import bench_path

    for path in bench_path.IMPLEMENTATIONS.values():
        bench_path.check(path, chunked)
    with pytest.raises(AssertionError):
        bench_path.check(lambda x, _: bench_path.ours(x, not chunked), chunked)


def test_attacks_side_by_side_end_as_one_by_one(monkeypatch):
    from infobert_fast.benchmarks.suites import bench_evaluation

    monkeypatch.setattr(bench_evaluation, "ATTACKED", 6)
    trained = bench_evaluation.trained.__wrapped__()
    found = {way: attacked(trained) for way, attacked in bench_evaluation.ATTACKS.items()}
    outcomes, forwards = zip(*found.values(), strict=True)
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert forwards[0] > forwards[1] > forwards[2]
    assert (bench_evaluation.ours(trained) == bench_evaluation.padded(trained)).all()


@pytest.mark.parametrize("name", ["CLUBSample", "InfoNCE", "CLUBForCategorical"])
def test_every_drop_in_is_its_public_form(name):
    from infobert_fast.benchmarks.suites import bench_dropin

    bench_dropin.check(bench_dropin.ours, name)
    with pytest.raises(AssertionError):
        bench_dropin.check(lambda *a: 1.001 * bench_dropin.ours(*a), name)
