"""What setup.py, constraints.txt, CITATION.cff, CHANGELOG.md and LICENSE say agrees, and files stay readable."""

import ast
import hashlib
import re

import pytest
import yaml
from packaging.requirements import Requirement


@pytest.fixture(scope="module")
def setup_tree(root):
    return ast.parse((root / "setup.py").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def version(setup_tree):
    (call,) = (
        node for node in ast.walk(setup_tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    return next(ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg == "version")


def test_version_is_the_same_everywhere(root, version, wheel, wheel_environment):
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## \[(.+?)\]", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation["version"] == version
    assert newest is not None
    assert newest[1] == version
    assert wheel.name == f"infobert_fast-{version}-py3-none-any.whl"
    asked = f"import infobert_fast; print(getattr(infobert_fast, '__version__', {version!r}))"
    assert wheel_environment.run(asked) == version


def test_citation_names_the_paper(root):
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= citation.keys()
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Wang",
        "Wang",
        "Cheng",
        "Gan",
        "Jia",
        "Li",
        "Liu",
    ]
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:2010.02329"}]


def test_licence_is_the_text_of_apache_2(root):
    digest = hashlib.sha256((root / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_constraints_pin_what_setup_asks_for(root, setup_tree):
    pins = {}
    for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, release = line.partition("==")
            pins[name.lower().replace("_", "-")] = release
    asked = [
        Requirement(entry)
        for node in setup_tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
        for entry in ast.literal_eval(node.value)
        if isinstance(entry, str)
    ]
    assert "triton" not in pins, "torch's CUDA builds pin their own triton; a pin here would contradict it"
    for requirement in asked:
        if requirement.name != "triton":
            release = pins.get(requirement.name.lower().replace("_", "-"))
            assert release is not None, f"{requirement.name} is not pinned in constraints.txt"
            assert release in requirement.specifier, f"{requirement} does not admit the tested release {release}"


def test_files_stay_small_and_named_for_what_they_hold(root):
    files = [*(root / "infobert_fast").rglob("*.py"), *(root / "kernels").rglob("*.py")]
    lengths = {str(path.relative_to(root)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
    assert [name for name in lengths if name.endswith(("utils.py", "helpers.py", "misc.py"))] == []
