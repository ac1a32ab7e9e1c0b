"""The critic as a submodule of the model: wrapped, reduced, clipped, sharded, saved and loaded with it."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from transformers import AutoConfig, PreTrainedModel

from infobert_fast.estimators import InfoNCE
from infobert_fast.training.models.stock import stock_of, text_config

__all__ = [
    "CRITIC",
    "attach_critic",
    "critic_of",
    "keep_critic",
    "load_critic",
    "load_without_critic",
    "restore_critic",
]

logger = logging.getLogger(__name__)

# The submodule's name, and the prefix of its weights in the model's checkpoint. Stock transformers opens the checkpoint
# and reports these weights as unexpected.
CRITIC = "mi_estimator"
BESIDE = f"{CRITIC}.safetensors"  # the critic alone, in a folder whose other weights leave it out
PUBLISHED = "mi_estimator.bin"  # the critic's state dict in a folder that the published code wrote


def attach_critic(model: PreTrainedModel, hidden_dim: int = 300, checkpoint: str | None = None) -> InfoNCE:
    """Give the model a critic for its hidden size, or return the one it has; it is trained in any case.

    It is filled from ``checkpoint``, see :func:`load_critic`; without one, a new critic is filled from the local folder
    that the model was loaded from, where that holds one. Where `peft` wraps the model, the critic is a submodule of the
    model within, so that the merged model has it.

    Raises:
        ValueError: where the model, its folder or ``checkpoint`` has a critic of another width, ``checkpoint`` has
            none, or `peft` put adapters into the model's.
    """
    stock = stock_of(model)
    critic = critic_of(model)
    if critic is None:
        width = text_config(model).hidden_size
        reference = next(model.parameters())
        critic = InfoNCE(width, width, hidden_dim).to(device=reference.device, dtype=reference.dtype)
        # A model built from a configuration has no name: no folder, and not the working directory either.
        if checkpoint is None and not ((name := getattr(model, "name_or_path", "")) and load_critic(critic, name)):
            logger.info(
                "the critic is new: %s", f"{name} is no folder that holds one" if name else "the model has no name"
            )
    elif not isinstance(critic, InfoNCE) or not isinstance(critic.F_func[0], nn.Linear):
        raise ValueError(
            f"`peft` has put adapters or a copy into the model's `{CRITIC}`, which is trained whole and saved beside "
            f"the adapter: leave it out of `target_modules` and `modules_to_save`"
        )
    elif (width := critic.F_func[0].out_features) != hidden_dim:
        raise ValueError(
            f"`critic_hidden_dim` was {hidden_dim}; the model's critic is {width} wide: set it to {width}, or "
            f"delete the model's `{CRITIC}`"
        )
    if checkpoint is not None and not load_critic(critic, checkpoint):
        raise ValueError(
            f"`critic_checkpoint` was {checkpoint!r}, which holds no critic: name a folder with `{CRITIC}.*` weights "
            f"in safetensors, or a file with the critic's state dict"
        )
    if not hasattr(stock, CRITIC):
        stock.add_module(CRITIC, critic)
    return critic.requires_grad_()  # `peft` freezes what the model had before


def critic_of(model: nn.Module) -> InfoNCE | None:
    """The model's critic, where it has one."""
    return getattr(stock_of(model), CRITIC, None)


def keep_critic(critic: InfoNCE, folder: str | Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """Write the critic into a folder to which a model was saved without it, as `peft` saves adapters alone.

    Nothing is written where the folder's weights hold it.

    Args:
        critic: the critic.
        folder: where the model was saved.
        state_dict: the weights that were saved, gathered by an engine that cuts them up; those in the critic where
            None. Empty where the engine saves all weights in a way of its own.

    Raises:
        ValueError: for a ``state_dict`` with weights, the critic's not among them.
    """
    folder = Path(folder)
    if state_dict == {} or _critic_in(folder):
        return
    if state_dict is None:
        found = dict(critic.state_dict())
    else:
        found = {name.rpartition(f"{CRITIC}.")[2]: v for name, v in state_dict.items() if f"{CRITIC}." in name}
    if found.keys() != critic.state_dict().keys():
        raise ValueError(
            f"the weights that were gathered for {folder} lack the critic's ({CRITIC}.*), which would be lost: gather "
            f"all weights that are trained"
        )
    tensors = {f"{CRITIC}.{name}": value.detach().cpu().contiguous() for name, value in found.items()}
    save_file(tensors, folder / BESIDE, metadata={"format": "pt"})


def restore_critic(critic: InfoNCE, folder: str | Path) -> None:
    """Fill the critic from a checkpoint of its own run.

    Raises:
        ValueError: where the folder holds no critic, or one of another shape.
    """
    if not load_critic(critic, folder):
        raise ValueError(
            f"{folder} holds no critic (`{CRITIC}.*` in safetensors), so that the run would not go on as it was: name "
            f"another checkpoint, or give the folder as the model, to start afresh from its weights"
        )


def load_critic(critic: InfoNCE, source: str | Path) -> bool:
    """Fill the critic from a folder's safetensors or its ``mi_estimator.bin``, or from a file with a critic's state
    dict, keys with or without ``module.`` and ``mi_estimator.`` before them; False where the source holds none.

    Nothing but tensors is unpickled.

    Raises:
        ValueError: for a file of other content, or a critic of another shape, naming both.
    """
    source = Path(source)
    if source.is_file():
        found = _read_state_dict(source)
    else:
        found = _critic_in(source)
        if not found and (source / PUBLISHED).is_file():
            found = _read_state_dict(source / PUBLISHED)
    if not found:
        return False
    expected = {name: list(value.shape) for name, value in critic.state_dict().items()}
    actual = {name: list(value.shape) for name, value in found.items()}
    if actual != expected:
        raise ValueError(
            f"the critic in {source} has shapes {actual}; this run's has {expected}: set `critic_hidden_dim` and the "
            f"model as in the run that wrote it, or remove its weights"
        )
    whole: dict[str, Any] = dict(found)
    set_model_state_dict(critic, whole, options=StateDictOptions(full_state_dict=True))  # of a sharded critic too
    return True


def load_without_critic(auto: Any, name: str, **settings: Any) -> Any:
    """``auto.from_pretrained(name, **settings)`` for a model that is only used: the critic's weights in its checkpoint
    are left there without a word, where transformers would report them as unexpected; all else is reported as ever.

    transformers asks a model's class which keys to ignore, so that the model is of a class that says so, under the name
    of the one that it stands for, whose own answer stays as it is.
    """
    config = AutoConfig.from_pretrained(name)
    with torch.device("meta"):
        kind = type(auto.from_config(config))
    ignored = [*(kind._keys_to_ignore_on_load_unexpected or ()), rf"^{CRITIC}\."]
    own = {"_keys_to_ignore_on_load_unexpected": ignored, "__module__": kind.__module__, "__doc__": kind.__doc__}
    silent: Any = type(kind.__name__, (kind,), own)
    return silent.from_pretrained(name, config=config, **settings)


def _critic_in(folder: Path) -> dict[str, Tensor]:
    """The critic's weights in a folder's safetensors."""
    found = dict[str, Tensor]()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(f"{CRITIC}.")]  # noqa: SIM118 (it is no mapping)
            found.update({name.removeprefix(f"{CRITIC}."): file.get_tensor(name) for name in names})
    return found


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        content = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and is not loaded, for that could run its code") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must be a state dict: names and tensors")
    plain = {name.removeprefix("module.").removeprefix(f"{CRITIC}."): value for name, value in content.items()}
    return {name: value for name, value in plain.items() if name.startswith("F_func.")}
