"""Scripts of experiments/ as modules of a test."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@contextlib.contextmanager
def script(path: Path) -> Iterator[ModuleType]:
    """The script as `python PATH` finds it. It and what it imports of experiments/, whose names are
    common words, are gone again afterwards."""
    names = [each.stem for each in EXPERIMENTS.rglob("*.py")]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module(path.stem)
        for name in names:
            sys.modules.pop(name, None)
