"""The unit of the house: a folder with a key, written whole or not at all, found again.

A *key* is a hash of all that an artefact depends on. It is written into `done.json` inside the
folder, as the last act of making it. Same key and a mark: nothing to do. Anything else is made
again, or goes on from its own checkpoints: whatever is damaged in it, the way out is to remove the
mark. A file is written under a temporary name, synchronised and renamed, so a half-written one is
never taken for a whole one; what a killed run leaves under such names is removed by the next.

On many hosts the primary process reads and writes here, and all go by what it has found.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from taskpgm.multihost import on_primary

# Raised whenever an artefact's meaning changes, so that old workdirs are not mistaken for new ones.
VERSION = 2
MARK = "done.json"
STARTED = "key.json"
# Names under which something is written that is not whole yet, or no longer wanted.
LEFTOVERS = (".*.tmp", ".*.old", "*.orbax-checkpoint-tmp*")


def digest(*parts: Any) -> str:
    """A short stable hash of JSON-like values (16 hexadecimal digits)."""
    text = json.dumps([VERSION, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- Files ---------------------------------------------------------------------------------------
@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` once all of it is on the disk, and not before.

    The only way in which the house writes a file. The temporary name is this writer's own, so that
    two may write the same file; those of killed writers are found by their form (LEFTOVERS).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@on_primary
def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, all or nothing."""
    with open_atomic(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, all or nothing.

    Raises:
      ValueError: a number in it is NaN or infinite.
    """
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


@on_primary
def read_json(path: Path, *otherwise: Any) -> Any:
    """Reads a JSON file of the workdir; `otherwise`: the value where there is no such file.

    The primary looks whether it is there. A process that looked for itself, and late, could find
    what is written just now, and decide otherwise than the others.

    Raises:
      ValueError: the file is damaged, or missing and nothing else given; names it and the way out.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:  # the second: a parent is a file
        if otherwise:
            return otherwise[0]
        raise ValueError(f"{path} is missing: {recovery_hint(path)}") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {recovery_hint(path)}") from error


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; of an .npy file the one array, named "".

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file cannot be read; says why, and does not name it.
    """
    try:
        with path.open("rb") as file, contextlib.ExitStack() as stack:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.lib.npyio.NpzFile):
                stack.enter_context(found)
                found = {name: found[name] for name in found}
            else:
                found = {"": found}
    except FileNotFoundError:
        raise
    # Of what is no archive, or a damaged one, numpy and what it reads with raise a dozen kinds; and
    # MemoryError, where a header asks for more than there is.
    except Exception as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    for name, array in found.items():
        if not isinstance(array, np.ndarray):  # another file in the archive
            raise ValueError(f"{name} in it is no array")
    return found


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file of the workdir.

    Raises:
      ValueError: the file is missing or damaged; names it and the way out.
    """
    try:
        return load_arrays(path)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{path} is damaged ({error}): {recovery_hint(path)}") from error


def recovery_hint(path: Path) -> str:
    """What to do so that a damaged file or folder of the workdir is made again.

    The file alone would not do: its artefact would still be marked complete. Nor need the artefact
    go: what of it is whole (scores, checkpoints) is used again.
    """
    artefact = next((at for at in (path, *path.parents) if (at / MARK).is_file()), None)
    return f"remove {artefact / MARK if artefact else path} and start the same command again"


@on_primary
def remove(path: Path) -> None:
    """Deletes a file or folder of the workdir, if it is there. A folder is renamed first: a kill in
    between must not leave half of it under its name."""
    doomed = path.with_name(f".{path.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    if path.is_dir() and not path.is_symlink():
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@on_primary
def remove_leftovers(folder: Path) -> None:
    """Removes what killed runs have left unfinished anywhere below `folder`, whoever made it.

    For one who is alone in `folder`: what another is writing just now looks the same.
    """
    for pattern in LEFTOVERS:
        for path in list(folder.rglob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@on_primary
def fingerprint(folder: Path, names: list[str]) -> str:
    """Identifies big files without reading them whole: names, sizes, first and last MiB."""
    parts = []
    for name in sorted(names):
        path = folder / name
        with path.open("rb") as file:
            head = file.read(1 << 20)
            file.seek(max(0, path.stat().st_size - (1 << 20)))
            tail = file.read()
        parts.append([name, path.stat().st_size, hashlib.sha256(head + tail).hexdigest()])
    return digest(parts)


# --- Folders with a key --------------------------------------------------------------------------
@dataclass(frozen=True)
class Artefact:
    """A folder of the workdir, and the hash of all that decides what it holds."""

    folder: Path
    key: str

    def is_done(self) -> bool:
        """Whether the folder holds all of this, complete, made under the same key."""
        return done_key(self.folder) == self.key

    @on_primary
    def begin(self) -> None:
        """Prepares the folder to be filled, keeping what an interrupted run left of the same key.

        What was made under another key is removed first: it belongs to inputs that are gone. So is
        a complete artefact of this key, unless it was reopened.
        """
        remove_leftovers(self.folder)
        started = self.folder / STARTED
        if started.is_file() and not (self.folder / MARK).exists():
            if read_json(started)["key"] == self.key:
                return
        remove(self.folder)
        self.folder.mkdir(parents=True)
        write_json(started, {"key": self.key})

    @on_primary
    def reopen(self) -> None:
        """Declares the artefact incomplete, and keeps all that is in it, under whichever key: for
        artefacts whose parts have keys of their own."""
        (self.folder / MARK).unlink(missing_ok=True)

    @on_primary
    def finish(self, **facts: Any) -> None:
        """Declares the artefact complete; `facts` (seconds, steps) are kept with it."""
        remove_leftovers(self.folder)
        write_json(self.folder / MARK, {"key": self.key, **facts})


@on_primary
def done_key(folder: Path) -> str | None:
    """The key that a complete artefact was made under; None when there is no complete one."""
    mark = folder / MARK
    return read_json(mark)["key"] if mark.is_file() else None


def done_facts(folder: Path) -> dict[str, Any]:
    """What `Artefact.finish` was told, and `key`.

    Raises:
      ValueError: the artefact is not complete, or its mark is damaged.
    """
    return read_json(folder / MARK)
