"""Offsets that would wrap: products of a row number and a stride in 32 bits, found in a kernel's Triton IR."""

import linecache
import re

# what leaves a value as it is, but for its shape or width
SHAPES = ("tt.splat", "tt.expand_dims", "tt.broadcast", "arith.extsi", "arith.trunci")
# factors that keep a product in range: a position among a row's columns is one of fewer than 2^31; launchers copy a
# matrix whose units lie too far apart (`near_units`)
IN_RANGE = re.compile(r"_per_split$|_per_program$|_unit$")
# products that are bounded by what they are made of, where 64 bits would cost instructions or registers
BOUNDED = {
    "dx_ptr + first * H + (o_r[:, None] * H": "a short chunk's own rows, at most 64",
    "o_i[:, None] * u_row + o_j[None, :]": "a block of dot products, at most 2^26",
}


def narrow_products(text):
    """The source lines whose 32-bit product of two numbers of unknown size becomes part of an address."""
    places = dict(re.findall(r"^(#loc\d*) = (loc\(.*\))$", text, flags=re.M))
    values, reported = {}, set()
    for line in text.splitlines():
        found = re.match(r"\s*(%\w+)(?::\d+)? = (\S+) (.*?)(?: loc\((#loc\d*)\))?$", line)
        if not found:
            continue
        name, operation, rest, place = found.groups()
        operands = re.findall(r"%\w+", rest.split(" : ")[0])
        values[name] = operation, operands, rest, place
        if operation == "tt.addptr":
            reported |= {source(places, at) for at in wrapping(values, operands[1])}
    return {line for line in reported if not any(known in line for known in BOUNDED)}


def wrapping(values, name):
    """The places of such products that ``name`` is made of."""
    operation, operands, rest, place = values.get(name, ("argument", [], "", None))
    if operation == "arith.muli" and re.search(r"\bi32\b|xi32>", rest) and all(large(values, x) for x in operands):
        return {place}
    if operation.startswith(("arith.", *SHAPES)) and operation != "arith.constant":
        return {at for x in operands for at in wrapping(values, x)}
    return set()


def large(values, name):
    """Whether the value may have any size: no constant, no position within a tile, no factor that is known."""
    operation, operands, _, _ = values.get(name, ("argument", [], "", None))
    if operation in SHAPES:
        return large(values, operands[0])
    if operation in ("arith.constant", "tt.make_range"):
        return False
    if operation == "arith.minsi":
        return all(large(values, x) for x in operands)
    if operation.startswith("arith."):
        return any(large(values, x) for x in operands)
    return not IN_RANGE.search(name)


def source(places, place):
    """File, line and text of a place, the innermost where functions were inlined."""
    found = places[place]
    while not (file := re.match(r'loc\("(/[^"]+)":(\d+):', found)):
        found = places[re.search(r"#loc\d*", found)[0]]
    path, line = file[1], int(file[2])
    return f"{path.rsplit('/', 1)[1]}:{line}: {linecache.getline(path, line).strip()}"
