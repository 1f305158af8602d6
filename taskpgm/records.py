"""What passes between stages and out of the house as JSON: one dataclass a file, for whoever writes
and whoever reads.

`mixture/weights.json` is `Weights`, `mixture/choosing.json` is `Choosing`,
`evaluation/results.json` is `Results`, `tasks.json` is `TaskList`. Numbers are Python's, lists are
in the order of `tasks`, None is what does not apply.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


def to_json(record: Any) -> Any:
    """A record as dicts, lists and scalars."""
    return dataclasses.asdict(record)


def from_json(kind: type[T], value: Any) -> T:
    """The record of `kind` that `to_json` made this of. Keys that it does not know are left out.

    Raises:
      ValueError: a field is missing, or is not of its kind.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{kind.__name__} is an object of JSON, not {type(value).__name__}")
    hints, found = typing.get_type_hints(kind), {}
    for part in dataclasses.fields(kind):  # type: ignore[arg-type]
        if part.name in value:
            found[part.name] = _read(hints[part.name], value[part.name])
        elif part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING:
            raise ValueError(f"{kind.__name__} has no field {part.name!r}")
    return kind(**found)


def _read(hint: Any, value: Any) -> Any:
    """`value`, with the records inside it made."""
    if isinstance(hint, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return None if value is None else _read(kinds[0], value)
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value)  # type: ignore[arg-type]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        return {key: _read(inner[1], each) for key, each in dict(value).items()}
    if origin is list:
        return [_read(inner[0], each) for each in list(value)]
    return value


# --- tasks.json ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class TaskEntry:
    """A task: how many examples each split has, a hash of all, and what loading decided."""

    name: str
    family: str
    train: int
    heldout: int
    test: int
    hash: str
    notes: list[str] = field(default_factory=list)
    target: bool = False  # judged, not mixed


@dataclass(frozen=True)
class TaskList:
    """All tasks, in their order, targets last, and the hash of all that they are."""

    key: str
    tasks: list[TaskEntry]


# --- mixture/weights.json ------------------------------------------------------------------------
@dataclass(frozen=True)
class ExplanationRecord:
    """Why a mixture is what it is (method 11). Arrays are by task; intervals (method 10) only of
    an exact mixture whose affinity was resampled."""

    representativeness: list[float]
    redundancy: list[float]
    reduced_cost: list[float | None]
    energy_unary: float
    energy_pairwise: float
    low: list[float] | None = None
    high: list[float] | None = None
    kept_share: list[float] | None = None
    family_cost: dict[str, float] | None = None  # of families held at a bound


@dataclass(frozen=True)
class SelectionRecord:
    """The tasks that greedy selection took (method 8), in order: indices, the share of f(all) that
    the first 1, 2, ... of them reach, and the share of the best subset's f that theory grants."""

    order: list[int]
    share: list[float]
    guarantee: float


@dataclass(frozen=True)
class MixtureRecord:
    """A row of `compare`: its weights (they sum to 1), the examples that they come to, and for one
    that minimises an energy its value and the gap that certifies it. `predicted` is the loss of
    each task, and then each target, that the law of method 12 expects of a model trained on it,
    nats per token."""

    weights: list[float]
    counts: list[int] | None
    method: str
    effective: float  # tasks, e^H(weights)
    affinity: str | None = None
    ratio: float | None = None
    energy: float | None = None
    gap: float | None = None
    explain: ExplanationRecord | None = None
    predicted: list[float] | None = None
    selection: SelectionRecord | None = None


@dataclass(frozen=True)
class Weights:
    """All mixtures compared. `main` is the first that minimises an energy, or the first."""

    tasks: list[str]
    main: str
    mixtures: dict[str, MixtureRecord]
    families: list[str] | None = None  # None, like sizes, where only a matrix was given
    sizes: list[int] | None = None  # training examples
    targets: list[str] = field(default_factory=list)  # judged, not mixed

    def to_json(self) -> dict[str, Any]:
        """With the main mixture's fields at the top as well, where other programs look first."""
        top = to_json(self.mixtures[self.main])
        return {**to_json(self), **{name: v for name, v in top.items() if name != "explain"}}


# --- mixture/choosing.json -----------------------------------------------------------------------
@dataclass(frozen=True)
class ChoosingCost:
    """What was spent: tokens trained on and scored, padding counted, floating-point operations as a
    plan counts them, and seconds on this machine (None in a plan)."""

    trained: int
    scored: int
    flops: float
    seconds: float | None = None


@dataclass(frozen=True)
class RowCost:
    """What it took to choose a mixture, as if it were the only one: all `parts` that it rests on,
    whoever shares them, and `solving`, the seconds from them to its weights. `total` is None where
    it rests on a matrix that was given."""

    parts: list[str]
    solving: float | None = None
    total: ChoosingCost | None = None


@dataclass(frozen=True)
class Choosing:
    """What choosing cost: of every row, and once of every part that rows rest on."""

    rows: dict[str, RowCost]
    parts: dict[str, ChoosingCost]


# --- evaluation/NAME/measures.json and evaluation/results.json -----------------------------------
@dataclass(frozen=True)
class Measures:
    """One model, one seed: by task, and by target, what `evaluation.evaluate` returns, by benchmark
    what the harness does."""

    tasks: dict[str, dict[str, Any]]
    harness: dict[str, Any] | None = None
    targets: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def judged(self) -> dict[str, dict[str, Any]]:
        """Of tasks and targets."""
        return {**self.tasks, **self.targets}

    @property
    def losses(self) -> dict[str, float | None]:
        """The test loss of each task."""
        return {task: report["loss"] for task, report in self.tasks.items()}


@dataclass(frozen=True)
class ModelResult:
    """A model, or the mean over the seeds of a mixture: {"loss", "exact_match"} by task, by family
    and on average; `seeds` holds each seed's averages. Targets stand apart, and in no other
    average. What was spent is None for the base."""

    tasks: dict[str, dict[str, Any]]
    families: dict[str, dict[str, Any]]
    mean: dict[str, float | None]
    family_mean: dict[str, float | None]
    targets: dict[str, dict[str, Any]] = field(default_factory=dict)
    target_mean: dict[str, float | None] | None = None
    harness: dict[str, Any] | None = None
    seeds: list[dict[str, dict[str, float | None]]] = field(default_factory=list)
    steps: int | None = None
    epochs: float | None = None
    examples: int | None = None
    tokens: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Sample:
    """A test example, and what each model answered."""

    task: str
    family: str
    prompt: str
    response: str
    predictions: dict[str, str]


@dataclass(frozen=True)
class SweepPoint:
    """The models of a row of `compare` under `settings` ({key of the config: value}), of as many
    `seeds`: means over these, the standard deviation `sd` of the loss, and the probability that it
    is the `best` of all rows of the same budget and training. What was spent is of one model."""

    name: str
    row: str
    settings: dict[str, Any]
    seeds: int
    loss: float | None
    sd: float | None
    family_loss: float | None
    exact_match: float | None
    best: float | None
    examples: int | None
    tokens: int | None
    steps: int | None


@dataclass(frozen=True)
class PairComparison:
    """Mean test loss of `first` minus that of `second`, nats per token: below 0 `first` is better.
    `low` and `high` bound a 95% interval; it has `wins` and `ties` among the tasks or families."""

    first: str
    second: str
    difference: float
    low: float | None  # None where there is nothing to draw from: one seed of one task
    high: float | None
    wins: int
    ties: int


@dataclass(frozen=True)
class Comparison:
    """Runs against each other, over `parts` tasks or families and `seeds` seeds: `ranked` best
    first, all pairs, the probability that each is the `best`, and how many seeds would tell the
    first two apart. None is what one seed cannot tell; `left_out` are runs without a loss."""

    ranked: list[str]
    parts: int
    seeds: int
    pairs: list[PairComparison]
    best: dict[str, float] | None = None
    seeds_needed: int | None = None
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Results:
    """Everything measured: the base, each mixture, how these compare over "tasks" and "families",
    and a few answers to read; where the workdir holds models of several settings, all of them."""

    base: ModelResult
    runs: dict[str, ModelResult]
    samples: list[Sample] = field(default_factory=list)
    comparison: dict[str, Comparison] = field(default_factory=dict)
    sweep: list[SweepPoint] = field(default_factory=list)
