"""The command ``infobert tune``, its device and its clock held by the test."""

import json

import pytest
import torch
import triton

from infobert_fast.cli import main
from infobert_fast.kernels import tune
from infobert_fast.kernels.launch_table import FORMAT, Config, Plan, read_table, table_entry
from infobert_fast.kernels.tune import device_timer

OTHER = Plan(Config(16, 1, 512), Config(16, 4, 512))


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    clock = lambda size, config: 1.0 + (config.warps != 2) + config.programs / 1e6  # noqa: E731
    monkeypatch.setattr(tune, "device_timer", lambda device: clock)


def test_a_configuration_beyond_the_device_is_passed_over(monkeypatch):
    def step(operands, grad, choice):
        if choice is not None:
            raise triton.OutOfResources(300_000, 232_448, "shared memory")
        return (grad,)

    monkeypatch.setattr(tune, "step", step)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert device_timer("cpu")(8, Config(16, 8, 512)) is None


def test_without_a_device(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["tune", str(tmp_path / "table.json")]) == 2
    assert "no CUDA device here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_table_keeps_other_architectures(tmp_path, capsys, device):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"format": FORMAT, "sm_80": table_entry(OTHER)}))
    assert main(["tune", str(path)]) == 0
    assert read_table(path) == {(8, 0): OTHER, (9, 0): Plan(Config(8, 2, 512), Config(8, 2, 512))}
    assert json.loads(path.read_text())["sm_90"]["device"] == "a GPU"
    assert f"INFOBERT_FAST_LAUNCH_TABLE={path}" in capsys.readouterr().out.replace("\n", "")


def test_a_foreign_file_is_not_replaced(tmp_path, capsys, device):
    path = tmp_path / "results.json"
    path.write_text('{"results": []}')
    assert main(["tune", str(path)]) == 2
    assert "format" in capsys.readouterr().err
    assert path.read_text() == '{"results": []}'
