"""Matrices that people bring, with the names of their rows and columns.

A matrix is a .npy, .npz, .csv or .tsv file. Text files name their columns in the first row, their
rows in the first column, or both: then rows are matched with columns by name.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from taskpgm.artefact import load_arrays, write_bytes

Named = tuple[Float[np.ndarray, "n n"], list[str]]
DELIMITERS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (".npy", ".npz", *DELIMITERS)
BASE = "base"  # the row of the model that was not fine-tuned


class TaskNames(NamedTuple):
    """Names of the tasks that are mixed, in order, and of the targets, judged alone."""

    mixed: list[str]
    targets: list[str] = []

    @property
    def judged(self) -> list[str]:
        return [*self.mixed, *self.targets]


@dataclass(frozen=True)
class NamedMatrix:
    """A matrix with its file's names of rows and columns; [] if it has none."""

    values: Float[np.ndarray, "rows columns"]
    rows: list[str]
    columns: list[str]


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an .npz file, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def load_matrix(path: Path) -> Named:
    """(S [n, n], task names) of a file with an affinity; tasks without names are numbered.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not such a file, or not a square matrix; names the file and what was expected.
    """
    table = read_table(path, "affinity")
    if table.values.shape[0] != table.values.shape[1]:
        raise ValueError(
            f"{path}: an affinity is square, this has shape {list(table.values.shape)}; of losses "
            "and a row of the base say --config.affinity.kind=loss"
        )
    names = task_names(path, table.columns or table.rows, len(table.values))
    return by_name(path, table, names).values, names


# --- Files ---------------------------------------------------------------------------------------
def read_table(path: Path, array: str) -> NamedMatrix:
    """The matrix in a file; `array` is its name in an .npz."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such matrix file; set --config.affinity.matrix")
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path}: a matrix is read from {', '.join(ENDINGS)}")
    try:
        if path.suffix in (".npy", ".npz"):
            found = load_arrays(path)
            array = array if path.suffix == ".npz" else ""
            if array not in found:
                raise ValueError(f"no array `{array}`, only {', '.join(found)}")
            shape = found[array].shape
            if len(shape) != 2 or 0 in shape:
                raise ValueError(f"not a matrix, it has shape {list(shape)}")
            rows, columns = (given_names(found, key) for key in ("models", "tasks"))
            table = NamedMatrix(numbers(found[array]), rows, columns)
        else:
            table = _text(path, DELIMITERS[path.suffix])
    except (ValueError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a readable {path.suffix} matrix ({reason})") from error
    if not np.isfinite(table.values).all():
        row, column = np.argwhere(~np.isfinite(table.values))[0]
        raise ValueError(f"{path}: row {row + 1}, column {column + 1} is no finite number")
    return table


def _text(path: Path, delimiter: str) -> NamedMatrix:
    """A first row that is not all numbers names the columns, such a first column names the rows.

    A file without names is refused, because names that are numbers would look like a row.
    """
    text = path.read_text(encoding="utf-8-sig").removeprefix("#")
    lines = [
        [cell.strip() for cell in line]
        for line in csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
        if any(cell.strip() for cell in line)
    ]
    if not lines:
        raise ValueError("it is empty")
    numeric = [[_is_number(cell) for cell in line] for line in lines]
    # If only the first cell is not a number, it is the name of a row.
    header = not all(numeric[0][1:] or numeric[0])
    body = lines[1:] if header else lines
    if not body:
        raise ValueError("there is no row of numbers")
    named = not all(_is_number(line[0]) for line in body)
    if not header and not named:
        raise ValueError("the first row has to name the tasks, as in numpy.savetxt(header='a,b')")
    rows = [line[0] for line in body] if named else []
    cells = [line[1:] if named else line for line in body]
    columns = lines[0] if header else []
    width = len(cells[0])
    if len(columns) == width + 1 and named:
        columns = columns[1:]  # the corner cell: empty, or a heading of the row names
    for number, line in enumerate(cells, 2 if header else 1):
        if len(line) != width or (header and len(columns) != width):
            raise ValueError(
                f"line {number} has {len(line)} numbers, {len(columns) or width} wanted"
            )
        for cell in line:
            if not _is_number(cell):
                raise ValueError(f"line {number}: {cell!r} is no number")
    return NamedMatrix(np.array([[float(cell) for cell in line] for line in cells]), rows, columns)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # which Python allows in a number


def numbers(array: np.ndarray) -> np.ndarray:
    """Real numbers as float64. Raises ValueError for other things, which numpy would convert."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"its type is {array.dtype}: real numbers are wanted")
    return array.astype(np.float64)


def given_names(found: dict[str, np.ndarray], array: str = "tasks") -> list[str]:
    """An array of names as strings, which may be bytes; [] where there is none."""
    names = np.atleast_1d(found.get(array, np.array([], str)))
    if names.ndim != 1 or names.dtype.kind not in "SUiu":
        raise ValueError(f"`{array}` is a list of names, not {list(names.shape)} of {names.dtype}")
    return (
        np.char.decode(names, "utf-8").tolist()
        if names.dtype.kind == "S"
        else names.astype(str).tolist()
    )


# --- Names ----------------------------------------------------------------------------------
def task_names(path: Path, given: list[str], n: int) -> list[str]:
    """The tasks' names; they are numbered if none are given."""
    names = given or [f"task {i}" for i in range(n)]
    if len(names) != n or len(set(names)) != n or not all(names):
        raise ValueError(f"{path}: {n} tasks need as many different names")
    return names


def by_name(path: Path, table: NamedMatrix, names: list[str]) -> NamedMatrix:
    """The matrix with its rows in the order of its columns."""
    if not table.rows:
        return table
    if sorted(table.rows) != sorted(names):
        strange = next((row for row in table.rows if row not in names), table.rows[0])
        raise ValueError(f"{path}: row {strange!r} is not the name of a column, each of them once")
    order = [table.rows.index(name) for name in names]
    return NamedMatrix(table.values[order], names, names)
