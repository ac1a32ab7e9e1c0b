"""Every launch as Triton's launcher sees it: the host code calls, Triton itself binds and types the arguments, and the
kernel is lowered to Triton IR for a chip that is not here. Nothing runs. In that IR no address may wrap.

The interpreter knows no types and no branch that it does not take; the cases of ``aot.py`` name their arguments
themselves. An argument that is None or 1, which a launch makes a constant, shows only here, or on a device. A process
of its own, ``python tests/kernels/launches.py``, because kernels decorated for the interpreter cannot be compiled.
"""

from types import SimpleNamespace

import torch
from offsets import narrow_products
from triton._C.libtriton import ir, passes
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from infobert_fast.kernels import (
    anchors,
    chunk_bound,
    club,
    freelb,
    pairwise_mlp,
    rows,
    sampled_club,
    separable,
    uniform,
)
from infobert_fast.kernels.pairs import Pairs, Terms

TARGET = GPUTarget("cuda", 90, 32)
ALL = (True,) * 4
NARROW = set()


def lower(source, target, options, **_):
    """In place of ``triton.compile``: as far as types and branches are decided."""
    backend, context = make_backend(target), ir.context()
    options = backend.parse_options(dict(options))
    ir.load_dialects(context)
    backend.load_dialects(context)
    module = source.make_ir(
        target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context
    )
    manager = ir.pass_manager(context)
    passes.common.add_inliner(manager)
    passes.common.add_canonicalizer(manager)
    manager.run(module, "launches")
    NARROW.update(narrow_products(str(module)))
    return SimpleNamespace()


def launcher(kernel, grid):
    _ = kernel.device_caches[0]  # the first look makes the binder, and sets `compile`
    kernel.compile = lower
    assert all(size <= 65535 for size in grid[1:]), f"{kernel.fn.__name__} has the grid {grid}"
    return lambda *args, **kwargs: kernel.run(*args, grid=grid, warmup=True, **kwargs)


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype)


def pairwise(
    M, B, H, dtype=torch.float32, *, indexed=False, chunk_size=None, terms=None, precision="exact", keep=True, need=ALL
):
    operands = draw(M, H, dtype=dtype), draw(B, H, dtype=dtype), draw(H, dtype=dtype), draw(1, dtype=dtype)
    indices = (torch.arange(M), torch.arange(M) % B) if indexed else (None, None)
    pairs = Pairs(M, *indices, chunk_size, terms=terms or Terms())
    lse, scores = pairwise_mlp.pairwise_mlp_forward(*operands, pairs, precision=precision, keep_scores=keep)
    pairwise_mlp.pairwise_mlp_backward(lse, lse, *operands, pairs, scores=scores, precision=precision, need=need)


def critic():
    """All pairs, long chunks and short ones."""
    for size in (1, 40):
        for precision in ("exact", "fast"):
            for keep in (True, False):
                pairwise(size, size, size, precision=precision, keep=keep)
                terms = Terms(torch.arange(size), clip=5.0 if size > 1 else None)
                pairwise(size, size, size, terms=terms, precision=precision, keep=keep)
    pairwise(80, 5, 12, torch.bfloat16, indexed=True, chunk_size=70)
    pairwise(80, 5, 12, indexed=True, need=(True, False, False, False))
    pairwise(80, 5, 12, need=(False, True, True, False))
    for indexed in (False, True):
        pairwise(20, 20, 12, torch.float16, indexed=indexed, chunk_size=8)
    pairwise(1, 1, 1, chunk_size=1)


def bound():
    """Each index there or not, few and many rows of b, and gradients left out."""
    every, some = torch.arange(40), torch.arange(40) % 5
    cases = [(40, None, None, ALL), (40, every, None, ALL), (5, None, some, ALL), (5, every, some, ALL)]
    cases += [(70, every, every, ALL), (5, None, some, (True, False, False, False)), (5, None, some, (False,) * 4)]
    for B, local_index, pair_index, need in cases:
        chunk_bound.chunk_bound(draw(40, 12), draw(B, 12), draw(12), draw(1), local_index, pair_index, 8, need)
    chunk_bound.chunk_bound(draw(1, 1), draw(1, 1), draw(1), draw(1), None, None, 1, ALL)


def regularizers(shape, mask, dtype):
    """Everything around the critic, of one mask."""
    x, flat, count = draw(*shape, dtype=dtype), mask.flatten(), mask.numel()
    anchors.select_anchors(x, mask, 0.5, 0.9)
    anchors.anchor_indices(x, mask, 0, 1, count)
    y = x.flatten(0, 1)
    for counted in (None, flat):
        _, centre, total = club.club_forward(y, counted)
        club.club_backward(draw(), y, counted, centre, total)
        partner = torch.arange(count)
        _, total = sampled_club.sampled_club_forward(y, partner, counted)
        sampled_club.sampled_club_backward(draw(), y, partner, counted, total)
    for distinct in (True, False):
        rows.scatter_rows(y, torch.arange(count), y, distinct)
    for norm_type in ("l2", "linf"):
        for radius in (0, 1):
            freelb.freelb_step(draw(*shape), x, mask, 1, radius, norm_type)
        uniform.freelb_start(mask, None, shape[2], 1, norm_type, 1, torch.float32)
    uniform.freelb_start(mask, torch.arange(shape[0]), shape[2], 0.1, "l2", -(2**63), torch.float32)


def dots(J, I, d, dtype, labelled, symmetric, need=ALL[:3]):  # noqa: E741
    x, y, scale, labels = draw(J, d, dtype=dtype), draw(I, d, dtype=dtype), draw(), torch.arange(I)
    terms = Terms(labels, labels, True) if labelled else Terms(clip=None if symmetric else 5.0)
    options = terms, symmetric
    lse_i, lse_j = separable.separable_forward(x, y, scale, *options)
    separable.separable_backward(lse_i, lse_j, lse_i, lse_j, x, y, scale, *options, need)


def main():
    here = dict.fromkeys(("get_current_device", "get_current_stream"), lambda *_: 0)
    driver.set_active(SimpleNamespace(get_current_target=lambda: TARGET, **here))
    JITFunction.__getitem__ = launcher
    critic()
    bound()
    regularizers((3, 20, 24), torch.ones(3, 20, dtype=torch.int64), torch.bfloat16)
    regularizers((1, 1, 1), torch.ones(1, 1, dtype=torch.bool), torch.float32)
    for dtype in (torch.float32, torch.float16):
        dots(40, 7, 12, dtype, labelled=False, symmetric=False)
        dots(33, 33, 12, dtype, labelled=True, symmetric=True)
    dots(1, 1, 1, torch.float32, labelled=False, symmetric=True)
    assert not NARROW, "addresses made in 32 bits:\n" + "\n".join(sorted(NARROW))


if __name__ == "__main__":
    main()
