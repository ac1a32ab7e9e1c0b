"""Explanations as a picture, the page's twin for places that show no HTML. Deterministic: equal input, equal bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infobert_fast.aside import aside
from infobert_fast.evaluation.explain import KINDS, Explanation, Token
from infobert_fast.evaluation.explain_page import MEANING, PARTS, rows, verdict, words

__all__ = ["draw_explanations"]

WIDTH, MARGIN, INDENT = 9.0, 0.3, 1.05  # inches
SIZE, SMALL = 12.5, 9.0  # points
BAR, LINE, GAP = 0.26, 0.62, 0.085  # inches: the highest bar, a line of tokens, a space
COLOURS = {"useless": "#7d8388", "anchored": "#0067a5", "non-robust": "#c04a00"}
INK, QUIET, RULE = "#1d1f21", "#62676c", "#dfe1e3"


def draw_explanations(
    explanations: Sequence[Explanation], path: str, title: str, cl: float, ch: float, parts: Sequence[str] = PARTS
) -> None:
    """Write a picture whose height follows from the texts; its format from the name, ``.png`` or another.

    Raises:
        ImportError: where matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 1.0), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    pen = _Pen(figure)
    pen.say(MARGIN, f"The gradient of {title}, token by token", 14, INK, weight="bold")
    pen.down(0.36)
    pen.say(
        MARGIN,
        f"Bars: gradient norm relative to the sentence's largest. Of n tokens, ranks below ⌈{cl:g} n⌉ are useless, "
        f"from ⌈{ch:g} n⌉ on non-robust.",
        SMALL,
        QUIET,
    )
    pen.down(0.34)
    for kind, norm in zip(KINDS, (0.25, 0.55, 1.0), strict=True):
        pen.token(MARGIN, Token(kind, kind, norm, True, 0))
        pen.say(MARGIN + 1.3, MEANING[kind], SMALL, QUIET)
        pen.down(0.32 + norm * BAR)
    pen.down(0.06)
    for number, explanation in enumerate(explanations, 1):
        pen.rule()
        before, label, after = verdict(explanation)
        x = pen.say(MARGIN, f"{number}. {before}", SMALL, QUIET)
        x = pen.say(x, label, SMALL, INK, weight="bold")
        pen.say(x, after, SMALL, QUIET)
        pen.down(0.34)
        for part, tokens in rows(explanation):
            pen.say(MARGIN, parts[part] if explanation.parts > 1 else "text", SMALL, QUIET)
            x = start = MARGIN + INDENT
            for word in words(tokens):
                width = sum(pen.width(token) for token in word)
                if x > start and x + width > WIDTH - MARGIN:
                    pen.down(LINE)
                    x = start
                for token in word:
                    x = pen.token(x, token)
                x += GAP
            pen.down(LINE)
    pen.finish(path)


class _Pen:
    """Draws from the top down; what is drawn is kept until the height is known."""

    def __init__(self, figure: Any) -> None:
        self.figure, self.y = figure, MARGIN
        self.drawn: list[tuple[Any, float, float]] = []
        self.renderer = figure.canvas.get_renderer()

    def down(self, inches: float) -> None:
        self.y += inches

    def say(self, x: float, text: str, size: float, colour: str, **style: Any) -> float:
        """Write at the current height; where the text ends."""
        # A dollar sign would begin a formula.
        artist = self.figure.text(0, 0, text, size=size, color=colour, va="baseline", parse_math=False, **style)
        self.drawn.append((artist, x, self.y + SIZE / 72))
        return x + self._measure(text, size, style)

    def token(self, x: float, token: Token) -> float:
        """A token over its bar: hollow, full or hatched."""
        from matplotlib.patches import Rectangle

        self.say(x, token.text, *self._look(token)[:2], **self._look(token)[2])
        width, colour = self.width(token), COLOURS[token.kind]
        bar = Rectangle((0, 0), width - 0.02, max(token.norm * BAR, 0.012), linewidth=0.7, edgecolor=colour)
        bar.set_facecolor(colour if token.kind == "anchored" else "none")
        bar.set_hatch("//////" if token.kind == "non-robust" else "")
        self.figure.add_artist(bar)
        self.drawn.append((bar, x, self.y + SIZE / 72 + 0.06))
        return x + width

    def width(self, token: Token) -> float:
        size, _, style = self._look(token)
        return self._measure(token.text, size, style) + 0.02

    def rule(self) -> None:
        from matplotlib.patches import Rectangle

        line = Rectangle((0, 0), WIDTH - 2 * MARGIN, 0, linewidth=0.8, edgecolor=RULE)
        self.figure.add_artist(line)
        self.drawn.append((line, MARGIN, self.y))
        self.down(0.12)

    def finish(self, path: str) -> None:
        from matplotlib.transforms import Affine2D

        height = self.y + MARGIN
        self.figure.set_size_inches(WIDTH, height)
        for artist, x, y in self.drawn:
            if hasattr(artist, "set_position"):
                artist.set_position((x / WIDTH, 1 - y / height))
            else:  # inches, downwards from (x, y)
                place = Affine2D().scale(1, -1).translate(x, height - y) + self.figure.dpi_scale_trans
                artist.set_transform(place)
        with aside(Path(path)) as partial:
            self.figure.savefig(partial, metadata={"Software": None} if path.endswith(".png") else None)

    @staticmethod
    def _look(token: Token) -> tuple[float, str, dict[str, Any]]:
        style = {} if token.kind == "useless" else {"weight": "bold"}
        if token.kind == "non-robust":
            style["style"] = "italic"
        return (SMALL - 1 if token.part is None else SIZE), COLOURS[token.kind], style

    def _measure(self, text: str, size: float, style: dict[str, Any]) -> float:
        from matplotlib.font_manager import FontProperties

        font = FontProperties(size=size, **style)
        return float(self.renderer.get_text_width_height_descent(text, font, False)[0] / self.figure.dpi)
