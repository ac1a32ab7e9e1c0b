"""infobert-fast: InfoBERT's mutual-information regularisers, fused, differentiable and ready to train with.

The estimators and :mod:`infobert_fast.functional` need torch and numpy. ``InfoBertTrainer`` and ``InfoBertArguments``
are imported when first asked for: they need the ``train`` extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infobert_fast import functional
from infobert_fast.estimators import CLUB, MINE, NWJ, SMILE, CLUBv2, InfoNCE, L1OutUB, SeparableInfoNCE, VarUB

if TYPE_CHECKING:
    from infobert_fast.training.arguments import InfoBertArguments
    from infobert_fast.training.trainer import InfoBertTrainer

__all__ = [
    "CLUB",
    "MINE",
    "NWJ",
    "SMILE",
    "CLUBv2",
    "InfoBertArguments",
    "InfoBertTrainer",
    "InfoNCE",
    "L1OutUB",
    "SeparableInfoNCE",
    "VarUB",
    "__version__",
    "functional",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "InfoBertArguments":
        from infobert_fast.training.arguments import InfoBertArguments

        return InfoBertArguments
    if name == "InfoBertTrainer":
        from infobert_fast.training.trainer import InfoBertTrainer

        return InfoBertTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
