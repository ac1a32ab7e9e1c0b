"""Ahead-of-time compilation of every kernel for chips that are not here, and what the machine code says of it."""

import os
import re
import subprocess
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BIN = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")


def compile_ahead(kernel, arguments, capability, num_warps, num_stages=3, **more):
    """Machine-code facts of ``kernel``. ``arguments`` maps every parameter to a type ("*fp32", "i32", with ":16" where divisible
    by 16) or to a constexpr value. The one place that knows Triton's signature form."""
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
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True} | more
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = _run("cuobjdump", "-res-usage", cubin.name)
        code = _run("nvdisasm", "-c", cubin.name)
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": compiled.metadata.shared,
        "code": code,
    }


def _run(tool, *arguments):
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
    """Worst ratio of all instructions to those matching ``unit`` (one per pair and hidden unit) over the loops that hold any."""
    ratios = []
    for loop in innermost_loops(code):
        units = sum(bool(re.search(unit, text)) for text in loop)
        if units >= 16:
            ratios.append(len(loop) / units)
    return max(ratios)
