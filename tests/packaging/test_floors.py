"""Each module imports only what lies below it, and only libraries that its floor's install brings."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]

# From the ground up; modules of one line see the lines below and not each other. `infobert_fast` is the door: it offers
# what stands on any floor (test_cold_import.py sees to it that it fetches the upper ones only when asked), and who
# stands inside does not go through it.
MATHEMATICS = [
    {"infobert_fast.kernels", "infobert_fast.checks", "infobert_fast.aside"},
    {"infobert_fast.reference"},
    {"infobert_fast.functional"},
    {"infobert_fast.estimators"},
    {"infobert_fast.dropin"},
    {"infobert_fast.regularizers", "infobert_fast.adversary"},
]
FLOORS = [
    *MATHEMATICS,
    {"infobert_fast.data", "infobert_fast.metrics", "infobert_fast.card"},
    {"infobert_fast.training"},
    {"infobert_fast.evaluation"},
    {"infobert_fast"},
    {"infobert_fast.cli"},
    {"infobert_fast.benchmarks"},
]
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    found = {}
    for name, package in (
        ("infobert_fast", "infobert_fast"),
        ("kernels", "infobert_fast.kernels"),
        ("benchmarks", "infobert_fast.benchmarks"),
    ):
        folder = ROOT / name
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    """The subpackage or top module that a module belongs to."""
    return ".".join(module.split(".")[:2])


def imported(module: str, path: Path) -> Iterator[str]:
    """Absolute names of what a file imports, wherever in the file; of ours, the module rather than a name in it."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in MODULES else base


def requirements() -> dict[str, list[str]]:
    """The requirement lists of setup.py, read rather than run."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    lists = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
            names = [Requirement(entry).name.lower() for entry in ast.literal_eval(node.value)]
            lists[node.targets[0].id] = names
    return lists


@pytest.mark.parametrize("module", MODULES)
def test_module_has_a_floor(module):
    assert room(module) in HEIGHT, f"{module} lies on no floor: put it where it belongs, or name its floor in this file"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    home = room(module)
    for name in imported(module, MODULES[module]):
        if name.split(".")[0] == "infobert_fast" and (target := room(name)) != home:
            assert HEIGHT[target] < HEIGHT[home], f"{module} imports {name}, which lies above it or beside it"


@pytest.mark.parametrize("module", MODULES)
def test_libraries_are_declared(module):
    lists = requirements()
    declared = set(lists["CORE"])
    if HEIGHT[room(module)] >= len(MATHEMATICS) and module != "infobert_fast":
        declared |= {*lists["TRAIN"], *lists["PLOT"], *lists["ATTACK"], *lists["BENCH"]}
    declared = {"yaml" if name == "pyyaml" else name for name in declared}
    for name in imported(module, MODULES[module]):
        library = name.split(".")[0]
        if library not in sys.stdlib_module_names and library != "infobert_fast":
            assert library in declared, f"{module} imports {library}, which setup.py does not ask for on its floor"
