"""Reads what a workdir holds into plain values; the only file of the report that opens artefacts.

Every piece is optional: a page from an affinity matrix alone has no runs, a page during a run has
no results yet. What is missing is empty here, and the page leaves its section out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float

WAY_OUT = "remove it, with the done.json beside it if there is one, and start the same run again"


@dataclass(frozen=True)
class Affinity:
    """S over tasks, with the bounds of its interval where there are any. Each [n n]."""

    kind: str
    matrix: Float[np.ndarray, "n n"]
    tasks: tuple[str, ...]
    low: Float[np.ndarray, "n n"] | None = None
    high: Float[np.ndarray, "n n"] | None = None


@dataclass(frozen=True)
class Mixture:
    """One mixture: its weights [n] in the order of `Study.tasks`, and what explains them."""

    name: str
    weights: Float[np.ndarray, "n"]
    counts: tuple[int, ...] | None = None
    affinity: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)  # method, ratio, energy, gap, ...
    explain: Mapping[str, Any] = field(default_factory=dict)  # arrays [n] and the energy's terms

    @property
    def effective(self) -> float:
        """Effective number of tasks, e^H(p)."""
        kept = self.weights[self.weights > 0]
        return float(np.exp(-(kept * np.log(kept)).sum()))

    @property
    def support(self) -> int:
        return int((self.weights > 0).sum())

    def array(self, key: str) -> Float[np.ndarray, "n"] | None:
        """A per-task array of `explain`, NaN where it says null; None when it is not there."""
        values = self.explain.get(key)
        return None if values is None else np.asarray(values, float)


@dataclass(frozen=True)
class Study:
    """All that a page can show."""

    name: str
    config: Mapping[str, Any]
    tasks: tuple[str, ...]
    family: Mapping[str, str]
    train: Mapping[str, int]
    heldout: Mapping[str, int]
    test: Mapping[str, int]
    notes: Mapping[str, tuple[str, ...]]
    affinities: Mapping[str, Affinity]
    mixtures: Mapping[str, Mixture]
    main: str | None
    base: Mapping[str, Any]
    runs: Mapping[str, Mapping[str, Any]]
    samples: tuple[Mapping[str, Any], ...]
    curves: Mapping[str, Float[np.ndarray, "k 2"]]

    @property
    def families(self) -> tuple[str, ...]:
        """Families in the order in which their first tasks stand."""
        return tuple(dict.fromkeys(self.family[task] for task in self.tasks))


def read_study(workdir: str | Path) -> Study:
    """Reads a workdir.

    Raises:
      FileNotFoundError: there is nothing in it to show.
      ValueError: an artefact is damaged; names it.
    """
    workdir = Path(workdir)
    config = _json(workdir / "config.json")
    described = _json(workdir / "tasks.json").get("tasks", [])
    weights = _json(workdir / "mixture" / "weights.json")
    results = _json(workdir / "evaluation" / "results.json")
    affinities = _affinities(workdir / "affinity")
    tasks = _task_names(described, weights, affinities, results)
    if not tasks:
        raise FileNotFoundError(
            f"{workdir}: nothing to show yet (no tasks.json, affinity, mixture or results)"
        )
    family = dict.fromkeys(tasks, "")
    family |= dict(zip(weights.get("tasks", ()), weights.get("families") or (), strict=False))
    family |= {task["name"]: task.get("family") or "" for task in described}
    train = dict(zip(weights.get("tasks", ()), weights.get("sizes") or (), strict=False))
    train |= {task["name"]: task["train"] for task in described if "train" in task}
    mixtures, main = _mixtures(weights, tasks)
    return Study(
        name=workdir.resolve().name,
        config=config,
        tasks=tasks,
        family=family,
        train=train,
        heldout={task["name"]: task["heldout"] for task in described if "heldout" in task},
        test={task["name"]: task["test"] for task in described if "test" in task},
        notes={task["name"]: tuple(task["notes"]) for task in described if task.get("notes")},
        affinities=affinities,
        mixtures=mixtures,
        main=main,
        base=results.get("base") or {},
        runs=results.get("runs") or {},
        samples=tuple(results.get("samples") or ()),
        curves=_curves(workdir / "runs", list(results.get("runs") or mixtures)),
    )


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; {} when there is no such file."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): {WAY_OUT}") from error


def _affinities(folder: Path) -> dict[str, Affinity]:
    """Every matrix in the folder, by the name of its file; PMI first."""
    found = {}
    for path in sorted(folder.glob("*.npz"), key=lambda path: (path.stem != "pmi", path.stem)):
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                if "affinity" not in arrays:
                    continue
                matrix = np.asarray(arrays["affinity"], float)
                names = arrays["tasks"] if "tasks" in arrays else np.arange(len(matrix))
                bounds = [arrays[key] if key in arrays else None for key in ("low", "high")]
        except (OSError, ValueError, BadZipFile) as error:
            raise ValueError(f"{path} is damaged ({error}): {WAY_OUT}") from error
        found[path.stem] = Affinity(path.stem, matrix, tuple(map(str, names)), *bounds)
    return found


def _task_names(
    described: list[Mapping[str, Any]],
    weights: Mapping[str, Any],
    affinities: Mapping[str, Affinity],
    results: Mapping[str, Any],
) -> tuple[str, ...]:
    """Task names from the first artefact that has them."""
    if described:
        return tuple(task["name"] for task in described)
    if weights.get("tasks"):
        return tuple(map(str, weights["tasks"]))
    for affinity in affinities.values():
        return affinity.tasks
    for run in (results.get("runs") or {}).values():
        return tuple(run.get("tasks", ()))
    return ()


def _mixtures(
    weights: Mapping[str, Any], tasks: tuple[str, ...]
) -> tuple[dict[str, Mixture], str | None]:
    """The mixtures, in the file's order, and the name of the main one."""
    entries = weights.get("mixtures") or {}
    if not entries and weights.get("weights"):
        entries = {"taskpgm": weights}
    position = {task: i for i, task in enumerate(weights.get("tasks", ()))}
    order = [position[task] for task in tasks if task in position]
    if len(order) != len(tasks):
        return {}, None
    mixtures = {}
    for name, entry in entries.items():
        explain = {
            key: [value[i] for i in order] if isinstance(value, list) else value
            for key, value in (entry.get("explain") or {}).items()
            if value is not None
        }
        counts = entry.get("counts")
        mixtures[name] = Mixture(
            name=name,
            weights=np.asarray(entry["weights"], float)[order],
            counts=None if counts is None else tuple(int(counts[i]) for i in order),
            affinity=_label(entry.get("affinity")),
            facts={
                key: entry[key]
                for key in ("method", "ratio", "energy", "gap")
                if entry.get(key) is not None
            },
            explain=explain,
        )
    return mixtures, _main(weights, mixtures)


def _label(affinity: Any) -> str | None:
    """The name of an affinity; a matrix written out in its place has none of its own."""
    return affinity if isinstance(affinity, str) or affinity is None else "matrix"


def _main(weights: Mapping[str, Any], mixtures: Mapping[str, Mixture]) -> str | None:
    """The mixture that the file calls the main one, or the first made from an affinity."""
    if weights.get("main") in mixtures:
        return weights["main"]
    return next(
        (name for name, mixture in mixtures.items() if mixture.affinity), next(iter(mixtures), None)
    )


def _curves(folder: Path, names: list[str]) -> dict[str, Float[np.ndarray, "k 2"]]:
    """(step, training loss) of each run, from its metrics; a last line cut short is left out."""
    curves = {}
    for name in names:
        path = folder / name / "metrics.jsonl"
        points = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(entry.get("loss"), int | float):
                points.append((entry["step"], entry["loss"]))
        if points:
            curves[name] = np.asarray(points, float)
    return curves
