"""The kernels around the critic, each with the sizes and types that it is launched with."""

from aot import only

from infobert_fast.kernels import anchors, club, freelb, rows, sampled_club, uniform

DTYPES = ("fp32", "bf16", "fp16")
CARRY = r"LEA\.HI "


def variants():
    """(name, kernel, arguments, num_warps, the instruction that each pair of tokens has once, or None): all but the
    ranks are bound by memory.
    """
    plain = {f"{name}_ptr": "*i64:16" for name in ("mask", "partner", "order", "start", "index", "id")}
    plain |= {"mask_token": 1, "n_units": "i32:16", "inverse_ptr": "*i32:16"}
    rows_of = ("y_row", "grad_row", "grad_sentence", "grad_token", "delta_sentence", "delta_token")
    plain |= dict.fromkeys(rows_of, "i32:16")
    units = dict.fromkeys(("y_unit", "grad_unit", "delta_unit"), 1)

    def case(name, kernel, warps=4, unit=None, **given):
        return name, kernel, only(kernel, plain | units | given), warps, unit

    for flat in (True, False):
        yield case(
            f"rank, flat={flat}", anchors.rank_kernel, unit=CARRY, key_ptr="*i32:16", count_ptr="*i32:16",
            out_ptr="*i64:16" if flat else "*i1:16", cl="fp64", ch="fp64",
            BT=anchors.RANK_TOKENS, BB=anchors.RANK_SENTENCES, FLAT=flat,
        )  # fmt: skip
    for dtype in DTYPES:
        x = f"*{dtype}:16"
        yield case(
            f"norm, {dtype}", anchors.norm_kernel, grad_ptr=x, key_ptr="*i32:16", count_ptr="*i32:16",
            out_ptr="*i64:16", BT=anchors.NORM_TOKENS, BH=anchors.NORM_UNITS, BM=anchors.NORM_MASK, PRESET=True,
        )  # fmt: skip
        tile = {"BR": club.ROWS, "BH": club.UNITS, "BM": club.MASK, "MASKED": True}
        yield case(f"moments, {dtype}", club.moments_kernel, y_ptr=x, **tile)
        yield case(
            f"club_backward, {dtype}", club.club_backward_kernel, y_ptr=x, dy_ptr=x, **tile | {"BR": club.BACKWARD_ROWS}
        )
        tile = {"BR": sampled_club.ROWS, "BH": sampled_club.UNITS, "MASKED": True}
        yield case(f"distance, {dtype}", sampled_club.distance_kernel, y_ptr=x, **tile)
        tile["BH"] = sampled_club.ROW_UNITS
        yield case(f"sampled_backward, {dtype}", sampled_club.sampled_backward_kernel, y_ptr=x, dy_ptr=x, **tile)
        yield case(
            f"scatter_rows, {dtype}", rows.scatter_rows_kernel, grad_ptr=x, out_ptr=x, BR=rows.ROWS, BH=rows.UNITS
        )
        tile = {"BT": freelb.TOKENS, "BH": freelb.UNITS, "BP": freelb.PARTS_AT_ONCE}
        for parts in (1, 2, 3):
            given = tile | {
                "grad_ptr": x,
                "PARTS": parts,
                "CLAMP": parts == 2,
                "adv_lr": "fp64",
                "adv_max_norm": "fp64",
            }
            yield case(f"norm_parts, {dtype}, {parts}", freelb.norm_parts_kernel, **given)
            yield case(f"ascent, {dtype}, {parts}", freelb.ascent_kernel, **given)
    yield case("merge_moments", club.merge_moments_kernel, BR=club.ROWS, BH=club.UNITS)
    yield case("merge_distances", sampled_club.merge_distances_kernel, 1, BP=sampled_club.PARTS)
    yield case("inverse", rows.inverse_kernel, BP=rows.INDICES)
    yield case(
        "start", uniform.start_kernel, seed="i64", magnitude="fp64", BT=uniform.TOKENS, BQ=uniform.QUADS,
        BM=uniform.MASK, IDS=True, L2=True,
    )  # fmt: skip
