"""A folder imports only from those before it, and no file is part of a circle."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "taskpgm"
# Ground floor first; each may import from those before it.
FLOORS = (
    "interrupts failures multihost progress artefact owner records kernels tasks models training "
    "affinity mixture evaluation report stages"
).split()
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports when it is loaded."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in whole}
    return {name for name in found if name in MODULES}


def floor(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_folder_imports_only_from_those_before_it(path):
    own = floor(name_of(path))
    assert own == "" or own in FLOORS, f"{own} has no place in the row"
    for other in map(floor, imports(path)):
        if other and other != own:
            assert own and FLOORS.index(other) < FLOORS.index(own), f"{own} imports {other}"


def test_no_file_is_part_of_a_circle():
    arrows = {name: imports(path) for name, path in MODULES.items() if path.name != "__init__.py"}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done and name in arrows:
            for other in arrows[name]:
                visit(other, (*way, name))
            done.add(name)

    for name in arrows:
        visit(name, ())


def test_no_file_is_longer_than_a_head():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    long = {name_of(p): n for p, n in lengths.items() if n > 300}
    assert not long


def test_no_two_classes_have_one_name():
    names = [
        node.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice
