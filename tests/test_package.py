"""`pip install` installs the whole package and what it needs."""

import ast
import functools
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "taskpgm"
COMPILED = shutil.ignore_patterns("__pycache__")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """What `pip install .` unpacks, built from a copy: a build leaves files where it runs."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(PACKAGE, copy / "taskpgm", ignore=COMPILED)
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "."],
        cwd=copy,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return zipfile.ZipFile(next(copy.glob("*.whl")))


def test_a_wheel_holds_every_file_of_the_package(wheel):
    packed = {name for name in wheel.namelist() if name.startswith("taskpgm/")}
    files = (path for path in PACKAGE.rglob("*") if path.is_file())
    kept = {str(p.relative_to(ROOT)) for p in files if "__pycache__" not in p.parts}
    assert packed == kept


def test_a_wheel_asks_for_what_requirements_txt_lists(wheel):
    metadata = wheel.read(next(n for n in wheel.namelist() if n.endswith("/METADATA"))).decode()
    asked = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.MULTILINE)
    assert asked == listed()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.stem))
def test_what_is_imported_at_once_is_listed(path):
    """Imports inside functions may be of extras; imports of modules must be requirements."""
    distributions = installed()
    names = {
        name.split(".")[0]
        for node in ast.parse(path.read_text()).body
        for name in _imported(node)
        if name.split(".")[0] not in sys.stdlib_module_names | {"taskpgm"}
    }
    known = {normal(name) for name in listed()}
    for name in names:
        owners = {normal(owner) for owner in distributions.get(name, ())}
        assert owners & known, f"{path.name} imports {name}: not in requirements.txt"


# Reads all that is installed.
installed = functools.cache(packages_distributions)


def listed() -> list[str]:
    """The distributions that requirements.txt names."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [re.match(r"[\w-]+", line)[0] for line in lines if not line.startswith("#")]


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def _imported(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module or ""]
    return []
