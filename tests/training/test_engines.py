"""What the engines' runners refuse, and that no other file knows an engine."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from infobert_fast.training.engines import fsdp2
from infobert_fast.training.engines.accelerated import AcceleratedRunner

ROOT = Path(__file__).parents[2] / "infobert_fast"
ENGINES = ROOT / "training" / "engines"
WORDS = re.compile(
    r"deepspeed|fsdp|fully.?shard|dtensor|data.?parallel|\bz?ero[-_ ]?[0-3]|zero_(stage|optimization)|\bddp|\bds_", re.I
)


def help_texts(tree):
    """Text that users read: docstrings, and what is called ``help`` or ``USAGE``."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False):
            yield node.body[0].value
        elif isinstance(node, ast.keyword) and node.arg == "help":
            yield from ast.walk(node.value)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "help":
                    yield from ast.walk(value)
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "USAGE":
            yield from ast.walk(node.value)


def words(source):
    """Identifiers, imported names and strings of a source that speak of an engine."""
    tree = ast.parse(source)
    texts = {id(node) for node in help_texts(tree)}
    for node in ast.walk(tree):
        said = [getattr(node, name, None) for name in ("id", "attr", "name", "module", "arg", "asname")]
        if isinstance(node, ast.Constant) and id(node) not in texts:
            said.append(node.value)
        yield from (word for word in said if isinstance(word, str) and WORDS.search(word))


@pytest.mark.parametrize(
    "path", [path for path in sorted(ROOT.rglob("*.py")) if ENGINES not in path.parents], ids=lambda p: p.stem
)
def test_no_file_but_an_engines_own_speaks_of_it(path):
    found = [word for word in words(path.read_text(encoding="utf-8")) if "training.engines" not in word]
    assert not found, f"{path.name} speaks of an engine: let a runner, or engines/ready.py, do it"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import deepspeed", ["deepspeed"]),
        ("from torch.distributed.fsdp import FSDPModule as M", ["torch.distributed.fsdp", "FSDPModule"]),
        ("x.zero_optimization_stage()", ["zero_optimization_stage"]),
        ("f(ddp=1); y = f'{a} under ZeRO-3'", ["ddp", " under ZeRO-3"]),
        ("isinstance(x, DistributedDataParallel)", ["DistributedDataParallel"]),
        ("'''Under FSDP.'''\ntorch.zeros(3); x.zero_(); f(help='for DDP'); g(feeds_it=0)", []),
    ],
)
def test_words_are_found(source, found):
    assert sorted(words(source)) == sorted(found)


def test_an_engine_is_one_file():
    names = {"accelerated": "AcceleratedRunner", "deepspeed": "DeepSpeedRunner", "fsdp2": "Fsdp2Runner"}
    for path in sorted(ENGINES.glob("*.py")):
        classes = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)}
        assert classes == ({names[path.stem]} if path.stem in names else {"Runner"} & classes)


@pytest.fixture(autouse=True)
def variable(monkeypatch):
    """Which the plugin sets; put back afterwards."""
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")


def sharding(**settings):
    """What the check looks at: accelerate's plugin, made as transformers makes it, and the arguments."""
    settings = {"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT", "cpu_ram_efficient_loading": False, **settings}
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin(**settings)),
        mixed_precision="no",
        parallelism_config=None,
    )
    return accelerator, SimpleNamespace(torch_compile=False, auto_find_batch_size=False)


def test_the_ready_settings_pass():
    fsdp2.check_configuration(*sharding())
    fsdp2.check_configuration(*sharding(reshard_after_forward=False, auto_wrap_policy="TRANSFORMER_BASED_WRAP"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fsdp_version": 1}, r'`fsdp` asks for version 1 of FSDP.*set {"version": 2} in `fsdp_config`'),
        ({"activation_checkpointing": True}, "`activation_checkpointing` was True.*other dropout masks"),
        ({"cpu_ram_efficient_loading": True}, "`cpu_ram_efficient_loading` was True.*leave it out"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, "`state_dict_type` was SHARDED_STATE_DICT.*set FULL_STATE_DICT"),
        ({"auto_wrap_policy": "SIZE_BASED_WRAP"}, "`auto_wrap_policy` was SIZE_BASED_WRAP.*use TRANSFORMER_BASED_WRAP"),
        ({"ignored_modules": "classifier"}, "`ignored_modules` was classifier.*not be reduced"),
    ],
)
def test_sharding_that_is_not_supported_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fsdp2.check_configuration(*sharding(**settings))


@pytest.mark.parametrize("name", ["torch_compile", "auto_find_batch_size"])
def test_arguments_that_do_not_go_with_sharding_are_refused(name):
    accelerator, args = sharding()
    setattr(args, name, True)
    with pytest.raises(ValueError, match=f"`{name}` was set with `fsdp`"):
        fsdp2.check_configuration(accelerator, args)


def test_float16_and_other_meshes_do_not_go_with_sharding():
    for name, value in (("mixed_precision", "fp16"), ("parallelism_config", object())):
        accelerator, args = sharding()
        setattr(accelerator, name, value)
        with pytest.raises(ValueError, match="was set with `fsdp`"):
            fsdp2.check_configuration(accelerator, args)


def test_sharding_that_accelerate_would_leave_out_is_refused(monkeypatch):
    """It shards on devices alone, and takes DistributedDataParallel without a word otherwise."""
    with pytest.raises(ValueError, match="accelerate shards no model here"):
        AcceleratedRunner.check(None, SimpleNamespace(n_gpu=0, fsdp=True))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="accelerate shards no model here"):
        AcceleratedRunner.check(None, SimpleNamespace(n_gpu=0, fsdp=None))


def test_a_model_sharded_as_it_was_loaded_is_refused(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.Linear(2, 2)
        AcceleratedRunner.prepare(model, None)
        model.weight = nn.Parameter(distribute_tensor(model.weight, init_device_mesh("cpu", (1,))))
        with pytest.raises(ValueError, match=r"`distributed_config`.*load it whole, and set `fsdp`"):
            AcceleratedRunner.prepare(model, None)
    finally:
        torch.distributed.destroy_process_group()
