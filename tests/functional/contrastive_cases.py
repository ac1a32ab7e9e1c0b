"""Inputs of the contrastive bounds in float64, and how results are held to the specification."""

from __future__ import annotations

import torch

F64 = torch.float64
NAMES = ("local", "global_", "w1", "b1", "w2", "b2")


def critic_inputs(rows: int, distinct: int, hidden: int = 8, x_dim: int = 7, y_dim: int = 5, seed: int = 0):
    """local, global_, w1, b1, w2, b2 in float64: scores of order 1, bounds well between 0 and log n."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=F64)

    width = x_dim + y_dim
    return (
        normal(rows, x_dim),
        normal(distinct, y_dim),
        normal(hidden, width, scale=width**-0.5),
        normal(hidden, scale=0.3),
        normal(1, hidden, scale=2 * hidden**-0.5),
        normal(1),
    )


def primitive_inputs(j: int, i: int, hidden: int = 8, seed: int = 0):
    """a, b, w2, b2 in float64."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, hidden, generator=generator, dtype=F64) for n in (j, i))
    return a, b, torch.randn(hidden, generator=generator, dtype=F64) * hidden**-0.5, torch.ones(1, dtype=F64)


def indices(pairs: int, local_rows: int, global_rows: int, seed: int = 0):
    """Repeats on both sides, some rows unused."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(rows, (pairs,), generator=generator) for rows in (local_rows, global_rows))


def value_and_grads(function, inputs, dtype=F64):
    """The output and the gradient of a fixed, uneven weighting of it, in every input."""
    leaves = [tensor.detach().to(dtype).clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    weights = torch.linspace(1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


def assert_same(got, expected, tolerance=1e-10):
    """Equal up to ``tolerance`` of the largest entry, tensor by tensor (value first, then gradients)."""
    for n, (g, e) in enumerate(zip(got, expected, strict=True)):
        error, scale = (g.to(F64) - e.to(F64)).abs().max().item(), e.abs().max().item()
        assert error <= tolerance * scale + 1e-15, f"tensor {n}: error {error:.2e} at scale {scale:.2e}"


def assert_no_worse_than_eager(fast, literal, inputs, dtype, factor=2.0):
    """Error against float64 on the same rounded inputs: at most ``factor`` times that of the literal form in ``dtype``,
    plus two roundings of the result, or of the terms of order 1 whose difference it is (the bound, the gradient of b2).

    The largest error of a small tensor is a matter of luck, for either form; a list of draws compares their means.
    """
    errors, allowed = [], []
    for draw in [inputs] if torch.is_tensor(inputs[0]) else inputs:
        rounded = [tensor.to(dtype) for tensor in draw]
        exact = value_and_grads(literal, rounded, F64)
        eager, got = value_and_grads(literal, rounded, dtype), value_and_grads(fast, rounded, dtype)
        scales = [max(x.abs().max().item(), 1.0 if x.numel() == 1 else 0.0) for x in exact]
        worst = [
            [(t.to(F64) - x).abs().max().item() for t, x in zip(form, exact, strict=True)] for form in (got, eager)
        ]
        errors.append(worst[0])
        allowed.append(
            [factor * e + 2 * torch.finfo(dtype).eps * scale for e, scale in zip(worst[1], scales, strict=True)]
        )
    for n, (error, limit) in enumerate(zip(torch.tensor(errors).mean(0), torch.tensor(allowed).mean(0), strict=True)):
        assert error <= limit, f"tensor {n}: error {error:.2e}, eager allows {limit:.2e}"
