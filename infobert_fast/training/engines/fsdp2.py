"""FSDP2, PyTorch's ``fully_shard``: when gradients are sent, and what of it a perturbed step can use."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy, transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor

from infobert_fast.training.engines.runner import Runner
from infobert_fast.training.models.critic import critic_of
from infobert_fast.training.models.forward import PerturbedModel

__all__ = ["Fsdp2Runner", "check_configuration", "reduces_each_pass"]


logger = logging.getLogger(__name__)


class Fsdp2Runner(Runner):
    """Runs a step through a model that ``fully_shard`` has cut up.

    Every forward goes through the root module. It gathers weights layer by layer and frees them again, for each
    traversal of a graph anew, so that one forward serves the input gradient and the backward. Until the last backward
    of an optimisation step each rank sums up its own whole gradient; then the gradient is sent, once.

    Args:
        model: the perturbed model.
        sharded: the root module, after ``fully_shard``.
        boundary: tells whether the present micro-batch is the last of its optimisation step; always where None.
        autocast: makes the context that the model's forward runs in.
        reduce_each_pass: send the gradient in every pass. A rank then keeps its share of it alone: less memory, more
            traffic.
    """

    def __init__(
        self,
        model: PerturbedModel,
        sharded: FSDPModule,
        boundary: Callable[[], bool] | None = None,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        reduce_each_pass: bool = False,
    ) -> None:
        self.sharded = sharded
        self._boundary = (lambda: True) if boundary is None else boundary
        self._autocast = autocast
        self._reduce_each_pass = reduce_each_pass
        super().__init__(model, self.bare)

    @classmethod
    def check(cls, accelerator: Any, args: Any) -> None:
        check_configuration(accelerator, args)

    @classmethod
    def prepare(cls, model: nn.Module, accelerator: Any) -> None:
        """Tell accelerate which modules to cut up as units, and leave half precision to autocast.

        The critic is a unit of its own: it runs after the input gradient, whose traversal has freed the root's weights.
        The word embeddings are one too, accelerate sees to that; it fails where a unit that encloses them comes first,
        as for BERT. Its policy for half precision would round the perturbation together with the embeddings.
        """
        plugin = accelerator.state.fsdp_plugin
        plugin.mixed_precision_policy = None
        if units := [module for module in model.modules() if isinstance(module, FSDPModule)]:  # by an earlier training
            for unit in units:
                unit.reshard()  # an evaluation leaves the root's weights whole, which are none of the optimiser's
            return
        layers: list[str] = []
        if plugin.auto_wrap_policy is not None:
            layers = plugin.transformer_cls_names_to_wrap or getattr(model, "_no_split_modules", None) or []
            words = cast(Any, model).get_input_embeddings()
            enclosing = {type(module).__name__ for module in model.modules() if words in [*module.modules()]}
            layers = [name for name in layers if name not in enclosing]
        if not layers:
            logger.warning(
                "no class of layers is known to FSDP2: a forward gathers the whole model at once; name one in "
                "`fsdp_config` (transformer_layer_cls_to_wrap)"
            )
        critic = critic_of(model)
        own = [] if critic is None else [type(critic).__name__]
        plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = transformer_auto_wrap_policy, [*layers, *own]

    @classmethod
    def describe(cls, accelerator: Any) -> str:
        return "fsdp2"

    @classmethod
    def shares(cls, accelerator: Any) -> tuple[int, int, int]:
        ranks = accelerator.num_processes
        return ranks, ranks if reduces_each_pass(accelerator) else 1, ranks

    @classmethod
    def autocast(cls, accelerator: Any) -> contextlib.AbstractContextManager[Any]:
        context: contextlib.AbstractContextManager[Any] = accelerator.autocast()
        return context

    @classmethod
    def class_of(cls, model: nn.Module) -> type[nn.Module]:
        kinds: list[type[Any]] = [kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule)]
        return kinds[0]

    @property
    def bare(self) -> Callable[..., Any]:
        sharded: Any = self.sharded

        def call(**inputs: Any) -> Any:
            with self._autocast():
                return sharded(**inputs)

        return call

    def input_gradient(self, loss: Tensor, delta: Tensor, *, keep_graph: bool = False) -> Tensor:
        # The end of any traversal would send what earlier passes have summed up.
        self.sharded.set_requires_gradient_sync(False)
        return super().input_gradient(loss, delta, keep_graph=keep_graph)

    def backward(self, loss: Tensor, last: bool = True) -> None:
        self.sharded.set_requires_gradient_sync(self._reduce_each_pass or (last and self._boundary()))
        loss.backward()

    def gradient_norm(self, reported: Any) -> Any:
        return reported.full_tensor() if isinstance(reported, DTensor) else reported


def reduces_each_pass(accelerator: Any) -> bool:
    """Whether the run asks for a reduction in every backward, as accelerate's ``sync_each_batch`` does."""
    return bool(accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False))


def check_configuration(accelerator: Any, args: Any) -> None:
    """Refuse what would train something else in silence, or is not supported.

    Raises:
        ValueError: naming the setting to change.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"`fsdp` asks for version {plugin.fsdp_version} of FSDP, through which the input gradient does not pass; "
            f'set {{"version": 2}} in `fsdp_config`, or fsdp_version: 2 in accelerate\'s file'
        )
    refused = {
        "activation_checkpointing": (
            plugin.activation_checkpointing,
            "its recomputation draws other dropout masks: set it in the training arguments instead, which repeats them "
            "(gradient_checkpointing in older transformers)",
        ),
        "cpu_ram_efficient_loading": (plugin.cpu_ram_efficient_loading, "it is not supported: leave it out"),
        "auto_wrap_policy": (
            plugin.auto_wrap_policy is size_based_auto_wrap_policy and "SIZE_BASED_WRAP",
            "the critic must be a unit of its own, by its class: use TRANSFORMER_BASED_WRAP",
        ),
        "ignored_modules": (plugin.ignored_modules, "their gradients would not be reduced: leave it out"),
        "state_dict_type": (
            "FULL" not in plugin.state_dict_type.name and plugin.state_dict_type.name,
            "it writes no model that another library opens: set FULL_STATE_DICT",
        ),
    }
    for name, (value, cure) in refused.items():
        if value:
            raise ValueError(f"`{name}` was {value} in `fsdp_config` or accelerate's file; {cure}")
    for name, value, cure in (
        ("fp16", accelerator.mixed_precision == "fp16", "its loss scaler is not supported under FSDP2: use bf16=True"),
        ("torch_compile", args.torch_compile, "it is not supported under FSDP2: leave it out"),
        ("auto_find_batch_size", args.auto_find_batch_size, "a step that ran out of memory would leave parts of its "
         "gradient behind: leave it out"),
        ("parallelism_config", accelerator.parallelism_config is not None, "FSDP2 is supported over all ranks alone: "
         "leave it out"),
    ):  # fmt: skip
        if value:
            raise ValueError(f"`{name}` was set with `fsdp`; {cure}")
