"""The benchmarks' own machinery: a wrong gradient is not timed, a slow-down is seen, the host stays unnamed."""

import json
import platform
from pathlib import Path

import pytest

from infobert_fast.cli import main
from infobert_fast.cli.bench import _compare

SUITE = """
import time

import torch


def steady(x):
    time.sleep(0.04)
    return (x * x).sum()


def slower(x):
    time.sleep(0.004)
    return steady(x)


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x * x).sum()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


halved = Halved.apply
IMPLEMENTATIONS = {"steady": steady}


def check(function):
    x = torch.arange(3.0, requires_grad=True)
    torch.testing.assert_close(torch.autograd.grad(function(x), x)[0], 2 * x.detach(), msg="a wrong gradient")


def test_squares(measure, gate, implementation, function):
    gate(implementation, lambda: check(function))
    x = torch.ones(8, requires_grad=True)
    measure(lambda: function(x).backward())
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of benchmarks with one quick suite; its candidates are in the suite itself."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "bench_tiny.py").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    return folder


def bench(folder, output, *arguments):
    return main(["bench", "tiny", "--folder", str(folder), "--seconds", "0.4", "--output", str(output), *arguments])


def test_a_slow_down_of_a_tenth_is_caught(folder, tmp_path, capsys):
    assert bench(folder, tmp_path / "old.json") == 0
    suite = folder / "bench_tiny.py"
    suite.write_text(suite.read_text().replace('{"steady": steady}', '{"steady": slower}'))
    assert bench(folder, tmp_path / "new.json") == 0
    with pytest.raises(SystemExit) as end:
        main(["bench", "--compare", str(tmp_path / "old.json"), str(tmp_path / "new.json"), "--threshold", "0.05"])
    assert end.value.code == 1
    said = capsys.readouterr()
    assert "SLOWER" in said.out
    assert "1 slower by more than 5 %" in said.err
    assert main(["bench", "--compare", str(tmp_path / "old.json"), str(tmp_path / "old.json")]) == 0


def test_a_wrong_gradient_is_not_timed(folder, tmp_path, capfd):
    output = tmp_path / "result.json"
    with pytest.raises(SystemExit) as end:
        bench(folder, output, "--candidate", "wrong=bench_tiny:halved")
    assert end.value.code == 1
    assert "not timed, because it is not correct: a wrong gradient" in capfd.readouterr().out
    assert [row["implementation"] for row in json.loads(output.read_text())["rows"]] == ["steady"]


def test_what_a_result_holds(folder, tmp_path, capfd):
    assert bench(folder, tmp_path / "r.json") == 0
    assert "% of roofline" in capfd.readouterr().out
    text = (tmp_path / "r.json").read_text()
    content = json.loads(text)
    assert {"device", "torch", "date"} <= set(content["machine"])
    assert all(value > 0 for value in content["ceilings"].values())
    (row,) = content["rows"]
    assert row["q1"] <= row["median"] <= row["q3"]
    assert 0.04 <= row["median"] < 0.06
    assert platform.node() not in text


def test_noise_is_no_regression(capsys):
    def result(median, q1, q3):
        row = {"group": "g", "name": "n", "median": median, "q1": q1, "q3": q3, "extra_mib": 1.0}
        return {"machine": {"device": "d"}, "ceilings": {}, "rows": [row]}

    _compare(result(1.0, 0.8, 1.3), result(1.2, 1.1, 1.5), 0.1)  # slower, but within what the first run varied
    with pytest.raises(SystemExit):
        _compare(result(1.0, 0.9, 1.05), result(1.2, 1.1, 1.5), 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folder", "nowhere"], "which holds no bench_*.py"),
        (["tinny", "--folder", "benchmarks"], "`suite` was 'tinny'"),
        (["--folder", "benchmarks", "--seconds", "-1"], "`seconds` was -1.0"),
        (["--compare", "absent.json", "absent.json"], "absent.json"),
        (["--compare", "broken.json", "broken.json"], "is no JSON"),
        (["--compare", "other.json", "other.json"], "holds no benchmark results"),
    ],
)
def test_refusals(folder, arguments, message, capsys):
    Path("broken.json").write_text("{")
    Path("other.json").write_text("{}")
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err
