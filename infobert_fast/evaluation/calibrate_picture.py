"""A calibration, drawn: how the loss rises with the radius, and where the recommended ascent lies."""

from __future__ import annotations

from pathlib import Path

from infobert_fast.aside import aside
from infobert_fast.evaluation.calibrate import Calibration

__all__ = ["draw_calibration"]


def draw_calibration(found: Calibration, rise: float, path: Path, title: str) -> None:
    """Write a PNG: a line an attack, the wanted rise across, ``adv_lr`` upright.

    Raises:
        ImportError: where matplotlib, the extra ``plot``, is not installed.
    """
    from matplotlib.figure import Figure  # no pyplot: no window system, no global state

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for attack, mark in zip(found.rises, "o^s", strict=True):
        axes.plot(found.radii, found.rises[attack], marker=mark, label=attack)
    axes.axhline(rise, color="tab:gray", linestyle=":", linewidth=1)
    adv_lr = found.settings["adv_lr"]
    axes.axvline(adv_lr, color="tab:gray", linestyle=":", linewidth=1)
    axes.annotate(f"adv_lr {adv_lr:g}", (adv_lr, rise), xytext=(6, -14), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_xticks(found.radii, [f"{radius:.2g}" for radius in found.radii])
    axes.minorticks_off()
    axes.set_xlabel("l2 norm of a sentence's perturbation")
    axes.set_ylabel("rise of the mean loss, nats")
    axes.legend()
    axes.set_title(title)
    with aside(path) as partial:
        figure.savefig(partial, dpi=150)
