"""Scores on disk: one cell per (model, task), found again by what it was computed from.

A cell's name is a hash of its kind, its model and its task's held-out rows: a cell is never taken
for another's, and after a new task has come all old cells are in place. It is written under another
name and renamed, and begins with a checksum of its content: killed at any moment a run leaves whole
cells and perhaps one temporary file, and a damaged cell is found when it is read.
"""

import hashlib
import io
import logging
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from taskpgm.artefact import open_atomic, remove_leftovers

# What a cell holds and how it was computed; another number makes all earlier cells unknown.
VERSION = 1
_LOG = logging.getLogger(__name__)


def key(*parts: str) -> str:
    """Name of the cell that is determined by `parts`: its kind, its model, its task."""
    return hashlib.sha256("\0".join([str(VERSION), *parts]).encode()).hexdigest()


def fingerprint(arrays: Iterable[np.ndarray]) -> str:
    """Hash of the content, types and shapes of arrays."""
    digest = hashlib.sha256()
    for x in arrays:
        x = np.ascontiguousarray(x)
        digest.update(f"{x.dtype.str}{x.shape}".encode())
        digest.update(x)
    return digest.hexdigest()


def path(folder: Path, name: str) -> Path:
    # 256 folders: a hundred thousand files in one would be slow to list.
    return Path(folder) / name[:2] / f"{name}.cell"


def write(folder: Path, name: str, **arrays: np.ndarray) -> None:
    """Writes a cell, all or nothing.

    Raises:
      OSError: the disk is full or the folder not writable; nothing is left behind.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    target = path(folder, name)
    try:
        with open_atomic(target) as file:
            file.write(_checksum(name, content) + content)
    except OSError as error:
        raise OSError(f"cannot write the score {target}: {error.strerror or error}") from error


def read(folder: Path, name: str) -> dict[str, np.ndarray] | None:
    """The arrays of a cell; None if there is none, or, said in the log, if it is damaged."""
    source = path(folder, name)
    try:
        content = source.read_bytes()
    except FileNotFoundError:
        return None
    if content[:32] == _checksum(name, content[32:]):
        try:
            with np.load(io.BytesIO(content[32:]), allow_pickle=False) as archive:
                return dict(archive)
        except (ValueError, zipfile.BadZipFile):
            pass
    _LOG.warning("%s is damaged (its checksum does not fit): computed again", source)
    return None


def _checksum(name: str, content: bytes) -> bytes:
    """32 bytes that also depend on the name: a cell moved to another's place is damaged."""
    return hashlib.sha256(name.encode() + content).digest()


def prune(folder: Path, keep: Iterable[str]) -> int:
    """Deletes all cells but `keep`, and unfinished files; returns how many cells went.

    The store then holds the current models and tasks only, and its size stays what the plan says.
    """
    keep, gone = set(keep), 0
    remove_leftovers(Path(folder))
    for file in Path(folder).glob("??/*"):
        if file.suffix == ".cell" and file.stem not in keep:
            file.unlink(missing_ok=True)
            gone += 1
    return gone
