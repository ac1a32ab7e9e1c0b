"""The ``version`` numbers people know: which upper bound, and whether the anchored-feature regulariser is added."""

from __future__ import annotations

from typing import Literal

__all__ = ["AFR_VERSIONS", "VERSIONS", "Kind"]

Kind = Literal["learned-flat", "learned-tokens", "sentence", "tokens"]

VERSIONS: dict[int, Kind | None] = {
    -1: None,
    0: "learned-flat",
    1: "learned-tokens",
    2: "sentence",
    3: "tokens",
    4: None,
    5: "sentence",
    6: "tokens",
}
AFR_VERSIONS = (4, 5, 6)
