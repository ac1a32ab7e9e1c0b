"""The critic as a submodule of the model: wrapped, reduced, clipped, sharded, saved and loaded with it."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from transformers import PreTrainedModel

from infobert_fast.estimators import InfoNCE

__all__ = ["CRITIC", "attach_critic", "load_critic"]

# The submodule's name, and the prefix of its weights in the model's checkpoint. Stock transformers opens the checkpoint
# and reports these weights as unexpected.
CRITIC = "mi_estimator"


def attach_critic(model: PreTrainedModel, hidden_dim: int = 300) -> InfoNCE:
    """Give the model a critic for its hidden size, filled from the local folder the model was loaded from where that
    holds one; or return the critic the model has.

    Raises:
        ValueError: where the model or its folder has a critic of another width.
    """
    critic = getattr(model, CRITIC, None)
    if critic is not None:
        width = critic.F_func[0].out_features
        if width != hidden_dim:
            raise ValueError(
                f"`critic_hidden_dim` was {hidden_dim}; the model's critic is {width} wide: set it to {width}, or "
                f"delete the model's `{CRITIC}`"
            )
        return critic
    width = model.config.hidden_size
    reference = next(model.parameters())
    critic = InfoNCE(width, width, hidden_dim).to(device=reference.device, dtype=reference.dtype)
    # A model built from a configuration has no name: no folder, and not the working directory either.
    if name := getattr(model, "name_or_path", ""):
        load_critic(critic, name)
    model.add_module(CRITIC, critic)
    return critic


def load_critic(critic: InfoNCE, folder: str | Path) -> bool:
    """Fill the critic from a checkpoint folder's safetensors; False where the folder holds none.

    Raises:
        ValueError: where it holds one of another shape, naming both.
    """
    prefix = f"{CRITIC}."
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (it is no mapping)
            found.update({name.removeprefix(prefix): file.get_tensor(name) for name in names})
    if not found:
        return False
    expected = {name: list(value.shape) for name, value in critic.state_dict().items()}
    actual = {name: list(value.shape) for name, value in found.items()}
    if actual != expected:
        raise ValueError(
            f"the critic in {folder} has shapes {actual}; this run's has {expected}: set `critic_hidden_dim` and the "
            f"model as in the run that wrote it, or remove its `{prefix}*` weights"
        )
    critic.load_state_dict(found)
    return True
