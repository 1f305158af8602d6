"""What a user wants of a mixture: what matters, which weights are allowed, what to stay near."""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from taskpgm import mixture
from taskpgm.mixture import baselines

FAMILY = "family:"  # before the name of a family, where tasks and families are named side by side
BOUND = "NAME=LOW:HIGH, as in boolq=0:0.1 or family:nli=0.05:0.3"


# --- What matters --------------------------------------------------------------------------------
def read_importance(
    value: str, names: Sequence[str], families: Sequence[str], mixed: int | None = None
) -> Float[np.ndarray, "k"]:
    """How much each task's loss counts, with sum 1 (`mixture.importance`).

    `tasks`: all alike, targets too. `families`: every family alike, and its tasks alike. `targets`:
    they alone, all alike. Else a JSON file of {task or family: weight}; a family's weight is shared
    by its tasks, what is not named has none.

    Args:
      mixed: how many of the names are of mixed tasks; those after them are targets. None: all.

    Raises:
      ValueError: names the file, and what is wrong with it.
    """
    n, families = len(names), list(families)
    if value == "tasks":
        return np.full(n, 1.0 / n)
    if value == "families":
        if not all(families):
            raise ValueError("mixture.importance=families: the tasks have no families here")
        return baselines.uniform_families(families)
    if value == "targets":
        if mixed is None or mixed == n:
            raise ValueError("mixture.importance=targets: there are none; set tasks.targets")
        return np.where(np.arange(n) < mixed, 0.0, 1.0 / (n - mixed))
    told = "tasks, families, targets, or a JSON file of {task or family: weight}"
    given = _numbers(f"mixture.importance={value}", value, told)
    counts = {family: families.count(family) for family in families}
    _check_names(value, given, [*names, *counts], "neither a task nor a family here")
    w = np.array(
        [
            given.get(name, 0.0) + given.get(family, 0.0) / counts[family]
            for name, family in zip(names, families, strict=True)
        ]
    )
    return _as_mixture(value, w)


# --- What is allowed -----------------------------------------------------------------------------
def read_bounds(value: str, names: Sequence[str], families: Sequence[str]) -> mixture.Bounds | None:
    """Smallest and largest weights (`mixture.bounds`); None where there are none.

    `boolq=0:0.1,family:nli=0.05:0.3`, or a JSON file of {"boolq": [0, 0.1], "family:nli": [0.05,
    0.3]}.

    Raises:
      ValueError: names the bound, and what is wrong with it.
    """
    if not value:
        return None
    given = _read_bounds(value)
    where = f"mixture.bounds={value}"
    known = dict.fromkeys(families)
    _check_names(
        where,
        given,
        [*names, *(FAMILY + name for name in known)],
        "no task here, and no family:NAME",
    )
    of_families = {x.removeprefix(FAMILY): y for x, y in given.items() if x.startswith(FAMILY)}
    low, high = _filled(given, names)
    family_low, family_high = _filled(of_families, list(known))
    number = {name: i for i, name in enumerate(known)}
    bounds = mixture.Bounds(
        low=low,
        high=high,
        family=np.array([number[name] for name in families]) if of_families else None,
        family_low=family_low if of_families else None,
        family_high=family_high if of_families else None,
        tasks=tuple(names),
        families=tuple(known),
    )
    try:
        mixture.check_selection(len(names), len(names), bounds=bounds)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return bounds


def _read_bounds(value: str) -> dict[str, tuple[float, float]]:
    where, given = f"mixture.bounds={value}", {}
    if Path(value).is_file():
        try:
            told = json.loads(Path(value).read_text("utf-8"))
            parts = [(str(name), tuple(map(float, pair))) for name, pair in told.items()]
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{value}: not a JSON object of tasks, or family:NAME, and [low, high] ({error})"
            ) from error
    else:
        if "=" not in value:
            raise ValueError(f"{where}: no such file, and not {BOUND}")
        parts = []
        for part in value.split(","):
            name, equals, pair = part.strip().rpartition("=")
            try:
                parts.append((name, tuple(float(end) for end in pair.split(":"))))
            except ValueError:
                raise ValueError(f"{where}: {part!r} has to be {BOUND}") from None
            if not equals or not name:
                raise ValueError(f"{where}: {part!r} has to be {BOUND}")
    for name, pair in parts:
        if len(pair) != 2 or not all(math.isfinite(end) and 0 <= end <= 1 for end in pair):
            raise ValueError(f"{where}: the bound of {name!r} has to be two numbers from 0 to 1")
        if pair[0] > pair[1]:
            raise ValueError(f"{where}: the bound of {name!r} has {pair[0]:g} above {pair[1]:g}")
        if name in given:
            raise ValueError(f"{where}: {name!r} has two bounds")
        given[name] = pair
    return given


def _filled(
    given: Mapping[str, tuple[float, float]], names: Sequence[str]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Low and high of every name; 0 and 1 where nothing is given."""
    pairs = np.array([given.get(name, (0.0, 1.0)) for name in names], float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


# --- What to stay near ---------------------------------------------------------------------------
def read_prior(
    value: str,
    names: Sequence[str],
    families: Sequence[str],
    sizes: np.ndarray | None,
    importance: Float[np.ndarray, "k"],
) -> Float[np.ndarray, "n"]:
    """The mixture that weights are pulled to (`mixture.prior`).

    `importance`: how much the tasks matter; uniform where some do not, or there are targets.
    `uniform`, `families`, `size`: the baselines of these names. Else a JSON file of {task: weight}.

    Raises:
      ValueError: names what is missing, or the file and what is wrong with it.
    """
    n = len(names)
    if value == "importance":
        alike = len(importance) > n or importance.min() == 0
        return np.full(n, 1.0 / n) if alike else importance
    if value == "uniform":
        return np.full(n, 1.0 / n)
    if value == "families":
        if not all(families):
            raise ValueError("mixture.prior=families: the tasks have no families here")
        return baselines.uniform_families(list(families))
    if value == "size":
        if sizes is None:
            raise ValueError("mixture.prior=size: the tasks' sizes are not known: affinity.sizes")
        return baselines.size_proportional(sizes)
    told = "importance, uniform, families, size, or a JSON file of {task: weight}"
    given = _numbers(f"mixture.prior={value}", value, told)
    _check_names(value, given, names, "no task here")
    return _as_mixture(value, np.array([given.get(name, 0.0) for name in names]))


# --- Files ---------------------------------------------------------------------------------------
def _numbers(where: str, path: str, told: str) -> dict[str, float]:
    try:
        return {str(k): float(v) for k, v in json.loads(Path(path).read_text("utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: {told} ({error})") from error


def _check_names(where: str, given: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where}: {name!r} is {what}{hint}")


def _as_mixture(where: str, w: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    if not np.isfinite(w).all() or w.min() < 0 or w.sum() <= 0:
        raise ValueError(f"{where}: weights are finite, none below 0, and not all 0")
    return w / w.sum()
