"""Affinity matrices as files: the workdir's own .npz, and what people bring (.npy, .npz, .csv)."""

import csv
import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from taskpgm.artefact import write_bytes

Named = tuple[Float[np.ndarray, "n n"], list[str]]
# What numpy raises for files of these kinds that are damaged, or of another kind.
UNREADABLE = (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """An .npz file, all or nothing."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def load_matrix(path: Path) -> Named:
    """(S [n, n], task names) of a .npy, .npz or .csv file; tasks without names are numbered.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not such a file, or not a matrix; names the file and what was expected.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such matrix file; set --config.affinity.matrix")
    if path.suffix not in READERS:
        raise ValueError(f"{path}: a matrix is read from {', '.join(READERS)}")
    try:
        matrix, names = READERS[path.suffix](path)
        matrix = np.asarray(matrix, np.float64)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a readable {path.suffix} matrix ({reason})") from error
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{path}: an affinity is square, this has shape {list(matrix.shape)}")
    names = names or [f"task {i}" for i in range(len(matrix))]
    if len(names) != len(matrix) or len(set(names)) != len(names):
        raise ValueError(f"{path}: {len(matrix)} tasks need as many different names")
    return matrix, names


def _npy(path: Path) -> Named:
    return np.load(path, allow_pickle=False), []


def _npz(path: Path) -> Named:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        if "affinity" not in archive:
            raise KeyError(f"no array `affinity`, only {', '.join(archive.files)}")
        names = [str(name) for name in archive["tasks"]] if "tasks" in archive else []
        return archive["affinity"], names


def _csv(path: Path) -> Named:
    with path.open(newline="", encoding="utf-8") as file:
        header, *lines = [line for line in csv.reader(file) if line]
    # A first column that is no number holds the tasks' names again.
    lines = [line[1:] if len(line) == len(lines) + 1 else line for line in lines]
    return np.array([[float(x) for x in line] for line in lines]), header[-len(lines) :]


READERS: dict[str, Callable[[Path], Named]] = {".npy": _npy, ".npz": _npz, ".csv": _csv}
