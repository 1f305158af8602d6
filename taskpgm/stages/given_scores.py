"""Scores from the user: losses of models on tasks, or log-likelihoods of examples.

Tasks without a model of their own are targets: judged, but not mixed.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from taskpgm.affinity import Scores
from taskpgm.artefact import load_arrays
from taskpgm.stages.harness_files import read_harness_losses
from taskpgm.stages.matrix_file import (
    BASE,
    NamedMatrix,
    TaskNames,
    by_name,
    given_names,
    numbers,
    read_table,
    task_names,
)


def load_losses(path: Path) -> tuple[TaskNames, Scores]:
    """Mean held-out losses of every model (row) on every task (column), as if of one example each.

    One more row is the base model's: the one named "base", or the first where rows have no names.
    A folder holds the results of lm-evaluation-harness, see `harness_files`.

    Raises:
      FileNotFoundError, ValueError: as for `matrix_file.load_matrix`.
    """
    table = read_harness_losses(path) if path.is_dir() else read_table(path, "losses")
    count, k = table.values.shape
    named = bool(table.rows and table.columns)
    if count > k + 1 or (not named and count < k):
        raise ValueError(
            f"{path}: losses have a row for each model and a column for each task, and perhaps a "
            f"row of the base; this has shape [{count}, {k}]"
            + ("" if named else "; tasks without a model are targets where rows have names")
        )
    base, has_base = None, BASE in table.rows if named else count == k + 1
    if count == k + 1 and not has_base:
        raise ValueError(f"{path}: {count} rows for {k} tasks, and none of them is named {BASE}")
    if has_base:
        at = table.rows.index(BASE) if named else 0
        base = -table.values[at]
        rows = [x for i, x in enumerate(table.rows) if i != at]
        table = NamedMatrix(np.delete(table.values, at, 0), rows, table.columns)
    names, loss = _mixed_first(path, table)
    if base is not None and named:
        base = base[[table.columns.index(name) for name in names.judged]]
    if (loss <= 0).any() or (base is not None and (base >= 0).any()):
        raise ValueError(f"{path}: a mean loss is positive; log-likelihoods are negative losses")
    return names, _scores(-loss, np.arange(k), base, None)


def _mixed_first(path: Path, table: NamedMatrix) -> tuple[TaskNames, Float[np.ndarray, "n k"]]:
    """The losses with a row and a column for each task that is mixed, in the order of the columns,
    and then the columns of targets."""
    if not (table.rows and table.columns):
        names = task_names(path, table.columns or table.rows, table.values.shape[1])
        return TaskNames(names), by_name(path, table, names).values
    task_names(path, table.columns, table.values.shape[1])
    task_names(path, table.rows, len(table.values))
    strange = [row for row in table.rows if row not in table.columns]
    if strange:
        raise ValueError(f"{path}: row {strange[0]!r} is not the name of a column")
    mixed = [name for name in table.columns if name in table.rows]
    names = TaskNames(mixed, [name for name in table.columns if name not in mixed])
    row = [table.rows.index(name) for name in mixed]
    column = [table.columns.index(name) for name in names.judged]
    return names, table.values[np.ix_(row, column)]


def load_likelihoods(path: Path) -> tuple[TaskNames, Scores]:
    """Arrays `log_likelihood` [n, m] and `task` [m] of an .npz; `base` and `tokens` [m], `tasks`.

    Tasks from n on are targets.

    Raises:
      FileNotFoundError, ValueError: as for `matrix_file.load_matrix`.
    """
    if path.suffix != ".npz":
        raise ValueError(f"{path}: log-likelihoods are an .npz with `log_likelihood` and `task`")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such matrix file; set --config.affinity.matrix")
    try:
        found = load_arrays(path)
        told = given_names(found)
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
    base, tokens = found.get("base"), found.get("tokens")
    for name in ("log_likelihood", *({"base", "tokens"} & found.keys())):
        try:
            good = np.isfinite(numbers(found[name])).all() and found[name].size
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from error
        if not good or (name == "tokens" and found[name].min() < 1):
            raise ValueError(f"{path}: {name} holds what is no finite number, or no count, or none")
        if name != "log_likelihood" and found[name].shape != task.shape:
            raise ValueError(f"{path}: {name} is one number for each of {len(task)} examples")
    n, k = len(values), max(len(values), int(task.max()) + 1)
    if task.min() < 0 or k > len(task) or (np.bincount(task, minlength=k) == 0).any():
        raise ValueError(
            f"{path}: task counts tasks from 0, those of the {n} models first, and each has an "
            "example"
        )
    names = task_names(path, told, k)
    return TaskNames(names[:n], names[n:]), _scores(values, task, base, tokens)


def _scores(
    values: np.ndarray, task: np.ndarray, base: np.ndarray | None, tokens: np.ndarray | None
) -> Scores:
    """Scores without distributions; without `tokens` every example counts as one."""
    return Scores(
        log_likelihood=np.asarray(values, np.float64),
        base=None if base is None else np.asarray(base, np.float64),
        tokens=np.ones(len(task), np.int64) if tokens is None else tokens.astype(np.int64),
        task=task.astype(np.int64),
        contexts=None,
        divergence=_none_stored,
    )


def _none_stored(k: int) -> Any:
    raise ValueError("a file of likelihoods holds no divergences")
