"""The dot-product critic's kernels, which have no loops: what a whole program costs, by score of its tile."""

import re

from aot import only, straight_line, typed

from infobert_fast.kernels import separable

SCORES_PER_THREAD = separable.ROWS * separable.COLUMNS // (32 * separable.WARPS)
SIZES = {"BI": separable.ROWS, "BJ": separable.COLUMNS, "u_row": "i32:16", "clip": None, "KEEP_PAIR": True}
LABELS = {"label_i_ptr": "*i64:16", "label_j_ptr": "*i64:16"}


def instructions(code):
    """Instructions per score, padding after the end left out."""
    return sum(not text.startswith(("NOP", "BRA")) for text in straight_line(code)) / SCORES_PER_THREAD


def tile_bytes(code):
    """Bytes of a score that vector instructions read and write: the tile's, since all else is loaded element by element
    (int64 labels apart).
    """
    accesses = re.findall(r"\b(?:LDG|STG)\.E\.(64|128)", "\n".join(straight_line(code)))
    return sum(int(width) // 8 for width in accesses) / SCORES_PER_THREAD


def variants():
    """(name, kernel, arguments, num_warps, what is counted)."""
    for labels in (False, True):
        switches = SIZES | LABELS | {"LABELS": labels}
        for columns in (False, True):
            kernel = separable.partial_kernel
            arguments = only(kernel, switches | {"COLUMNS": columns})
            yield f"partial, labels={labels}, columns={columns}", kernel, arguments, separable.WARPS, instructions
        kernel = separable.separable_weights_kernel
        for dtype in ("fp32", "bf16"):
            arguments = only(kernel, switches | {"COLUMNS": True, "w_ptr": f"*{dtype}:16"})
            yield f"weights, labels={labels}, {dtype}", kernel, arguments, separable.WARPS, instructions
            if not labels:
                yield f"weights bytes, {dtype}", kernel, arguments, separable.WARPS, tile_bytes
    kernel = separable.partial_kernel
    arguments = only(kernel, SIZES | {"LABELS": False, "COLUMNS": True})
    yield "partial bytes", kernel, arguments, separable.WARPS, tile_bytes
    yield "merge", separable.merge_partials_kernel, typed(separable.merge_partials_kernel, BN=32, BK=32), 4, None
