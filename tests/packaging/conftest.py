"""The package built and installed as users do it: a wheel, and two environments that hold nothing else of ours."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIP_INSTALL = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]


def checked(command: list[str], cwd: Path) -> str:
    """Run a command to its end and return what it printed; its own words are the test's failure."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (
        f"{' '.join(command)}\nin {cwd} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    )
    return done.stdout.strip()


@dataclass(frozen=True)
class Environment:
    """A virtual environment with infobert-fast in it, and the sources it was installed from."""

    python: Path
    sources: Path
    elsewhere: Path

    def run(self, code: str, cwd: Path | None = None) -> str:
        return checked([str(self.python), "-c", code], cwd or self.elsewhere)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def run() -> Callable[[list[str], Path], str]:
    return checked


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads: nothing that an earlier build left in the tree can enter it."""
    copy = tmp_path_factory.mktemp("build") / "infobert-fast"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("infobert_fast", "kernels", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="session")
def wheel(sources: Path) -> Path:
    """The wheel, built from the sdist as a release is."""
    checked([sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."], sources)
    (built,) = (sources / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="session")
def make_environment(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Callable[..., Environment]:
    """An empty environment that borrows the running one's libraries, but not its copy of infobert-fast."""

    def make(*requirement: str) -> Environment:
        home = tmp_path_factory.mktemp("environment")
        checked([sys.executable, "-m", "venv", "--without-pip", "venv"], home)
        python = home / "venv" / "bin" / "python"
        # A plain path in a .pth file lends the libraries; .pth files in *there* (an editable install) are not read.
        site = checked([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], home)
        borrowed = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
        (Path(site) / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")
        checked([str(python), *PIP_INSTALL, "--no-build-isolation", *requirement], home)
        return Environment(python, sources, home)

    return make


@pytest.fixture(scope="session")
def wheel_environment(make_environment: Callable[..., Environment], wheel: Path) -> Environment:
    return make_environment(str(wheel))


@pytest.fixture(scope="session")
def editable_environment(make_environment: Callable[..., Environment], sources: Path) -> Environment:
    return make_environment("--editable", str(sources))
