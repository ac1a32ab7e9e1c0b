"""What the machine code says of every kernel, without a device: a table, printed by ``make static``.

The cases of ``tests/kernels/aot_<family>.py`` are compiled for three chips and their binaries read with ``cuxray``:
registers, occupancy and what its next step takes, spills, bank conflicts, and per unit of work (a pair and
hidden unit, or what the family counts) the instructions and the cycles that one warp issues and stalls by the
compiler's own schedule. It fails where a kernel spills or a shared access conflicts.

Everything is compiled with the newer of Triton's two assemblers, whose schedule ``cuxray`` can read; registers may
differ by a few from those that Triton's own choice gives (``benchmarks/NOTES.md`` has these).
"""

import importlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
os.environ["TRITON_PTXAS_PATH"] = str(TOOLS / "ptxas-blackwell")
sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))

import aot  # noqa: E402
from cuxray import toolchain  # noqa: E402
from cuxray.analyze.schedule import loop_schedule  # noqa: E402
from cuxray.ingest import CubinUnit  # noqa: E402
from cuxray.parse import cfgdot, ctrl, sass  # noqa: E402
from cuxray.report import analyze_unit  # noqa: E402

FAMILIES = ("critic", "regularizers", "separable")
# a row a kernel: rows in fp32, nothing kept or accumulated, the paper's chunks of 32; other cases differ by their loads
OTHERS = r"bf16|fp16|halves|(keep|kept|accumulate)=True|, (16|64)$|bytes"


class Row(NamedTuple):
    kernel: str
    chip: int
    registers: int
    warps: int  # resident on a multiprocessor
    step: str  # what the next step of occupancy takes
    spills: int
    ways: int  # of the worst bank conflict; 1 is none
    instructions: float | None  # per unit
    cycles: float | None  # per unit and warp: issue + stall


def units_of(loop, pattern):
    """Pair-units of one turn of a loop: the instruction that each has once; packed instructions do two."""
    found = [i.opcode for i in loop if re.search(pattern, f"{i.opcode} {i.operands}")]
    return sum(2 if "2" in opcode.split(".")[0] else 1 for opcode in found)


def loops(cubin, tools, pattern):
    """(instructions, cycles) per unit of the loop that costs most a unit."""
    (function,) = sass.parse_gi(tools.run("nvdisasm", ["-c", "-gi", str(cubin)])).functions.values()
    flow = cfgdot.parse(tools.run("nvdisasm", ["-cfg", str(cubin)]))[function.name]
    controls = ctrl.parse_sass_controls(tools.run("cuobjdump", ["-sass", str(cubin)]))[function.name]
    found = []
    for row in loop_schedule(function, flow, controls):
        members = flow.loops[row["header"]]
        if any(header != row["header"] and header in members for header in flow.loops):
            continue  # it holds another loop
        loop = [i for i in function.instructions if i.block in members]
        if (units := units_of(loop, pattern)) >= 16:
            found.append((len(loop) / units, row["est_issue_stall_cycles_per_iter"] / units))
    return max(found, key=lambda pair: pair[1]) if found else (None, None)


def row(variant, chip, tools, folder, **options):
    name, kernel, arguments, num_warps, unit = variant
    compiled = aot.compile_for(kernel, arguments, chip, num_warps, **options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    unit_of_work = CubinUnit(cubin, cubin.name, cubin)
    threads = 32 * num_warps
    report = analyze_unit(
        unit_of_work,
        tools,
        threads=threads,
        block_dims=(threads, 1, 1),
        fast=True,
        smem_dynamic=compiled.metadata.shared,
    )
    (facts,) = report["kernels"]
    occupancy, spills = facts["occupancy"], facts["spills"]
    gains = [cliff for cliff in occupancy["cliffs"] if cliff["kind"] == "gain"]
    step = "; ".join(f"{g['resource']} {g['at']}: {g['blocks_per_sm'] * num_warps} warps" for g in gains[:1])
    instructions, cycles = loops(cubin, tools, unit) if isinstance(unit, str) else (None, None)
    return Row(
        name, chip, facts["resources"]["regs"], occupancy["active_warps"], step,
        spills["store_bytes"] + spills["load_bytes"], facts["access"]["worst_bank_conflict_ways"] or 1,
        instructions, cycles,
    )  # fmt: skip


def rows(families=FAMILIES, chips=aot.CAPABILITIES):
    tools = toolchain._from_dir(TOOLS, "triton")
    with tempfile.TemporaryDirectory() as folder:
        for family in families:
            for variant in importlib.import_module(f"aot_{family}").variants():
                if not re.search(OTHERS, variant[0]):
                    for chip in chips:
                        yield row(variant, chip, tools, Path(folder))


def main():
    print("| kernel | sm | registers | warps | next step | spilled bytes | bank conflict | instr. | cycles |")
    print("|---|---|---|---|---|---|---|---|---|")
    failed = []
    for one in rows():
        ratios = ("" if ratio is None else f"{ratio:.2f}" for ratio in (one.instructions, one.cycles))
        faults = one.spills or "", f"{one.ways} ways" if one.ways > 1 else ""
        print("|", " | ".join(map(str, (*one[:5], *faults, *ratios))), "|", flush=True)
        if one.spills or one.ways > 1:
            failed.append(f"{one.kernel} on sm_{one.chip}")
    if failed:
        sys.exit(f"spills or bank conflicts: {', '.join(failed)}")


if __name__ == "__main__":
    main()
