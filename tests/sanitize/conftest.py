"""Fixtures of the sanitizer's own tests, which `make sanitize` runs; elsewhere nothing here is collected."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

if "plugin" not in sys.modules:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A copy of ``kernels/`` with one change, imported beside the real one: its ``pairwise_mlp``."""
    import infobert_fast.kernels

    def plant(file, old, new):
        folder = tmp_path / "planted"
        shutil.copytree(Path(infobert_fast.kernels.__file__).parent, folder)
        source = (folder / file).read_text()
        assert old in source, f"{file} has changed: plant this fault anew"
        (folder / file).write_text(source.replace(old, new))
        operators = folder / "declaration.py"  # under names of their own
        operators.write_text(operators.read_text().replace("infobert_fast::", "planted::"))
        spec = importlib.util.spec_from_file_location(
            "planted", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        monkeypatch.setitem(sys.modules, "planted", importlib.util.module_from_spec(spec))
        return importlib.import_module("planted.pairwise_mlp")

    yield plant
    for name in [name for name in sys.modules if name.startswith("planted.")]:
        del sys.modules[name]
