"""The registered operators around the critic: schema, fakes with the true strides, autograd, one graph."""

import importlib

import pytest
import torch

from infobert_fast import functional

for kernels in ("anchors", "club", "freelb", "rows", "sampled_club", "uniform"):
    importlib.import_module(f"infobert_fast.kernels.{kernels}")  # which registers its operators
operators = torch.ops.infobert_fast

ROWS = [True, True, False, True, True, False, True]


def inputs(device, dtype=torch.float32):
    """Three sentences of two to five tokens: gradient, mask, rows that need a gradient, their mask, partners."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [0, 1, 1, 1, 0]], device=device)
    grad = torch.randn(3, 4, 5, generator=generator).to(device, dtype).transpose(1, 2)  # strided
    rows = torch.randn(4, 7, generator=generator).to(device, dtype).t().requires_grad_()
    return grad, mask, rows, torch.tensor(ROWS, device=device), torch.tensor([1, 0, 4, 0, 3, 1, 6], device=device)


def test_opcheck(device):
    grad, mask, rows, keep, index = inputs(device)

    def check(name, *arguments):
        torch.library.opcheck(getattr(operators, name).default, arguments)

    check("select_anchors", grad, mask, 0.2, 0.9)
    check("anchor_indices", grad, mask, 0.2, 0.9, 7)
    for m in (None, keep):
        check("club", rows, m)
        check("club_sampled", rows, index, m)
        with torch.no_grad():
            kept = operators.club(rows, m)
            check("club_backward", kept[0], rows.detach(), m, *kept, [True])
            kept = operators.club_sampled(rows, index, m)
            check("club_sampled_backward", kept[0], rows.detach(), index, m, *kept, [True])
    for distinct, chosen in ((True, index[[0, 1, 2, 4, 6]]), (False, index)):
        check("take_rows", rows, chosen, distinct)
        gathered = rows.detach()[chosen]
        check("take_rows_backward", gathered, rows.detach(), chosen, distinct, gathered, [True])
    for ids in (None, torch.tensor([4, 2, 9], device=device)):
        check("freelb_start", mask, ids, 6, 0.1, "l2", 7, torch.float32)
    for norm_type in ("l2", "linf"):
        check("freelb_step", grad, grad, mask, 0.1, 0.5, norm_type)


def test_gradcheck(device):
    if device == "cuda":
        pytest.skip("float64 runs under the interpreter only")
    _, _, rows, keep, index = inputs(device, torch.float64)
    for function in (
        lambda y: operators.club(y, keep)[0],
        lambda y: operators.club_sampled(y, index, keep)[0],
        lambda y: operators.take_rows(y, index, False),
        lambda y: operators.take_rows(y, index[[1, 0, 4]], True),
    ):
        assert torch.autograd.gradcheck(function, rows)


def test_one_graph_of_them_all(device):
    """A step's worth of regularisers with a dynamic batch, equal to the eager kernels."""
    torch._dynamo.reset()
    kernels = {"implementation": "triton", "validate": False}

    def step(h0, grad, delta, mask, index, lengths):
        anchors = functional.anchor_indices(grad, mask, 0.2, 0.9, lengths=lengths, **kernels)
        rows = h0.flatten(0, 1)
        gathered = functional.take_rows(rows, anchors, distinct=True, **kernels)
        bound = functional.club(h0, mask, **kernels) + functional.club_sampled(rows, index, **kernels)
        chosen = functional.select_anchors(grad, mask, 0.2, 0.9, **kernels)
        delta = functional.freelb_step(delta, grad, mask, 0.1, 0.3, "l2", **kernels)
        start = functional.freelb_init(delta, mask, 0.1, seed=5, **kernels)
        return gathered.square().sum() + bound, chosen, delta + start

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3):
        grad, mask, *_ = inputs(device)
        grad, mask = grad[:batch], mask[:batch]
        lengths = [5, 2, 3][:batch]
        index = torch.arange(5 * batch, device=device).roll(1)
        results = []
        for function in (compiled, step):
            h0 = grad.clone().requires_grad_()
            loss, *others = function(h0, grad, grad / 9, mask, index, lengths)
            loss.backward()
            results.append((loss.detach(), h0.grad, *others))
        assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
