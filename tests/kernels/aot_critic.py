"""The concat-MLP critic's kernels, each with the sizes and types that it is launched with."""

from aot import only, typed

from infobert_fast.kernels import chunk_bound, chunks, fast_scores, fast_sums, mask_sums, operands, scores

# the one instruction that each pair-unit has
ABS_ADD, MASKED_ADD = r"FADD2? [^;]*\|", r"FFMA2? "
PACKED_RELU, PACKED_MASK = r"HFMA2\.RELU", r"HSET2"
CHUNK_RELU, CHUNK_MASK = r"FMNMX", r"FSET"


# sums that leave out pairs and clip
TERMS = {"owner_ptr": "*i64:16", "clip": "fp32"}


def variants():
    """(name, kernel, arguments, num_warps, pattern of the instruction that each pair-unit has once, or None)."""
    index = {"local_ptr": "*i64:16", "pair_ptr": "*i64:16"}
    pads = dict.fromkeys(("pad_i", "pad_j", "a_step", "b_step", "first_i", "block_i"), "i32:16")
    score = pads | {"bounds_ptr": "*i32:16", "j_per_split": "i32:16", "BI": 16, "owner_ptr": None, "clip": None}
    for warps in (1, 4):
        for keep in (True, False):
            kernel, tile = scores.logsumexp_kernel, {"BL": 32 * warps, "KEEP": keep}
            yield f"logsumexp, {warps} warps, keep={keep}", kernel, only(kernel, score | tile), warps, ABS_ADD
            if keep and warps == 1:
                yield "logsumexp, terms", kernel, only(kernel, score | tile | TERMS), warps, ABS_ADD
        for kept in (True, False):
            kernel, tile = scores.weights_kernel, {"BL": 32 * warps, "KEPT": kept, "HALVES": False}
            unit = None if kept else ABS_ADD
            yield f"weights, {warps} warps, kept={kept}", kernel, only(kernel, score | tile), warps, unit
        halves = tile | {"KEPT": True, "HALVES": True, "g_ptr": "*fp16:16", "gt_ptr": "*fp16:16", "plane": "i32:16"}
        yield f"weights, {warps} warps, halves", kernel, only(kernel, score | halves), warps, None
    for keep in (True, False):
        half = dict.fromkeys(("a_ptr", "b_ptr", "w_ptr"), "*fp16:16")
        sizes = {
            "BI": fast_scores.ROWS,
            "BJ": fast_scores.COLUMNS,
            "BK": fast_scores.UNITS,
            "STAGES": fast_scores.STAGES,
        }
        kernel, switches = fast_scores.fast_logsumexp_kernel, {"KEEP": keep, "PACKED": True, "row_step": "i32:16"}
        arguments = only(kernel, score | half | sizes | switches)
        yield f"fast_logsumexp, keep={keep}", kernel, arguments, fast_scores.WARPS, PACKED_RELU
    for accumulate in (True, False):
        kernel = fast_sums.fast_mask_sum_kernel
        halves = dict.fromkeys(("x_ptr", "minus_y_ptr", "g_ptr"), "*fp16:16")
        steps = ("row_step", "unit_step", "pad_r", "pad_k", "block_r", "block_k", "g_plane", "k_per_split", "first_k")
        sums = typed(
            kernel, **halves, **dict.fromkeys(steps, "i32:16"), BR=fast_sums.ROWS, BH=fast_sums.UNITS,
            BK=fast_sums.PAIRS, ACCUMULATE=accumulate, PACKED=True, STAGES=fast_sums.STAGES,
        )  # fmt: skip
        yield f"fast_mask_sum, accumulate={accumulate}", kernel, sums, fast_sums.WARPS, PACKED_MASK
    yield "merge", scores.merge_kernel, typed(scores.merge_kernel, BR=32, BK=32), 4, None
    segment = typed(mask_sums.segment_sum_kernel, order_ptr="*i64:16", start_ptr="*i64:16", BP=16, BH=64)
    yield "segment_sum", mask_sums.segment_sum_kernel, segment, 1, None
    gather = typed(
        chunk_bound.gather_parts_kernel, index_ptr="*i64:16",
        BP=chunk_bound.GATHER_PAIRS, BH=chunk_bound.GATHER_UNITS, NEED_W=True, SCANNED=True,
    )  # fmt: skip
    yield "gather_parts", chunk_bound.gather_parts_kernel, gather, 4, None
    for dtype in ("fp32", "bf16", "fp16"):
        x = f"*{dtype}:16"
        operand = typed(
            operands.operand_kernel, x_ptr=x, w_ptr=x, index_ptr="*i64:16", order_ptr="*i32:16", bounds_ptr="*i32:16",
            stride_unit=1, n_pad="i32:16", n_slots="i32:16", out_step="i32:16", BR=32, BS=32, HAS_INDEX=True,
        )  # fmt: skip
        yield f"operand, {dtype}", operands.operand_kernel, operand, 4, None
        for accumulate in (True, False):
            sums = typed(
                mask_sums.mask_sum_kernel, x_ptr=x, y_ptr=x, x_unit=1, y_unit=1,
                first_r="i32:16", first_k="i32:16", block_r="i32:16", block_k="i32:16",
                BR=mask_sums.SUM_ROWS, BH=mask_sums.SUM_UNITS, ACCUMULATE=accumulate,
            )  # fmt: skip
            yield f"mask_sum, {dtype}, accumulate={accumulate}", mask_sums.mask_sum_kernel, sums, 1, MASKED_ADD
        finish = typed(
            mask_sums.finish_kernel, x_ptr=x, w_ptr=x, dx_ptr=x, x_unit=1, rows_per_program="i32:16",
            BR=16, BH=mask_sums.SUM_UNITS, NEED_X=True, NEED_W=True,
        )  # fmt: skip
        yield f"finish, {dtype}", mask_sums.finish_kernel, finish, 4, None
        rows = {"a_ptr": x, "b_ptr": x, "w_ptr": x, "a_unit": 1, "b_unit": 1, "LOCAL": True, "PAIR": True} | index
        for C in (16, 32, 64):
            yield from chunk_variants(dtype, rows, C)


def chunk_variants(dtype, rows, C):
    BR, BH, warps = chunks.gradient_tile(C)
    kernel = chunks.chunk_forward_kernel
    forward = typed(kernel, **rows, b2_ptr=rows["w_ptr"], C=C, BI=chunks.ROWS, BH=chunks.FORWARD_UNITS)
    yield f"chunk_forward, {dtype}, {C}", kernel, forward, C // 16, CHUNK_RELU
    kernel = chunks.chunk_backward_kernel
    backward = typed(kernel, **rows, C=C, BR=BR, BH=BH, NEED_A=True, NEED_B=True, NEED_W=True)
    yield f"chunk_backward, {dtype}, {C}", kernel, backward, warps, MASKED_ADD
    if dtype == "fp32":
        kernel = chunk_bound.chunk_bound_kernel
        sizes = {"C": C, "BS": chunk_bound.SCORE_UNITS, "BR": BR, "BH": BH}
        bound = typed(kernel, **rows, **sizes, b2_ptr="*fp32:16", NEED_A=True, NEED_B=True, NEED_W=True)
        yield f"chunk_bound, scores, {C}", kernel, bound, warps, CHUNK_RELU
        yield f"chunk_bound, sums, {C}", kernel, bound, warps, CHUNK_MASK
