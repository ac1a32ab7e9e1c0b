"""Ahead-of-time compilation of every kernel for chips that are not here, and what the machine code says of it.

``python tests/kernels/aot.py`` prints the table of ``benchmarks/NOTES.md``; with ``--json`` the facts that
``test_gates.py`` holds to their limits. It runs in a process of its own, because kernels decorated for the
interpreter cannot be compiled.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from infobert_fast.kernels import chunks, fast_scores, mask_sums, operands, scores

BIN = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
CAPABILITIES = (80, 90, 100)


def compile_ahead(kernel, arguments, capability, num_warps, disassemble):
    """(facts, machine code if ``disassemble``) of ``kernel``; the one place that knows Triton's signature form.

    ``arguments`` maps every parameter to a type ("*fp32", "i32", with ":16" where divisible by 16) or to a constexpr
    value.
    """
    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        value = arguments[name]
        if isinstance(value, str):
            signature[name] = value.removesuffix(":16")
            if value.endswith(":16"):
                attributes[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "constexpr"
            constants[(position,)] = value
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": num_warps, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = run_tool("cuobjdump", "-res-usage", cubin.name)
        # half a second each: only where loops are counted
        code = run_tool("nvdisasm", "-c", cubin.name) if disassemble else None
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": compiled.metadata.shared,
        "tensor_cores": "mma.sync" in compiled.asm["ptx"],
    }, code


def run_tool(tool, *arguments):
    return subprocess.run([os.path.join(BIN, tool), *arguments], check=True, capture_output=True, text=True).stdout


def innermost_loops(code):
    """Instruction lists of the loops that hold no other loop."""
    labels, instructions, loops = {}, [], []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_\S+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    for end, text in enumerate(instructions):
        target = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", text)
        if target and labels.get(target[1], end + 1) <= end:
            loops.append((labels[target[1]], end + 1))
    inner = [x for x in loops if not any(y != x and x[0] <= y[0] and y[1] <= x[1] for y in loops)]
    return [instructions[start:end] for start, end in inner]


def instructions_per_unit(code, unit):
    """Worst ratio of instructions to pair-units over the inner loops; ``unit`` matches the one instruction of each
    pair-unit.

    Packed instructions (FADD2 and FFMA2 of Blackwell, HFMA2) do two.
    """
    ratios = []
    for loop in innermost_loops(code):
        found = [re.search(unit, text) for text in loop]
        units = sum(2 if "2" in match[0].split(".")[0].split()[0] else 1 for match in found if match)
        if units >= 16:
            ratios.append(len(loop) / units)
    return max(ratios)


def typed(kernel, **given):
    """Arguments of ``kernel``: fp32 pointers and plain integers unless given."""
    defaults = {name: "*fp32:16" if name.endswith("_ptr") else "i32" for name in kernel.arg_names}
    return defaults | given


ABS_ADD, MASKED_ADD, PACKED_RELU = r"FADD2? [^;]*\|", r"FFMA2? ", r"HFMA2\.RELU"


def variants():
    """(name, kernel, arguments, num_warps, pattern of the instruction that each pair-unit has once, or None)."""
    index = {"local_ptr": "*i64:16", "pair_ptr": "*i64:16"}
    pads = dict.fromkeys(("pad_i", "pad_j", "a_step", "b_step", "first_i", "block_i"), "i32:16")
    score = pads | {"bounds_ptr": "*i32:16", "j_per_split": "i32:16", "BI": 16}
    for warps in (1, 4):
        for keep in (True, False):
            kernel, tile = scores.logsumexp_kernel, {"BL": 32 * warps, "KEEP": keep}
            yield f"logsumexp, {warps} warps, keep={keep}", kernel, only(kernel, score | tile), warps, ABS_ADD
        for kept in (True, False):
            kernel, tile = scores.weights_kernel, {"BL": 32 * warps, "KEPT": kept}
            unit = None if kept else ABS_ADD
            yield f"weights, {warps} warps, kept={kept}", kernel, only(kernel, score | tile), warps, unit
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
    yield "merge", scores.merge_kernel, typed(scores.merge_kernel, BR=32, BK=32), 4, None
    segment = typed(mask_sums.segment_sum_kernel, order_ptr="*i64:16", start_ptr="*i64:16", BP=16, BH=64)
    yield "segment_sum", mask_sums.segment_sum_kernel, segment, 1, None
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
            forward = typed(chunks.chunk_forward_kernel, **rows, b2_ptr=x, C=C, BI=chunks.ROWS, BH=chunks.FORWARD_UNITS)
            yield f"chunk_forward, {dtype}, {C}", chunks.chunk_forward_kernel, forward, C // 8, None
            backward = typed(
                chunks.chunk_backward_kernel,
                **rows,
                C=C,
                BH=chunks.BACKWARD_UNITS,
                NEED_A=True,
                NEED_B=True,
                NEED_W=True,
            )
            yield (
                f"chunk_backward, {dtype}, {C}",
                chunks.chunk_backward_kernel,
                backward,
                chunks.backward_warps(C),
                None,
            )


def only(kernel, given):
    return typed(kernel, **{name: value for name, value in given.items() if name in kernel.arg_names})


def facts(variant, capability):
    name, kernel, arguments, num_warps, unit = variant
    numbers, code = compile_ahead(kernel, arguments, capability, num_warps, unit is not None)
    ratio = None if unit is None else round(instructions_per_unit(code, unit), 3)
    return {"name": name, "capability": capability, "per_unit": ratio} | numbers


if __name__ == "__main__":
    with ThreadPoolExecutor(2) as pool:
        jobs = [(variant, capability) for variant in variants() for capability in CAPABILITIES]
        table = list(pool.map(lambda job: facts(*job), jobs))
    if "--json" in sys.argv:
        print(json.dumps(table))
    else:
        print("| kernel | sm | registers | stack | shared | instructions per pair-unit |\n|---|---|---|---|---|---|")
        for row in table:
            print(
                "| {name} | {capability} | {registers} | {stack} | {shared} | {} |".format(row["per_unit"] or "", **row)
            )
