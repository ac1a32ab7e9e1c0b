"""One declaration of a kernel makes both ways to call it: its launcher itself in eager code, and a registered operator
in a graph that ``torch.compile`` makes.

Both compute the same. The operator keeps a graph whole. Eager code does not cross its boundary, which on a CPU triples
the time of a tiny call.
"""

import inspect

import torch
from torch import Tensor

from .once import first_order


def operator(name, fake, backward=None, *, outputs=1, gradients=1):
    """Decorate a launcher ``forward(*inputs)``; the result is called like it and is differentiable with ``backward``.

    Args:
        name: of the registered operator, ``torch.ops.infobert_fast.<name>``.
        fake: of the forward's signature; empty results of the right shapes, dtypes and strides.
        backward: ``backward(grads, inputs, results, need)``, which gives a contiguous gradient for each of the first
            ``gradients`` inputs, or None where ``need`` says that nobody asks for it. ``results`` is all that the
            forward returned. None where there is no gradient.
        outputs: the caller receives that many of the forward's results; the others only serve the backward.
        gradients: how many inputs, from the first, have a gradient.

    ``forward`` has type annotations, from which the operator's schema is made, and no default values. It returns a
    tensor or a tuple of tensors.
    """

    def declare(forward):
        registered = torch.library.custom_op(f"infobert_fast::{name}", forward, mutates_args=())
        registered.register_fake(fake)
        if backward is None:
            return lambda *inputs: (registered if torch.compiler.is_compiling() else forward)(*inputs)

        number = len(inspect.signature(forward).parameters)
        nothing = (None,) * (number - gradients)

        def visible(results):
            return results[0] if outputs == 1 else results[:outputs]

        class Eager(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *inputs):
                results = _tuple(forward(*inputs))
                _keep(ctx, (*inputs, *results))
                return visible(results)

            @staticmethod
            @first_order
            def backward(ctx, *grads):
                kept = _kept(ctx)
                return *backward(grads, kept[:number], kept[number:], ctx.needs_input_grad[:gradients]), *nothing

        _register_backward(name, registered, backward, number, outputs, gradients)

        def call(*inputs):
            if torch.compiler.is_compiling():
                return visible(_tuple(registered(*inputs)))
            return Eager.apply(*inputs)

        return call

    return declare


def _register_backward(name, registered, backward, number, outputs, gradients):
    """The operator's gradient as an operator of its own: an empty tensor stands for a gradient that is not needed."""
    arguments, results = str(registered._opoverload._schema).split("(", 1)[1].split(") -> ")
    incoming = [f"Tensor grad{i}" for i in range(outputs)]
    kept = [f"Tensor result{i}" for i in range(results.count("Tensor"))]
    schema = f"({', '.join([*incoming, arguments, *kept])}, bool[] need) -> Tensor[]"

    def launch(*values):
        *values, need = values
        grads, inputs, results = values[:outputs], values[outputs : outputs + number], values[outputs + number :]
        found = backward(tuple(grads), inputs, results, need)
        return [grads[0].new_empty(0) if gradient is None else gradient for gradient in found]

    operator = torch.library.custom_op(f"infobert_fast::{name}_backward", launch, mutates_args=(), schema=schema)

    @operator.register_fake
    def _(*values):
        wanted = zip(values[outputs : outputs + gradients], values[-1], strict=True)
        return [x.new_empty(x.shape) if needed else values[0].new_empty(0) for x, needed in wanted]

    def setup_context(ctx, inputs, output):
        results = _tuple(output)
        ctx.mark_non_differentiable(*results[outputs:])
        _keep(ctx, (*inputs, *results))

    def backward_in_graph(ctx, *grads):
        need = list(ctx.needs_input_grad[:gradients])
        found = operator(*grads[:outputs], *_kept(ctx), need)
        known = (gradient if needed else None for gradient, needed in zip(found, need, strict=True))
        return *known, *(None,) * (number - gradients)

    registered.register_autograd(backward_in_graph, setup_context=setup_context)


def _tuple(results):
    return results if isinstance(results, tuple) else (results,)


def _keep(ctx, values):
    ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in values))
    ctx.others = [None if isinstance(value, Tensor) else value for value in values]


def _kept(ctx):
    pairs = zip(ctx.saved_tensors, ctx.others, strict=True)
    return [other if tensor is None else tensor for tensor, other in pairs]
