"""Reads what a workdir holds into plain values; the only file of the report that opens artefacts.

Every piece is optional: a page from an affinity matrix alone has no runs, a page during a run has
no results yet. What is missing is empty here, and the page leaves its section out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float

from taskpgm.artefact import read_arrays, recovery_hint
from taskpgm.records import (
    Choosing,
    Comparison,
    Results,
    SweepPoint,
    TaskList,
    Weights,
    from_json,
    to_json,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Affinity:
    """S over tasks, with the bounds of its interval where there are any. Each [n n]."""

    kind: str
    matrix: Float[np.ndarray, "n n"]
    tasks: tuple[str, ...]
    low: Float[np.ndarray, "n n"] | None = None
    high: Float[np.ndarray, "n n"] | None = None


@dataclass(frozen=True)
class StudyTransfer:
    """G, row helps column, with the bounds of its interval; `learnt`: by its own model. Columns
    are the tasks and then the targets."""

    tasks: tuple[str, ...]
    share: Float[np.ndarray, "n k"]
    low: Float[np.ndarray, "n k"]
    high: Float[np.ndarray, "n k"]
    learnt: Bool[np.ndarray, " k"]
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class RatioPath:
    """The breakpoints of an affinity's exact mixtures: ratios [k], weights [k n]; and on a grid of
    ratios the effective tasks and, where it is known, the predicted loss."""

    ratios: Float[np.ndarray, " k"]
    weights: Float[np.ndarray, "k n"]
    grid: Float[np.ndarray, " g"]
    effective: Float[np.ndarray, " g"]
    predicted: Float[np.ndarray, " g"] | None = None


@dataclass(frozen=True)
class Mixture:
    """One mixture: its weights [n] in the order of `Study.tasks`, and what explains them."""

    name: str
    weights: Float[np.ndarray, " n"]
    counts: tuple[int, ...] | None = None
    affinity: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)  # method, ratio, energy, gap, ...
    explain: Mapping[str, Any] = field(default_factory=dict)  # arrays [n] and the energy's terms
    predicted: Float[np.ndarray, "n"] | None = None  # loss of each task, nats per token
    selection: Mapping[str, Any] | None = None  # of SelectionRecord

    @property
    def effective(self) -> float:
        """Effective number of tasks, e^H(p)."""
        kept = self.weights[self.weights > 0]
        return float(np.exp(-(kept * np.log(kept)).sum()))

    @property
    def support(self) -> int:
        return int((self.weights > 0).sum())

    def held_families(self) -> dict[str, float]:
        """Families that a bound holds, by what a unit more of their weight adds to the energy."""
        costs = self.explain.get("family_cost") or {}
        return {family: cost for family, cost in costs.items() if abs(cost) > 1e-9}

    def array(self, key: str) -> Float[np.ndarray, " n"] | None:
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
    targets: tuple[str, ...] = ()  # judged, not mixed
    transfer: StudyTransfer | None = None
    paths: Mapping[str, RatioPath] = field(default_factory=dict)
    comparison: Mapping[str, Comparison] = field(default_factory=dict)  # over tasks, over families
    sweep: tuple[SweepPoint, ...] = ()
    choosing: Choosing | None = None

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
    listed = _record(TaskList, workdir / "tasks.json")
    weights = _record(Weights, workdir / "mixture" / "weights.json")
    results = _record(Results, workdir / "evaluation" / "results.json")
    affinities = _affinities(workdir / "affinity")
    entries = listed.tasks if listed else []
    targets = tuple(entry.name for entry in entries if entry.target)
    if entries:
        tasks = tuple(entry.name for entry in entries if not entry.target)
    elif weights:
        tasks = tuple(weights.tasks)
    elif affinities:
        tasks = next(iter(affinities.values())).tasks
    else:
        raise FileNotFoundError(
            f"{workdir}: nothing to show yet (no tasks.json, affinity or mixture)"
        )
    family, train = dict.fromkeys(tasks, ""), {}
    if weights:
        family |= dict(zip(weights.tasks, weights.families or (), strict=False))
        train = dict(zip(weights.tasks, weights.sizes or (), strict=False))
    mixtures = _mixtures(weights, tasks) if weights else {}
    return Study(
        name=workdir.resolve().name,
        config=_json(workdir / "config.json"),
        tasks=tasks,
        family=family | {entry.name: entry.family for entry in entries},
        train=train | {entry.name: entry.train for entry in entries if not entry.target},
        heldout={entry.name: entry.heldout for entry in entries},
        test={entry.name: entry.test for entry in entries},
        notes={entry.name: tuple(entry.notes) for entry in entries if entry.notes},
        affinities=affinities,
        mixtures=mixtures,
        main=weights.main if weights and mixtures else None,
        base=_told(results.base) if results else {},
        runs={name: _told(run) for name, run in results.runs.items()} if results else {},
        samples=tuple(map(to_json, results.samples)) if results else (),
        curves=_curves(workdir / "runs", list(results.runs if results else mixtures)),
        targets=targets or (tuple(weights.targets) if weights else ()),
        transfer=_transfer(workdir / "affinity" / "transfer.npz"),
        paths=_paths(workdir / "mixture" / "paths.npz"),
        comparison=results.comparison if results else {},
        sweep=tuple(results.sweep) if results else (),
        choosing=_record(Choosing, workdir / "mixture" / "choosing.json"),
    )


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; {} when there is no such file."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): {recovery_hint(path)}") from error


def _record(kind: type[T], path: Path) -> T | None:
    """The record in a file; None when there is no such file."""
    value = _json(path)
    if not value:
        return None
    try:
        return from_json(kind, value)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {recovery_hint(path)}") from error


def _told(record: Any) -> dict[str, Any]:
    """A record's fields that say something."""
    return {name: value for name, value in to_json(record).items() if value is not None}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an archive; {} when there is no such file."""
    return read_arrays(path) if path.is_file() else {}


def _affinities(folder: Path) -> dict[str, Affinity]:
    """Every matrix in the folder, by the name of its file; PMI first."""
    found = {}
    for path in sorted(folder.glob("*.npz"), key=lambda path: (path.stem != "pmi", path.stem)):
        arrays = _arrays(path)
        if "affinity" in arrays:
            matrix = np.asarray(arrays["affinity"], float)
            names = arrays.get("tasks", np.arange(len(matrix)))
            bounds = arrays.get("low"), arrays.get("high")
            found[path.stem] = Affinity(path.stem, matrix, tuple(map(str, names)), *bounds)
    return found


def _transfer(path: Path) -> StudyTransfer | None:
    """Who helps whom, where losses were measured."""
    found = _arrays(path)
    if not found:
        return None
    told = {name: found[name] for name in ("share", "low", "high", "learnt")}
    targets = tuple(map(str, found.get("targets", ())))
    return StudyTransfer(tuple(map(str, found["tasks"])), **told, targets=targets)


def _paths(path: Path) -> dict[str, RatioPath]:
    """The ratio paths, by affinity."""
    found = _arrays(path)
    kinds = [name.removesuffix("_ratios") for name in found if name.endswith("_ratios")]
    parts = ("ratios", "weights", "grid", "effective", "predicted")
    return {kind: RatioPath(*(found.get(f"{kind}_{part}") for part in parts)) for kind in kinds}  # type: ignore


def _mixtures(weights: Weights, tasks: tuple[str, ...]) -> dict[str, Mixture]:
    """The mixtures, in the file's order, over `tasks`; none where it is of other tasks."""
    position = {task: i for i, task in enumerate(weights.tasks)}
    if set(position) != set(tasks):
        return {}
    order = [position[task] for task in tasks]
    mixtures = {}
    for name, entry in weights.mixtures.items():
        told = _told(entry)
        explain = {
            key: [value[i] for i in order] if isinstance(value, list) else value
            for key, value in (told.get("explain") or {}).items()
            if value is not None
        }
        mixtures[name] = Mixture(
            name=name,
            weights=np.asarray(entry.weights, float)[order],
            counts=tuple(entry.counts[i] for i in order) if entry.counts else None,
            affinity=entry.affinity,
            facts={k: told[k] for k in ("method", "ratio", "energy", "gap") if k in told},
            explain=explain,
            predicted=None if entry.predicted is None else np.array(entry.predicted)[order],
            selection=told.get("selection"),
        )
    return mixtures


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
