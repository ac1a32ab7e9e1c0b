"""What torch.compile has to be told of a model whose word embeddings are perturbed and whose graph serves twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch._dynamo.config
import torch._functorch.config

__all__ = ["compiled_for_steps"]


@contextlib.contextmanager
def compiled_for_steps() -> Iterator[None]:
    """Within this context one compiled graph serves every length of a batch, and both traversals of a pass.

    Dynamo takes what hangs on a module of torch's for constant in shape, delta on the embeddings' hook among it.
    AOTAutograd would let the first traversal write over what the second one reads. Both settings are this thread's,
    and autograd hands them on to its own threads.
    """
    with (
        torch._dynamo.config.patch(force_nn_module_property_static_shapes=False),
        torch._functorch.config.patch(donated_buffer=False),
    ):
        yield
