"""The dispatch to the kernels around the critic: the same results through the public functions, and who is chosen."""

import pytest
import torch

from infobert_fast import functional
from infobert_fast.kernels import anchors, club, freelb, rows, sampled_club, uniform

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # without a GPU the kernels run in Triton's interpreter


@pytest.fixture
def batch():
    """Gradient, mask, lengths and partners of four sentences."""
    generator = torch.Generator().manual_seed(0)
    lengths = [6, 3, 1, 5]
    mask = (torch.arange(6) < torch.tensor(lengths).unsqueeze(1)).long().to(DEVICE)
    rows = torch.randn(4, 6, 9, generator=generator).to(DEVICE)
    return rows, mask, lengths, functional.sample_rows(mask.cpu(), generator).to(DEVICE)


def calls(batch, implementation):
    """(name, result, gradient or None) of every function with a kernel."""
    rows, mask, lengths, index = batch
    chosen = {"implementation": implementation}
    yield "select_anchors", functional.select_anchors(rows, mask, **chosen)
    yield "anchor_indices", functional.anchor_indices(rows, mask, lengths=lengths, **chosen)
    yield "anchor_indices", functional.anchor_indices(rows, mask, **chosen)
    yield "freelb_start", functional.freelb_init(rows, mask, 0.1, seed=3, **chosen)
    for norm_type in ("l2", "linf"):
        yield "freelb_step", functional.freelb_step(rows / 9, rows, mask, 0.1, 0.5, norm_type, **chosen)
    for name, function in (
        ("club", lambda y: functional.club(y, mask, **chosen)),
        ("club", lambda y: functional.club(y[:, 0], **chosen)),
        ("club_sampled", lambda y: functional.club_sampled(y, index, mask, **chosen)),
        ("take_rows", lambda y: functional.take_rows(y.flatten(0, 1), index, **chosen).square().sum()),
    ):
        leaf = rows.clone().requires_grad_()
        value = function(leaf)
        (3 * value).backward()
        yield name, torch.cat([value.detach().reshape(1), leaf.grad.flatten()])


def test_kernels_equal_pytorch(batch):
    for (name, got), (_, expected) in zip(calls(batch, "triton"), calls(batch, "torch"), strict=True):
        assert got.dtype == expected.dtype, name
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-7, msg=name)


def test_who_is_chosen(batch, monkeypatch):
    """ "triton" takes the kernels; "auto" takes them on a GPU alone."""
    taken = []
    names = [name for name, _ in calls(batch, "torch")]
    for name in set(names):
        module = next(
            module for module in (anchors, club, freelb, rows, sampled_club, uniform) if hasattr(module, name)
        )
        kernel = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, name=name, kernel=kernel: taken.append(name) or kernel(*a))
    list(calls(batch, "torch"))
    assert taken == []
    list(calls(batch, "auto"))
    assert taken == (names if DEVICE == "cuda" else [])
    taken.clear()
    list(calls(batch, "triton"))
    assert taken == names
