"""The stock model beneath what `peft` wraps around it."""

from __future__ import annotations

from typing import Any

__all__ = ["stock_of", "text_config"]


def stock_of(model: Any) -> Any:
    """The model of transformers that `peft` wraps, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def text_config(model: Any) -> Any:
    """The configuration of the part that reads text: of a model for pictures and texts, not the whole one."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config
