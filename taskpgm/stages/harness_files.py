"""Results of lm-evaluation-harness as a table of losses.

A folder with one `results_*.json` (or `results.json`) for each model, as `lm_eval --output_path`
writes them. A model has the name of its task, or "base": in the name of its file
(`results_boolq.json`) or of the folder that the file lies in. Losses are what a likelihood gives:
bits per byte, or the logarithm of a perplexity.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from taskpgm.stages.matrix_file import BASE, NamedMatrix

# From a metric to nats: per byte, per word, per token, whichever all models have of a task.
METRICS = {
    "bits_per_byte": lambda x: x * math.log(2),
    "byte_perplexity": math.log,
    "word_perplexity": math.log,
    "perplexity": math.log,
    "loss": float,
}


def read_harness_losses(folder: Path) -> NamedMatrix:
    """Losses of every model (row) on every task (column), nats.

    Raises:
      ValueError: no results, results of another shape, a model without a name of its own, or a task
        that some model lacks; names the file.
    """
    files = sorted(folder.rglob("results*.json"))
    if not files:
        raise ValueError(f"{folder}: no results_*.json of lm-evaluation-harness in this folder")
    found = {path: _losses(path) for path in files}
    first = next(iter(found.values()))
    tasks = list(first)
    rows: dict[str, Path] = {}
    for path, losses in found.items():
        for task in dict.fromkeys([*tasks, *losses]):
            if task not in losses or task not in first:
                raise ValueError(
                    f"{path if task not in losses else files[0]}: no result of {task!r}, which "
                    "others have: every model needs all tasks"
                )
        name = _name(path, folder, tasks)
        if name in rows:
            raise ValueError(f"{path} and {rows[name]} are both results of {name!r}: keep one")
        rows[name] = path
    values = np.empty((len(rows), len(tasks)))
    for j, task in enumerate(tasks):
        metric = next((m for m in METRICS if all(m in x[task] for x in found.values())), None)
        if metric is None:
            there = ", ".join(first[task]) or "none"
            raise ValueError(
                f"{files[0]}: task {task!r} has no likelihood that all models share, one of "
                f"{', '.join(METRICS)}, only {there}"
            )
        values[:, j] = [found[path][task][metric] for path in rows.values()]
    return NamedMatrix(values, list(rows), tasks)


def _losses(path: Path) -> dict[str, dict[str, float]]:
    """By task and metric, nats; of tasks without any likelihood, such as groups, nothing."""
    try:
        results: dict[str, Any] = dict(json.loads(path.read_text("utf-8"))["results"])
        read = {task: _metrics(dict(told)) for task, told in results.items()}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: not results of lm-evaluation-harness, {{'results': {{task: metrics}}}} "
            f"({error})"
        ) from error
    useful = {task: losses for task, losses in read.items() if losses}
    if not useful:
        names = sorted({metric.split(",")[0] for told in results.values() for metric in told})
        raise ValueError(
            f"{path}: no likelihood among {', '.join(names) or 'no metrics'}; losses need one of "
            f"{', '.join(METRICS)}"
        )
    return useful


def _metrics(told: dict[str, Any]) -> dict[str, float]:
    found = {}
    for key, value in told.items():
        metric = key.split(",")[0]  # "bits_per_byte,none": the filter follows
        if metric in METRICS and isinstance(value, int | float) and value > 0:
            found.setdefault(metric, METRICS[metric](value))
    return found


def _name(path: Path, root: Path, tasks: list[str]) -> str:
    """The task that a model was trained on, or "base"."""
    # lm_eval writes a path's separators as two underscores.
    inside = path.relative_to(root)
    told = [inside.stem.removeprefix("results").removeprefix("_"), *reversed(inside.parts[:-1])]
    for name in told:
        for candidate in (name, name.split("__")[-1]):
            if candidate in tasks or candidate == BASE:
                return candidate
    raise ValueError(
        f"{path}: which task's model is it? Name the file results_TASK.json, or its folder TASK, "
        f"for a TASK of {', '.join(tasks[:5])}, or {BASE}"
    )
