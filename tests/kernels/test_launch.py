"""Launch tables: what a file may say, which plan is chosen, and the tuner under a clock that the test holds."""

import json

import pytest
import torch
from oracle import make_case

from infobert_fast.kernels import launch
from infobert_fast.kernels.launch_table import FORMAT, Config, Plan, chip_name, read_table, table_entry
from infobert_fast.kernels.pairs import Pairs
from infobert_fast.kernels.pairwise_mlp import pairwise_mlp_forward
from infobert_fast.kernels.rectangles import problems_of
from infobert_fast.kernels.tune import CANDIDATES, SIZES, step, tune

PLAN = Plan(Config(8, 2, 512), Config(16, 8, 1024))


@pytest.fixture(autouse=True)
def fresh_table(monkeypatch):
    monkeypatch.delenv(launch.VARIABLE, raising=False)
    monkeypatch.setattr(launch, "_given", None)
    launch.table.cache_clear()
    yield
    launch.table.cache_clear()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"format": FORMAT, chip_name((9, 0)): table_entry(PLAN, device="a GPU")}))
    return path


def test_without_a_table_the_plans_are_those_of_the_file():
    assert launch.plan((9, 0)) == launch.PLANS[9, 0]
    assert launch.plan((7, 5)) == launch.DEFAULT


def test_a_table_in_the_environment_is_read_at_the_first_launch(path, monkeypatch):
    monkeypatch.setenv(launch.VARIABLE, str(path))
    assert launch.plan((9, 0)) == PLAN
    assert launch.plan((8, 0)) == launch.PLANS[8, 0]
    path.unlink()
    assert launch.plan((9, 0)) == PLAN


def test_a_table_given_explicitly_wins(path, monkeypatch):
    launch.use_table(path)
    assert launch.plan((9, 0)) == PLAN
    monkeypatch.setenv(launch.VARIABLE, "/nowhere")  # whatever it says is not looked at
    launch.use_table(path)
    assert launch.plan((9, 0)) == PLAN
    path.write_text("{}")
    with pytest.raises(ValueError, match="format"):
        launch.use_table(path)
    assert launch.plan((9, 0)) == PLAN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=2), "has the format 2; it should be"),
        (lambda c: c.update(hopper={}), "an entry 'hopper'; entries are named sm_80"),
        (lambda c: c["sm_90"].pop("wide"), r"sm_90.wide = None; it needs rows, warps, programs"),
        (lambda c: c["sm_90"]["short"].update(stages=3), r"sm_90.short = .*; it needs rows, warps, programs"),
        (lambda c: c["sm_90"]["short"].update(warps=3), "sm_90.short.warps = 3; it may be 1, 2, 4, 8"),
        (lambda c: c["sm_90"]["wide"].update(rows=True), "sm_90.wide.rows = True; it may be 8, 16, 32"),
        (lambda c: c["sm_90"]["wide"].update(programs=0), "sm_90.wide.programs = 0; it may be 1 to 65536"),
    ],
)
def test_a_bad_table_says_what_is_wrong(path, change, message):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_table(path)


def test_no_json_and_no_file(path, monkeypatch):
    path.write_text('{"format": ')
    with pytest.raises(ValueError, match="is no JSON"):
        read_table(path)
    monkeypatch.setenv(launch.VARIABLE, str(path) + ".missing")
    with pytest.raises(ValueError, match=r"`INFOBERT_FAST_LAUNCH_TABLE` was .*missing.*unset it"):
        launch.plan((9, 0))


def test_the_fastest_that_runs_is_chosen():
    fastest = {SIZES["short"]: Config(16, 2, 2048), SIZES["wide"]: Config(8, 4, 512)}

    def timer(size, config):
        return None if config.warps == 1 else 1.0 + (config != fastest[size])

    plan, times = tune(timer)
    assert plan == Plan(*fastest.values())
    assert all(config.warps > 1 for measured in times.values() for config in measured)
    assert len(times["short"]) == len(CANDIDATES) * 3 // 4
    with pytest.raises(RuntimeError, match="none of the 40 candidate configurations ran"):
        tune(lambda size, config: None)


@pytest.mark.parametrize("choice", [Config(8, 2, 64), Config(16, 1, 4), Config(32, 1, 1)])
def test_every_configuration_gives_the_same_results(choice, device):
    case = make_case(150, 12, globals_=40, device=device)
    grad = torch.linspace(-1, 1, 40, device=device)
    for got, expected in zip(step(case.operands, grad, choice), step(case.operands, grad, None), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    lse, _ = pairwise_mlp_forward(*case.operands, case.pairs)
    torch.testing.assert_close(step(case.operands, grad, choice)[0], lse, rtol=1e-6, atol=1e-6)


def test_units_that_lie_too_far_apart_are_copied():
    """Where a hidden unit's 32-bit offset would wrap: 4 units of columns that are 2^29 apart."""
    far, near = (torch.empty_strided((2, 4), (1, step), device="meta") for step in (2**29, 2**29 - 1))
    assert launch.near_units(far).stride() == (4, 1)
    assert launch.near_units(near) is near


def test_more_columns_than_32_bits_address_are_refused():
    a, b = torch.empty(2**26 + 1, 4, device="meta"), torch.empty(3, 4, device="meta")
    with pytest.raises(ValueError, match="67108865 local rows were given; the kernels take 67108864 at once"):
        problems_of(a, b, Pairs(a.shape[0]))
