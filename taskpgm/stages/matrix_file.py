"""Matrices from the user: an affinity, losses of models on tasks, or log-likelihoods.

A matrix is a .npy, .npz, .csv or .tsv file. Text files name their columns in the first row, their
rows in the first column, or both: then rows are matched with columns by name.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from taskpgm.affinity import Scores
from taskpgm.artefact import load_arrays, write_bytes

Named = tuple[Float[np.ndarray, "n n"], list[str]]
DELIMITERS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (".npy", ".npz", *DELIMITERS)
BASE = "base"  # the row of the model that was not fine-tuned


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
    table = _read(path, "affinity")
    if table.values.shape[0] != table.values.shape[1]:
        raise ValueError(
            f"{path}: an affinity is square, this has shape {list(table.values.shape)}; of losses "
            "and a row of the base say --config.affinity.kind=loss"
        )
    names = _names(path, table.columns or table.rows, len(table.values))
    return _by_name(path, table, names).values, names


def load_losses(path: Path) -> tuple[list[str], Scores]:
    """Mean held-out losses of every model (row) on every task (column), as scores of one example
    per task.

    An additional row is the base model's: the one named "base", or the first if rows have no names.

    Raises:
      FileNotFoundError, ValueError: as for `load_matrix`.
    """
    table = _read(path, "losses")
    count, n = table.values.shape
    if count not in (n, n + 1):
        raise ValueError(
            f"{path}: losses have a row for each model and a column for each task, and perhaps a "
            f"row of the base; this has shape [{count}, {n}]"
        )
    base = None
    if count == n + 1:
        at = table.rows.index(BASE) if BASE in table.rows else 0
        if table.rows and table.rows[at] != BASE:
            raise ValueError(
                f"{path}: {count} rows for {n} tasks, and none of them is named {BASE}"
            )
        base = -table.values[at]
        table = NamedMatrix(
            np.delete(table.values, at, 0), [x for x in table.rows if x != BASE], table.columns
        )
    names = _names(path, table.columns or table.rows, n)
    loss = _by_name(path, table, names).values
    if (loss <= 0).any() or (base is not None and (base >= 0).any()):
        raise ValueError(f"{path}: a mean loss is positive; log-likelihoods are negative losses")
    return names, _scores(-loss, np.arange(n), base, None)


def load_likelihoods(path: Path) -> tuple[list[str], Scores]:
    """Log-likelihoods of n models on m examples, from an .npz file with the arrays
    `log_likelihood` [n, m] and `task` [m], and optionally `base` [m], `tokens` [m] and `tasks` [n].

    Raises:
      FileNotFoundError, ValueError: as for `load_matrix`.
    """
    if path.suffix != ".npz":
        raise ValueError(f"{path}: log-likelihoods are an .npz with `log_likelihood` and `task`")
    try:
        found = load_arrays(path)
        names = _given_names(found)
    except ValueError as error:
        raise ValueError(f"{path}: not a readable .npz file ({error})") from error
    for name in ("log_likelihood", "task"):
        if name not in found:
            raise ValueError(f"{path}: no array `{name}`, only {', '.join(found)}")
    values, task = found["log_likelihood"], found["task"]
    if values.ndim != 2 or task.shape != values.shape[1:] or task.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: log_likelihood is [models, examples] and task a whole number for each "
            f"example; these are {list(values.shape)} and {list(task.shape)} of {task.dtype}"
        )
    names = _names(path, names, len(values))
    for name in ("log_likelihood", *({"base", "tokens"} & found.keys())):
        try:
            good = np.isfinite(_numbers(found[name])).all() and found[name].size
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from error
        if not good or (name == "tokens" and found[name].min() < 1):
            raise ValueError(f"{path}: {name} holds what is no finite number, or no count, or none")
    if task.min() < 0 or task.max() >= len(values):
        raise ValueError(f"{path}: task counts the {len(values)} models' tasks from 0")
    base, tokens = found.get("base"), found.get("tokens")
    for name, given in (("base", base), ("tokens", tokens)):
        if given is not None and given.shape != task.shape:
            raise ValueError(f"{path}: {name} is one number for each of {len(task)} examples")
    return names, _scores(values, task, base, tokens)


def _scores(
    values: np.ndarray, task: np.ndarray, base: np.ndarray | None, tokens: np.ndarray | None
) -> Scores:
    """Scores without distributions; without `tokens` every example counts as one token."""
    return Scores(
        log_likelihood=np.asarray(values, np.float64),
        base=None if base is None else np.asarray(base, np.float64),
        tokens=np.ones(len(task), np.int64) if tokens is None else tokens.astype(np.int64),
        task=task.astype(np.int64),
        contexts=None,
        divergence=_none_stored,
    )


def _none_stored(k: int) -> np.ndarray:
    raise ValueError("a file of likelihoods holds no divergences")


# --- Files ---------------------------------------------------------------------------------------
def _read(path: Path, array: str) -> NamedMatrix:
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
            table = NamedMatrix(_numbers(found[array]), [], _given_names(found))
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


def _numbers(array: np.ndarray) -> np.ndarray:
    """Real numbers as float64. Raises ValueError for other things, which numpy would convert."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"its type is {array.dtype}: real numbers are wanted")
    return array.astype(np.float64)


def _given_names(found: dict[str, np.ndarray]) -> list[str]:
    """The array `tasks` as strings, which may be bytes; [] where there is none."""
    names = np.atleast_1d(found.get("tasks", np.array([], str)))
    if names.ndim != 1 or names.dtype.kind not in "SUiu":
        raise ValueError(f"`tasks` is a list of names, not {list(names.shape)} of {names.dtype}")
    return (
        np.char.decode(names, "utf-8").tolist()
        if names.dtype.kind == "S"
        else names.astype(str).tolist()
    )


# --- Names ---------------------------------------------------------------------------------------
def _names(path: Path, given: list[str], n: int) -> list[str]:
    """The tasks' names; they are numbered if none are given."""
    names = given or [f"task {i}" for i in range(n)]
    if len(names) != n or len(set(names)) != n or not all(names):
        raise ValueError(f"{path}: {n} tasks need as many different names")
    return names


def _by_name(path: Path, table: NamedMatrix, names: list[str]) -> NamedMatrix:
    """The matrix with its rows in the order of its columns."""
    if not table.rows:
        return table
    if sorted(table.rows) != sorted(names):
        strange = next((row for row in table.rows if row not in names), table.rows[0])
        raise ValueError(f"{path}: row {strange!r} is not the name of a column, each of them once")
    order = [table.rows.index(name) for name in names]
    return NamedMatrix(table.values[order], names, names)
