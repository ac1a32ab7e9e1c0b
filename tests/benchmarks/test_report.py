"""The report and the growth model, on results of no machine."""

import json

import pytest

PAGE = """# Page

<!-- table: cpu machine -->
<!-- end -->
<!-- picture: cpu pairs -->
<!-- end -->
<!-- picture: cpu step -->
<!-- end -->
<!-- table: cpu info_nce all_pairs -->
<!-- end -->
<!-- table: cpu step parts -->
<!-- end -->
<!-- table: cpu readme -->
<!-- end -->
<!-- table: cpu growth -->
<!-- end -->
<!-- picture: cpu growth -->
<!-- end -->
<!-- table: cpu traffic estimator -->
<!-- end -->
<!-- table: tpu traffic step -->
<!-- end -->
<!-- table: tpu info_nce all_pairs -->
<!-- end -->
"""


@pytest.fixture
def folder(tmp_path, results):
    (tmp_path / "results" / "cpu").mkdir(parents=True)
    (tmp_path / "results" / "cpu" / "bench.json").write_text(json.dumps(results))
    row = {"kind": "estimator", "pairs": 10, "width": 8, "ranks": 2, "phase": "forward", "written": [13_000, 12_900]}
    row |= {"received": 12_002, "collectives": {"all_gather": {"calls": 2, "payload": 12_002}}}
    back = row | {"phase": "backward", "written": [1, 300]}
    traffic = {"traffic": [row, back, {**row, "ranks": 1}]}
    (tmp_path / "results" / "cpu" / "ranks.json").write_text(json.dumps(traffic))
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path


def report(folder, monkeypatch, *arguments):
    from infobert_fast.benchmarks.report import pages as report

    report._content.cache_clear()
    monkeypatch.setattr(
        "sys.argv", ["report.py", str(folder / "page.md"), "--results", f"{folder}/results", *arguments]
    )
    report.main()
    return (folder / "page.md").read_text()


def test_a_page_is_filled_and_filled_the_same_again(folder, monkeypatch):
    with pytest.raises(SystemExit, match="does not show the results"):
        report(folder, monkeypatch, "--check")
    page = report(folder, monkeypatch)
    assert "A processor, 2 threads" in page
    assert "| 512 | 4,472 (3,171) | 447 (943) | 49.7 (30.2) | 29.8 (27.6) | 24 |" in page
    assert "| 1,024 | - | 1,696 | **188** | **113** | - | 3,695 | **46** | **" in page
    assert "| anchored features | 20.0 | 15 | 10.0 |" in page
    assert "| InfoNCE, 128 pairs, MiB | 0.00 | 26.2 | - |" in page
    assert "| InfoNCE, 10 pairs a rank | 2 | 4 | 24,004 | 24,004 | 0 | 13,200 |" in page
    assert "10 pairs a rank | 1 |" not in page
    traffic, *_, tables = page.split("<!-- table: tpu")[1:]
    assert "Not counted yet" in traffic
    assert "Not measured yet" in tables
    pictures = {path.name: path.read_bytes() for path in (folder / "page").iterdir()}
    assert set(pictures) == {"cpu-pairs.svg", "cpu-step.svg", "cpu-growth.svg"}
    assert report(folder, monkeypatch) == page
    assert {path.name: path.read_bytes() for path in (folder / "page").iterdir()} == pictures
    report(folder, monkeypatch, "--check")


def test_markers_and_files_that_are_wrong_are_refused(folder, results, monkeypatch):
    (folder / "page.md").write_text("<!-- table: cpu info_nce al_pairs -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="names no benchmark"):
        report(folder, monkeypatch)
    (folder / "results" / "cpu" / "more.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="both hold info_nce"):
        report(folder, monkeypatch)
    results["rows"] = []
    results["machine"]["device"] = "another"
    (folder / "results" / "cpu" / "more.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="keep one device a folder"):
        report(folder, monkeypatch)


def test_the_model_gives_its_fitted_sizes_exactly_and_follows_a_machine_that_obeys_it(results):
    from infobert_fast.benchmarks.model import growth

    truth = growth.Machine(1e11, 1e11, 1e10, 5e10, {"pairs": 0.1, "products": 0.7, "around": 0.5}, operator=1e-5)
    for row in results["rows"]:
        if row["group"] == "info_nce":
            row["median"] = truth.seconds(growth.critic(row["pairs"], row["pairs"], 768))
        elif row["name"].startswith("test_step[") and row["implementation"] == "floor":
            row["median"] = truth.seconds(growth.encoder(6, 768, 8, 128, 12))
        elif row["name"].startswith("test_step["):
            row["median"] = truth.seconds(growth.step(6, 768, 8, 128))
        elif row["group"] == "path":
            row["median"] = truth.seconds(growth.path(*row["shape"], row["negatives"]))
        elif row["group"] == "regularizers":
            batch, length, width = row["shape"]
            row["median"] = truth.seconds(growth.Cost(bytes=12 * batch * length * width, operators=28))
    machine, checked = growth.fit(results, 5e10)
    assert machine.efficiency == pytest.approx(truth.efficiency)
    assert machine.operator == pytest.approx(truth.operator)
    errors = {row.what: row.error for row in checked if row.unit == "ms"}
    assert errors["InfoNCE, 2,048 pairs"] == pytest.approx(0)
    assert errors["regularisers, 32 x 128 x 768, chunk"] == pytest.approx(0)
    assert errors["step, infobert-fast"] == pytest.approx(0)
    assert all(row.error == pytest.approx(0) for row in checked if row.fitted)
    assert {row.unit for row in checked if row.fitted} == {"ms", "MiB"}
    assert growth.beyond(results) is growth.H100  # a CPU says nothing of GPUs
    results["machine"]["capability"] = "sm_90"
    results["ceilings"]["half_fma_per_s"] = 1e11  # in which the encoder was timed here
    with pytest.raises(ValueError, match="the results lack"):  # where the form beside the critic is this package's own
        growth.beyond(results)
    for row in results["rows"]:
        if row["group"] == "regularizers":
            row["implementation"] = "infobert-fast"
    assert growth.beyond(results).efficiency["pairs"] == pytest.approx(0.1)


def test_what_the_model_counts():
    from infobert_fast.benchmarks.model import growth

    one, four = growth.critic(1000, 1000, 64), growth.critic(250, 250, 64, ranks=4)
    assert four.fp32 == pytest.approx(one.fp32 / 4)  # ranks share the work of the same pairs
    assert four.projected == pytest.approx(one.projected / 4)
    assert one.projected == 3 * 2000 * 64 * 300
    assert four.received == 2 * 3 * 250 * 300 * 4 + 1.5 * 4  # rows there, gradients back, and a sum of bounds
    assert one.received == 0
    large = {"layers": 24, "width": 1024, "batch": 32, "length": 128, "parameters": 1e8}
    alone, joint = (growth.step(**large, negatives=negatives, ranks=8) for negatives in ("chunk", "all"))
    assert alone.received == 2 * 7 / 8 * 4e8
    journey = 2 * 7 * 1664 * 300 * 4 + 2 * 7 / 8 * 4 * (1025 + 1 + 1)
    assert joint.received - alone.received == pytest.approx(3 * journey + 7 * 16)
    sharded = growth.step(**large, ranks=8, accumulation=2, engine="zero2")
    assert sharded.received == pytest.approx((6 * 2 + 1) * 7 / 8 * 4e8, rel=1e-7)
    assert growth.path(4, 100, 8, "batch").fp32 == 6 * 300 * 4 * 4 * 40  # 0.9 x 100 - 0.5 x 100, and not 52 / 128
    assert growth.path(32, 128, 1024, "chunk").fp32 == growth.path(32, 128, 1024, "batch").fp32
    more = growth.path(32, 128, 1024, "all", 8).fp32 - growth.path(32, 128, 1024, "batch").fp32
    assert more == pytest.approx(7 * 6 * 300 * 32 * 1664)
