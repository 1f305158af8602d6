"""The names of mixtures in `config.compare`: rows of the table in `rows.py`, with arguments.

A name is `ROW` or `ROW:KEY=VALUE,KEY=VALUE`, as in `taskpgm-pmi:r=4`.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from taskpgm import mixture
from taskpgm.stages.mixture_inputs import Inputs
from taskpgm.stages.ratio import AUTO, read_ratio
from taskpgm.stages.rows import METHODS, ROWS, SCORED, MixtureRow, Weighted

NO_LOSSES = ("pmi", "jsd")  # of affinity.kind: a matrix of these says nothing of losses
COUNTS = ("k", "clusters")  # arguments that count tasks
# Arguments that stand for keys of `mixture` in this row alone.
KEYS = {"r": "ratio", "psd": "psd", "floor": "floor", "method": "method", "kl": "kl"}


# --- Names ----------------------------------------------------------------------------------
def parse(name: str, needs: bool = True) -> tuple[MixtureRow, dict[str, Any]]:
    """The row that a name like `taskpgm-pmi:r=4` refers to, and its parsed arguments.

    Args:
      needs: whether all that the row needs has to be there.

    Raises:
      ValueError: no such row or argument, or a bad value; lists what is allowed.
    """
    head, _, tail = name.partition(":")
    check_choice("compare", head, ROWS)
    row, arguments = ROWS[head], {}
    for part in tail.split(",") if tail else ():
        key, equals, text = part.partition("=")
        allowed = ", ".join(row.arguments) or "none"
        if not equals or key not in row.arguments:
            raise ValueError(f"compare: {name!r}: {part!r} is no argument; {head} has {allowed}")
        try:
            arguments[key] = row.arguments[key](text)
        except ValueError as error:
            raise ValueError(f"compare: {name!r}: {key}={text} has to be {error}") from error
    missing = [key for key in row.needs if key not in arguments]
    if missing and needs:
        raise ValueError(f"compare: {name!r} needs {missing[0]}, as in {head}:{missing[0]}=...")
    return row, arguments


def make(name: str, inputs: Inputs) -> tuple[MixtureRow, Inputs, Weighted]:
    """The row of that name, the inputs with the row's arguments applied, and the mixture."""
    row, inputs = changed(name, inputs)
    return row, inputs, row.make(inputs)


def changed(name: str, inputs: Inputs) -> tuple[MixtureRow, Inputs]:
    """The row of a name, and the inputs as its arguments change them."""
    row, arguments = parse(name)
    own = {KEYS[key]: value for key, value in arguments.items() if key in KEYS}
    check_counts(name, arguments, inputs.n)
    return row, replace(inputs, config={**inputs.config, **own}, arguments=arguments)


def check_row(name: str, inputs: Inputs) -> None:
    """Refuses a row whose own arguments ask for what cannot be had.

    Raises:
      ValueError: names the row.
    """
    row, inputs = changed(name, inputs)
    try:
        if row.affinity and "method" in row.arguments:
            inputs.check()
        if "k" in inputs.arguments and row.affinity:
            mixture.check_selection(inputs.n, inputs.arguments["k"], inputs.cap, inputs.bounds)
        inputs.importance  # noqa: B018 (raises)
        if not row.uses and not row.runs:  # made of the tasks alone: it can be made by now
            row.make(inputs)
    except ValueError as error:
        raise ValueError(f"compare: {name!r}: {error}") from error


def folder_name(name: str) -> str:
    """The folder of a mixture: its name, with `_` for characters that a path should not have."""
    return re.sub(r"[^\w.=:,+@-]", "_", name)


# --- Checks before anything is spent -------------------------------------------------------------
def caps(size: np.ndarray, budget: int, max_epochs: float) -> Float[np.ndarray, "n"]:
    """The largest weight of each task, floor(max_epochs N_i) / budget (method 6).

    Raises:
      ValueError: the budget is larger than the data allow.
    """
    most = np.floor(max_epochs * size)
    if most.sum() < budget:
        raise ValueError(
            f"mixture.budget={budget} is larger than the data allow: {int(size.sum())} training "
            f"examples, each at most mixture.max_epochs={max_epochs:g} times, make "
            f"{int(most.sum())}: lower the budget or raise max_epochs"
        )
    return most / budget


def check(config: Any, size: np.ndarray | None) -> None:
    """Refuses, before anything is trained, comparisons that cannot be made.

    Raises:
      ValueError: an unknown mixture or method, or a budget larger than the data allow.
    """
    if not config.compare:
        raise ValueError(f"compare is empty; there are {', '.join(ROWS)}")
    folders: dict[str, str] = {}
    for name in config.compare:
        row, arguments = parse(name)
        if config.affinity.matrix:
            check_without_models(name, row)
            if config.affinity.kind in NO_LOSSES:
                check_without_losses(name, row, arguments, config.mixture.ratio)
        row.check(arguments)
        if size is not None:
            check_counts(name, arguments, len(size))
        other = folders.setdefault(folder_name(name), name)
        if other != name:
            raise ValueError(f"compare: {name!r} and {other!r} would have one folder")
    check_choice("mixture.method", config.mixture.method, dict.fromkeys(METHODS))
    if size is not None:
        caps(size, config.mixture.budget, config.mixture.max_epochs)


def check_counts(name: str, arguments: Mapping[str, Any], n: int) -> None:
    """Refuses to keep, or group, more tasks than there are."""
    for key in COUNTS:
        if arguments.get(key, 0) > n:
            raise ValueError(
                f"compare: {name!r}: {key}={arguments[key]} of {n} tasks: {key} is at most their "
                "number"
            )


def check_without_models(name: str, row: MixtureRow) -> None:
    """Refuses what asks a model where only a matrix is given."""
    if row.runs or not set(row.uses) <= set(SCORED):
        raise ValueError(
            f"compare: {name!r} asks a model, and with affinity.matrix there is none: drop it"
        )


def check_without_losses(
    name: str, row: MixtureRow, arguments: Mapping[str, Any], ratio: str
) -> None:
    """Refuses a mixture that needs losses of single-task models if only an affinity is given."""
    if row.losses:
        raise ValueError(
            f"compare: {name!r} needs the losses of single-task models, and affinity.matrix holds "
            "an affinity alone: drop it"
        )
    given = read_ratio(str(arguments.get("r", ratio)))
    if row.affinity and given.get(row.affinity, given.get("", AUTO)) == AUTO:
        raise ValueError(
            f"mixture.ratio={ratio}: with affinity.matrix there are no losses to choose the ratio "
            f"of {name!r} by: give a number, as in --config.mixture.ratio=2"
        )


def check_choice(key: str, name: str, table: Mapping[str, Any]) -> None:
    """Raises ValueError, listing what there is, if `name` is not in the table."""
    if name not in table:
        near = difflib.get_close_matches(str(name), list(table), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{key}: {name!r} is none of {', '.join(table)}{hint}")
