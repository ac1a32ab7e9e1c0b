"""Both kinds of install hold the whole package, and `kernels` never becomes a name of its own."""

import ast
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
    assert names - information == expected
    assert "infobert_fast/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in information)


def test_command_starts(wheel_environment, run):
    command = wheel_environment.python.with_name("infobert")
    assert "infobert" in run([str(command), "--help"], wheel_environment.elsewhere)
