"""Ahead-of-time compilation of the kernels for chips that are not here, and what the machine code says of them.

``python tests/kernels/aot.py`` prints the tables of ``benchmarks/NOTES.md``, one for each family of kernels, whose
cases stand in ``aot_<family>.py``; a family's name prints that one. ``table`` gives a test the same facts. They come
from a process of its own, because kernels decorated for the interpreter cannot be compiled.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BIN = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
CAPABILITIES = (80, 90, 100)


def compile_for(kernel, arguments, capability, num_warps, **options):
    """``kernel`` compiled for a chip; the one place that knows Triton's signature form.

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
    options = {"num_warps": num_warps, "enable_fp_fusion": True} | options
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def compile_ahead(kernel, arguments, capability, num_warps, disassemble):
    """(facts, machine code if ``disassemble``) of ``kernel``."""
    compiled = compile_for(kernel, arguments, capability, num_warps)
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


def straight_line(code):
    """All instructions of a kernel without loops."""
    return re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", code, flags=re.M)


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


def only(kernel, given):
    """``typed`` with those of ``given`` that the kernel has."""
    return typed(kernel, **{name: value for name, value in given.items() if name in kernel.arg_names})


def facts(variant, capability):
    name, kernel, arguments, num_warps, unit = variant
    numbers, code = compile_ahead(kernel, arguments, capability, num_warps, unit is not None)
    ratio = None if unit is None else round(unit(code) if callable(unit) else instructions_per_unit(code, unit), 3)
    return {"name": name, "capability": capability, "per_unit": ratio} | numbers


def compiled(family):
    """The facts of every case of a family, for every chip."""
    variants = importlib.import_module(f"aot_{family}").variants()
    jobs = [(variant, capability) for variant in variants for capability in CAPABILITIES]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda job: facts(*job), jobs))


def table(family):
    """What ``compiled`` says in a process without the interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, "--json", family]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def above(rows, fact, limit):
    """The cases whose ``fact`` exceeds its limit, by name and chip: empty where a gate holds."""
    return {
        f"{row['name']} on sm_{row['capability']}": row[fact]
        for row in rows
        if row[fact] is not None and row[fact] > limit
    }


def main(arguments):
    families = [argument for argument in arguments if argument != "--json"]
    for family in families or sorted(path.stem[4:] for path in Path(__file__).parent.glob("aot_*.py")):
        rows = compiled(family)
        if "--json" in arguments:
            print(json.dumps(rows))
            continue
        print(f"\n| {family} | sm | registers | stack | shared | instructions per unit |\n|---|---|---|---|---|---|")
        for row in rows:
            ratio = row["per_unit"] or ""
            print("| {name} | {capability} | {registers} | {stack} | {shared} | {} |".format(ratio, **row))


if __name__ == "__main__":
    main(sys.argv[1:])
