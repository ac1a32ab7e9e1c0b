"""Both kinds of install hold the whole package, and `kernels` never becomes a name of its own."""

import ast
import json
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(params=["wheel_environment", "editable_environment"])
def environment(request: pytest.FixtureRequest):
    return request.getfixturevalue(request.param)


def files_below(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_kernels_import_below_the_package(environment):
    where = Path(environment.run("import infobert_fast.kernels as kernels; print(kernels.__file__)"))
    source = environment.sources / "kernels" / "__init__.py"
    assert where.read_bytes() == source.read_bytes()
    assert where == source or where.parts[-3:] == ("infobert_fast", "kernels", "__init__.py")


def test_every_module_is_found(environment):
    code = (
        "import importlib.util, pkgutil, infobert_fast\n"
        "found = pkgutil.walk_packages(infobert_fast.__path__, 'infobert_fast.', onerror=lambda name: None)\n"
        "print(all(importlib.util.find_spec(module.name) for module in found))"
    )
    assert environment.run(code) == "True"


def test_kernels_is_no_name_outside_the_root(environment):
    code = "import sys\ntry:\n    import kernels\nexcept ModuleNotFoundError as error:\n    print(error.name)\n"
    assert environment.run(code) == "kernels"


def test_transformers_imports_in_the_root(root, run):
    """transformers looks for a package `kernels`, and with `-c` the working directory is the first place searched."""
    assert run([sys.executable, "-c", "import transformers.trainer; print('imported')"], root) == "imported"


def test_kernels_package_holds_its_docstring_only(root):
    body = ast.parse((root / "kernels" / "__init__.py").read_text(encoding="utf-8")).body
    assert len(body) == 1, "kernels/__init__.py may hold a docstring and nothing else: `kernels` is a name others probe"
    assert isinstance(body[0], ast.Expr)
    assert isinstance(body[0].value, ast.Constant)
    assert isinstance(body[0].value.value, str)


def test_wheel_holds_the_package_and_nothing_else(wheel, sources):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    information = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    expected = {f"infobert_fast/{name}" for name in files_below(sources / "infobert_fast")}
    expected |= {f"infobert_fast/kernels/{name}" for name in files_below(sources / "kernels")}
    modules = {name for name in files_below(sources / "benchmarks") if name.endswith(".py")}
    expected |= {f"infobert_fast/benchmarks/{name}" for name in modules}
    assert names - information == expected
    assert "infobert_fast/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in information)


def test_benchmarks_run_from_the_wheel(wheel_environment, run, tmp_path):
    """Without a clone: its own suites are found by name, and a suite of the user's passes through the same harness."""
    command = str(wheel_environment.python.with_name("infobert"))
    (tmp_path / "bench_own.py").write_text(
        "import torch\n"
        "IMPLEMENTATIONS = {'square': torch.square}\n"
        "def test_squares(measure, gate, implementation, function):\n"
        "    gate(implementation, lambda: None)\n"
        "    measure(lambda: function(torch.ones(8)))\n"
    )
    own = ["own", "--folder", ".", "--seconds", "0.01", "--output", "own.json"]
    assert "squares" in run([command, "bench", *own], tmp_path)
    assert json.loads((tmp_path / "own.json").read_text())["rows"][0]["implementation"] == "square"
    found = wheel_environment.run("from infobert_fast.cli.bench import _suites; print(_suites())")
    assert Path(found).parts[-3:] == ("infobert_fast", "benchmarks", "suites")
    assert wheel_environment.python.parents[1] in Path(found).parents
    command = [str(wheel_environment.python), "-m", "pytest", "--collect-only", "-q", "-o", "python_files=bench_*.py"]
    command += ["-p", "infobert_fast.benchmarks.harness.plugin", f"{found}/bench_separable.py"]
    assert "test_clip" in run(command, wheel_environment.elsewhere)


def test_command_starts(wheel_environment, run):
    command = wheel_environment.python.with_name("infobert")
    assert "infobert" in run([str(command), "--help"], wheel_environment.elsewhere)
