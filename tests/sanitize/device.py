"""What tests and library ask of ``torch.cuda``, answered on a machine that has no device.

``ttsem`` redirects tensors and launches to the CPU; here stands what it leaves to PyTorch.
"""

import contextlib

import torch
from graphs import CUDAGraph, Stream, graph, set_sync_debug_mode


class Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


def with_out_dtype(product):
    """``mm`` and ``addmm`` have ``out_dtype`` on CUDA alone; here the arguments are cast first."""

    def call(*args, out=None, out_dtype=None, **options):
        if out_dtype is not None:
            args = tuple(x.to(out_dtype) for x in args)
        result = product(*args, **options)
        return result if out is None else out.copy_(result)

    return call


def correctly_rounded(root):
    """A device's square root is correctly rounded, that of the CPU's vector library not always."""
    return lambda x: root(x.double()).to(x.dtype) if x.dtype == torch.float32 else root(x)


def install():
    """Once a process, before anything under test is imported."""
    cuda, internal = torch.cuda, torch._C
    cuda._lazy_init = lambda: None
    cuda.set_sync_debug_mode = set_sync_debug_mode
    cuda.is_initialized = cuda.is_current_stream_capturing = lambda: False
    cuda.graphs.is_current_stream_capturing = internal._cuda_isCurrentStreamCapturing = lambda: False
    cuda.Stream, cuda.current_stream, cuda.stream = Stream, Stream, contextlib.nullcontext
    cuda.CUDAGraph, cuda.graph = CUDAGraph, graph
    cuda.get_rng_state = lambda device=None: torch.random.get_rng_state()
    cuda.set_rng_state = lambda state, device=None: torch.random.set_rng_state(state)
    torch.accelerator.current_device_index = internal._accelerator_getDeviceIndex = lambda: 0
    torch.Generator = Generator
    torch.Tensor.pin_memory = lambda tensor, *args: tensor
    torch.Tensor.sqrt = correctly_rounded(torch.Tensor.sqrt)
    torch.mm, torch.addmm = with_out_dtype(torch.mm), with_out_dtype(torch.addmm)
