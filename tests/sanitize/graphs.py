"""Stand-ins for CUDA graphs, streams and the debug mode of synchronisations.

What a graph captured is kept as a list and done again into the same tensors: a launch with the arguments that it had,
an operation of PyTorch with its own, its result copied to where it lay. Reading a value on the host fails during a
capture, and where ``torch.cuda.set_sync_debug_mode("error")`` asks for it.
"""

import contextlib
import ctypes

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_consecutive"}


class HostReads(TorchDispatchMode):
    """Refuses every operation whose result the host waits for on a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in READS:
            raise RuntimeError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


waiting = contextlib.ExitStack()


def set_sync_debug_mode(mode):
    waiting.close()
    if mode == "error":
        waiting.enter_context(HostReads())


class Stream:
    """One queue: everything has been done by the time that it is asked."""

    def __init__(self, *args, **options):
        pass

    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass


class CUDAGraph:
    def __init__(self, *args):
        self.steps = []

    def replay(self):
        for step in self.steps:
            step()


class Capture(HostReads):
    """Notes every operation that has something to do again."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        views = any(result.alias_info and not result.alias_info.is_write for result in func._schema.returns)
        if not views and "empty" not in func.overloadpacket.__name__:
            self.steps.append(lambda: repeat(func, args, kwargs or {}, out))
        return out


@contextlib.contextmanager
def graph(captured, **options):
    run = JITFunction.run

    def record(*args, **kwargs):
        captured.steps.append(lambda: run(*args, **kwargs))
        return run(*args, **kwargs)

    JITFunction.run = record
    try:
        with Capture(captured.steps):
            yield
    finally:
        JITFunction.run = run


def quietly(run):
    """A launch in which no mode of PyTorch sees what its emulation does with tensors."""

    def launch(*args, **kwargs):
        with _disable_current_modes():
            return run(*args, **kwargs)

    return launch


def repeat(func, args, kwargs, out):
    inputs = tuple(leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor))
    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(inputs):
        again = func(*args, **kwargs)
        for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
            if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                overwrite(old, new)


def overwrite(old, new):
    """Copy beneath autograd: a graph's replay changes no version counter."""
    if old.is_contiguous() and new.is_contiguous():
        ctypes.memmove(old.data_ptr(), new.data_ptr(), old.numel() * old.element_size())
    else:
        with torch.autograd._unsafe_preserve_version_counter((old,)):
            old.detach().copy_(new)
