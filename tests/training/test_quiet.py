"""A damaged checkpoint is one error, whatever the reads that it interrupted have to say."""

import logging
import shutil
import sys
from pathlib import Path

import pytest

from taskpgm.training import quiet_orbax
from tests.stages.forks import Fork

# Run by itself: reads end in threads, and what is left of them when the program does.
PROGRAM = """
import sys
from pathlib import Path
from absl import app, logging
import jax.numpy as jnp
from taskpgm.training import Damaged, quiet_orbax, restore_tree, save_tree

def main(argv):
    logging.set_verbosity(logging.WARNING)
    quiet_orbax()
    tree = {f"{i}": jnp.arange(5000.0) + i for i in range(60)}
    if argv[1] == "save":
        save_tree(argv[2], tree)
    for folder in sorted(Path(argv[2]).iterdir()) if argv[1] == "restore" else ():
        try:
            restore_tree(folder, tree)
        except Damaged as error:
            print(error)

app.run(main)
"""


def run(what: str, folder: Path) -> str:
    """What it prints; asserts that stderr stays empty."""
    fork = Fork(PROGRAM, ["-c", what, str(folder)], {"jax_num_cpu_devices": 2})
    out, err = fork.communicate(timeout=120)
    assert (fork.returncode, err) == (0, ""), err[-3000:]
    return out


def altered(data: bytes) -> bytes:
    return bytes(b ^ (i == len(data) // 2) for i, b in enumerate(data))


def test_what_interrupted_reads_say_is_not_said(tmp_path):
    run("save", tmp_path / "whole")
    files = [path for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    damages = (lambda d: d[: len(d) // 2], lambda d: d[: len(d) * 9 // 10], altered, lambda d: b"")
    for i, file in enumerate(files):
        for j, damage in enumerate(damages):
            copy = tmp_path / "damaged" / f"{i}-{j}"
            shutil.copytree(tmp_path / "whole", copy)
            (copy / file.relative_to(tmp_path / "whole")).write_bytes(damage(file.read_bytes()))
    lines = run("restore", tmp_path / "damaged").splitlines()
    assert len(lines) >= 20
    assert all(line.startswith("checkpoint ") and " is damaged: " in line for line in lines)


@pytest.fixture
def quiet(monkeypatch):
    """`quiet_orbax` for one test; what the hook before it is told."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: told.append(raised.exc_value))
    level = logging.getLogger("asyncio").level
    filters = list(logging.getLogger("absl").filters)
    quiet_orbax()
    yield told
    logging.getLogger("asyncio").setLevel(level)
    logging.getLogger("absl").filters[:] = filters


class Raises:
    """Where nobody can catch it: while it is deleted."""

    def __init__(self, error: Exception):
        self.error = error

    def __del__(self):
        raise self.error


@pytest.mark.parametrize(
    "error", [RuntimeError("the event loop"), ValueError("Event loop is closed"), OSError(5)]
)
def test_other_errors_are_reported_as_before(quiet, error):
    Raises(error)
    assert quiet == [error]


def test_a_closed_loop_is_not_reported(quiet):
    Raises(RuntimeError("Event loop is closed"))
    assert quiet == []


def test_other_logs_go_on(quiet, caplog):
    logging.getLogger("absl").error("ours")
    logging.getLogger("asyncio").error("a task's")
    assert [record.message for record in caplog.records] == ["ours"]
