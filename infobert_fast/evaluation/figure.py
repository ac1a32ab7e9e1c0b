"""The information bounds of clean and adversarial sets, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from infobert_fast.aside import aside
from infobert_fast.evaluation.information import Information

__all__ = ["draw_information"]


def draw_information(bounds: Mapping[str, Information], path: Path, title: str) -> None:
    """Draw the lower bounds of anchored and other tokens beside each other, and the upper bound below, a bar a set.

    Raises:
        ImportError: where matplotlib, the extra ``plot``, is not installed.
    """
    from matplotlib.figure import Figure  # no pyplot: no window system, no global state

    names, places = list(bounds), np.arange(len(bounds))
    figure = Figure(figsize=(max(4.0, 1.1 * len(names)), 6.0), layout="constrained")
    lower, upper = figure.subplots(2, sharex=True)
    lower.bar(places - 0.2, [bounds[name].lower for name in names], 0.4, label="anchors")
    others = [bounds[name].lower_others for name in names]
    lower.bar(places + 0.2, [np.nan if value is None else value for value in others], 0.4, label="other tokens")
    lower.set_ylabel("I(T_k; Z), lower bound, nats")
    lower.legend()
    upper.bar(places, [bounds[name].upper for name in names], 0.6, color="tab:gray")
    upper.set_ylabel("I(T; X), upper bound, nats")
    upper.set_xticks(places, names, rotation=45, ha="right")
    figure.suptitle(title)
    with aside(path) as partial:
        figure.savefig(partial, dpi=150)
