"""Every collective that a process takes part in, and its bytes: counted, and as its sockets saw them.

A collective is an operator of PyTorch's dispatcher, whether Python calls it, a functional one, the reducer of
DistributedDataParallel in C++ or DeepSpeed's hooks in a backward: a dispatch mode sees all of them, once each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce"]

# Operator -> its kind, and the argument that holds one rank's part.
OPERATORS: Mapping[str, tuple[Kind, int]] = {
    "c10d::allreduce_": ("all_reduce", 0),
    "c10d::allreduce_coalesced_": ("all_reduce", 0),
    "c10d::allgather_": ("all_gather", 1),
    "c10d::_allgather_base_": ("all_gather", 1),
    "c10d::allgather_coalesced_": ("all_gather", 1),
    "c10d::allgather_into_tensor_coalesced_": ("all_gather", 1),
    "c10d::reduce_scatter_": ("reduce_scatter", 0),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", 0),
    "c10d::reduce_scatter_tensor_coalesced_": ("reduce_scatter", 0),
    "c10d::broadcast_": ("broadcast", 0),
    "c10d::reduce_": ("reduce", 0),
    "_c10d_functional::all_reduce": ("all_reduce", 0),
    "_c10d_functional::all_reduce_": ("all_reduce", 0),
    "_c10d_functional::all_gather_into_tensor": ("all_gather", 0),
    "_c10d_functional::broadcast": ("broadcast", 0),
    "_c10d_functional::broadcast_": ("broadcast", 0),
}
SILENT = ("c10d::barrier", "_c10d_functional::wait_tensor", "_c10d_functional::_wrap_tensor_autograd")

# Bytes that a rank receives for each byte of its part, by a ring: an all_reduce is a reduce_scatter and an all_gather
# of R-th parts. A broadcast's or a reduce's are those of the average rank: R - 1 of the R receive the whole tensor.
RING: Mapping[Kind, Callable[[int], float]] = {
    "all_reduce": lambda ranks: 2 * (ranks - 1) / ranks,
    "all_gather": lambda ranks: ranks - 1,
    "reduce_scatter": lambda ranks: ranks - 1,
    "broadcast": lambda ranks: (ranks - 1) / ranks,
    "reduce": lambda ranks: (ranks - 1) / ranks,
}


class Sent(NamedTuple):
    """Collectives of one kind: how many, the bytes of a rank's part of them, and what a ring makes of these."""

    calls: int = 0
    payload: int = 0
    received: float = 0.0


@dataclass
class Traffic:
    """What a process took part in, by kind; ``written`` is what it wrote meanwhile, to sockets and to all else."""

    kinds: dict[Kind, Sent] = field(default_factory=lambda: defaultdict(Sent))
    written: int = 0

    @property
    def received(self) -> float:
        return sum(sent.received for sent in self.kinds.values())


class Watch(TorchDispatchMode):
    """``with Watch() as watch: ...``, then ``watch.traffic``; :meth:`restart` forgets what has been seen.

    Raises:
        NotImplementedError: for a collective that it does not know, when that is called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.restart()

    def restart(self) -> None:
        self._traffic, self._written = Traffic(), _written()

    @property
    def traffic(self) -> Traffic:
        """So far, whatever comes later."""
        return Traffic(dict(self._traffic.kinds), _written() - self._written)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = function.name().split(".")[0]
        if function.namespace in ("c10d", "_c10d_functional") and name not in SILENT:
            if name not in OPERATORS:
                raise NotImplementedError(f"{name} is no collective whose bytes are known: add it to OPERATORS")
            kind, place = OPERATORS[name]
            payload = sum(part.nbytes for part in tree_leaves(args[place]) if isinstance(part, Tensor))
            sent, ranks = self._traffic.kinds[kind], _ranks(args)
            self._traffic.kinds[kind] = Sent(
                sent.calls + 1, sent.payload + payload, sent.received + RING[kind](ranks) * payload
            )
        return function(*args, **(kwargs or {}))


def _ranks(args: tuple[Any, ...]) -> int:
    """Of the process group among the arguments: an object, or a functional collective's name of one."""
    for argument in args:
        if isinstance(argument, torch.ScriptObject):
            try:
                return dist.ProcessGroup.unbox(argument).size()
            except RuntimeError:  # the kind of sum, which is an object too
                continue
    return dist.distributed_c10d._resolve_process_group(args[-1]).size()


def _written() -> int:
    """Bytes that this process has handed to ``write`` and its kin (Linux), which is how gloo sends."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return int(dict(line.split(": ") for line in lines)["wchar"])
