"""pytest plugin: a CUDA device made of CPU tensors, on which ``ttsem`` executes and checks every launch.

``python -m pytest -p plugin`` with this folder on PYTHONPATH. Each launch is compiled to Triton IR as for a device and
executed on the CPU; an access outside a tensor, a race between programs or an undefined value fails the test that
launched it, at the kernel's line. At the end stands how many launches ran, and which kernels of the library none of
them reached.
"""

import ast
import functools
import importlib
import pkgutil
from collections import Counter

import device
import numpy as np
import pytest
import torch
from graphs import quietly
from triton.runtime.jit import JITFunction
from ttsem import harness, mlir, ops
from ttsem.sanitize import session

torch.set_num_threads(1)
STATE = pytest.StashKey()
# what cannot run here: a marker, or how a test's name begins, and why
CANNOT = {
    "device_memory": "memory is counted on a device alone",
    "test_opcheck": "PyTorch traces with tensors that hold no data, and a launch here reads it",
    "test_one_graph": "torch.compile asks the CUDA runtime for a device",
    "test_any_shape": "shapes drawn at random: the interpreter has them, here they would take a minute",
}
launched: Counter[str] = Counter()


def relu_of_sum(a, b):
    """``fma.rn.relu.f16x2`` of a, one and b: one rounding, zero for what is negative, NaN canonical."""
    with np.errstate(all="ignore"):
        total = (np.asarray(a, np.float64) + np.asarray(b, np.float64)).astype(np.float16)
    out = np.where(total > 0, total, np.float16(0))
    return [np.where(np.isnan(total), np.uint16(0x7FFF).view(np.float16), out).astype(np.float16)]


def greater(a, b):
    """``set.gt.f16x2.f16x2``: one where a is greater, else zero, with NaN too."""
    return [(np.asarray(a, np.float16) > np.asarray(b, np.float16)).astype(np.float16)]


FRAGMENTS = {
    "{ .reg .b32 one; mov.b32 one, 0x3C003C00; fma.rn.relu.f16x2 $0, $1, one, $2; }": relu_of_sum,
    "set.gt.f16x2.f16x2 $0, $1, $2;": greater,
}


def apart(record_launch):
    """Give every storage of a launch a TiB of addresses of its own: beyond a tensor lies nothing, where the CPU's
    allocator would have another tensor."""

    def recorded(kernel, *args, **options):
        made = record_launch(kernel, *args, **options)
        record, moved = made.record, {}
        for name, base in record.bases.items():
            moved.setdefault(base, (len(moved) + 64 << 40) + base % (1 << 16))
            record.ptrs[name] += moved[base] - base
            record.bases[name] = moved[base]
        if kernel.__module__.startswith("infobert_fast."):
            launched[kernel.__name__] += 1
        return made

    return recorded


texts: dict[tuple[JITFunction, str], str] = {}


def module_of(record, stage, target):
    """The launch's Triton IR, once for launches that Triton would compile once. ``ttsem`` by itself compiles each down
    to machine code, which nobody reads here."""
    _, *specialised = harness._specialize(record.fn, record.args, record.kwargs, target)
    key = record.fn, repr(specialised)
    if key not in texts:
        mlir.enable_generic_printing()
        texts[key] = harness._stage_text(record, stage, target)
    return texts[key]


def kernels_of_the_library():
    """Names of the jitted functions that no other one calls: what can be launched."""
    package = importlib.import_module("infobert_fast.kernels")
    jitted, called = set(), set()
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        members = vars(importlib.import_module(module.name)).values()
        jitted |= {member for member in members if isinstance(member, JITFunction)}
    for function in jitted:
        calls = (node.func for node in ast.walk(ast.parse(function.src)) if isinstance(node, ast.Call))
        called |= {call.id for call in calls if isinstance(call, ast.Name)}
    return {function.__name__ for function in jitted} - called


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config):
    """Before the first conftest asks whether there is a device."""
    for text, meaning in FRAGMENTS.items():
        ops.PTX_FRAGMENTS[ops._norm_asm(text)] = meaning, None
    harness.record_launch = apart(harness.record_launch)
    harness.ir_for_launch = module_of
    mlir.parse = functools.lru_cache(256)(mlir.parse)
    device.install()
    opened = session(90, "<pytest>")
    early_config.stash[STATE] = opened.__enter__()
    early_config.add_cleanup(lambda: opened.__exit__(None, None, None))
    JITFunction.run = quietly(JITFunction.run)


def pytest_collection_modifyitems(items):
    for item in items:
        for name, reason in CANNOT.items():
            if item.get_closest_marker(name) or item.name.startswith(name):
                item.add_marker(pytest.mark.skip(reason=reason))


class Tally:
    """Launches of the library's kernels, added up over the workers of pytest-xdist."""

    def __init__(self):
        self.launches, self.unchecked = Counter(), 0

    def add(self, launches, unchecked):
        self.launches.update(launches)
        self.unchecked += unchecked

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error):
        if output := getattr(node, "workeroutput", None):
            self.add(output["launches"], output["unchecked"])

    def pytest_sessionfinish(self, session):
        config = session.config
        if hasattr(config, "workeroutput"):  # a worker: to the process that started it
            config.workeroutput |= {"launches": dict(launched), "unchecked": config.stash[STATE].races_unchecked}
            return
        self.add(launched, config.stash[STATE].races_unchecked)
        if config.getoption("every_kernel") and (missed := kernels_of_the_library() - set(self.launches)):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            print(f"\nnot executed: {', '.join(sorted(missed))}")

    def pytest_terminal_summary(self, terminalreporter):
        report = terminalreporter.write_line
        report(f"{self.launches.total()} launches of {len(self.launches)} kernels executed for sm_90")
        report(f"{self.unchecked} of them not checked for races: more accesses than are kept")
        report(", ".join(f"{name} {count}" for name, count in sorted(self.launches.items())))


def pytest_addoption(parser):
    parser.addoption("--every-kernel", action="store_true", help="fail where a kernel of the library was not launched")


def pytest_configure(config):
    config.pluginmanager.register(Tally())
