"""Stage `mixture`: the mixtures that follow from the affinities, in mixture/weights.json."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from taskpgm import mixture
from taskpgm.artefact import digest, read_json, recovery_hint, write_json
from taskpgm.records import (
    MixtureRecord,
    SelectionRecord,
    Weights,
    from_json,
    to_json,
)
from taskpgm.stages import choosing, compare, sweep
from taskpgm.stages.affinity import affinities, given
from taskpgm.stages.affinity_files import (
    read_affinities,
    read_resamples,
    read_targets,
    read_transfer,
)
from taskpgm.stages.context import Context, say
from taskpgm.stages.estimate import Cost, Estimate
from taskpgm.stages.explanation import explain
from taskpgm.stages.matrix_file import TaskNames, save_arrays
from taskpgm.stages.mixture_inputs import Inputs
from taskpgm.stages.ratio import TRANSFER
from taskpgm.stages.schema import MOST
from taskpgm.stages.stage_artefact import StageArtefact

SECTIONS = ("mixture",)
MADE = "mixture"
FILE = "weights.json"
GRID = np.append(np.linspace(0, 2, 101), np.geomspace(2, 16, 60))  # ratios, near 1 the densest
FILES = ("importance", "bounds", "prior")  # keys of `mixture` that may name a file


def artefacts(context: Context) -> Iterator[StageArtefact]:
    """One file with all mixtures."""
    config = context.config
    key = digest(
        affinities(context).key,
        choosing.keys(context),
        config.affinity.bootstrap,
        config.affinity.sizes and Path(config.affinity.sizes).read_text("utf-8"),
        [
            (name, row, under.mixture.to_dict(), [contents(under.mixture[key]) for key in FILES])
            for name, row, under in sweep.mixtures(context)
        ],
        config.seed,
        None if context.weights_only else context.sizes.tolist(),
    )
    yield Mixtures(context.folder / MADE, key, context)


def contents(value: str) -> str:
    """What is in the file of that name; "" where a key's value names none."""
    path = Path(value)
    return path.read_text("utf-8") if value and path.is_file() else ""


@dataclass(frozen=True)
class Mixtures(StageArtefact):
    """For every row of `compare`: weights, counts, certificate and explanation."""

    uses_models: ClassVar[bool] = False

    def make(self) -> dict[str, Any]:
        weights, paths, solving = solve_mixtures(self.context)
        cost = choosing.measured(self.context, solving)
        save_arrays(self.folder / "paths.npz", **paths)
        write_json(self.folder / choosing.FILE, to_json(cost))
        write_json(self.folder / FILE, weights.to_json())
        for name, record in weights.mixtures.items():
            gap = f", gap {record.gap:.1e}" if record.gap is not None else ""
            say("mixture", f"{name}: {record.effective:.1f} effective tasks{gap}")
        for line in choosing.table(cost):
            say("mixture", line)
        return {}

    def cost(self, estimate: Estimate) -> Cost:
        config = self.context.config
        problem = None
        if not self.context.weights_only:
            try:
                compare.caps(self.context.sizes, config.mixture.budget, config.mixture.max_epochs)
            except ValueError as error:
                problem = str(error)
        planned = list(sweep.mixtures(self.context))
        told = {
            key: ", ".join(dict.fromkeys(str(under.mixture[key]) for _, _, under in planned))
            for key in ("budget", "ratio")
        }
        return Cost(
            f"{len(planned)} mixtures of {told['budget']} examples, ratio {told['ratio']}",
            problem=problem,
        )

    def summary(self) -> str:
        return f"{len(list(sweep.mixtures(self.context)))} mixtures in {self.folder / FILE}"


def read_weights(folder: Path) -> Weights:
    """The mixtures of a workdir.

    Raises:
      ValueError: the file is missing or damaged; names it and says what to remove.
    """
    path = folder / MADE / FILE
    value = read_json(path)
    try:
        return from_json(Weights, value)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {recovery_hint(path)}") from error


def sizes(context: Context, names: list[str]) -> np.ndarray | None:
    """Training examples per task [n]; None if they are unknown (a matrix from a file)."""
    section = context.config.affinity
    if not context.weights_only:
        return context.sizes
    if not section.sizes:
        return None
    try:
        given = json.loads(Path(section.sizes).read_text(encoding="utf-8"))
        given = {name: int(size) for name, size in given.items()}
        strange = next((size for size in given.values() if not 0 <= size <= MOST), None)
        if strange is not None:
            raise ValueError(f"{strange} is no number of examples")
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{section.sizes}: not a JSON object of tasks and their numbers of examples ({error})"
        ) from error
    absent = [name for name in names if name not in given]
    if absent:
        raise ValueError(f"{section.sizes}: no size of task {absent[0]!r}")
    return np.array([given[name] for name in names])


def solve_mixtures(context: Context) -> tuple[Weights, dict[str, np.ndarray], dict[str, float]]:
    """All mixtures of `compare`, the ratio path of each affinity as arrays (`ratio_paths`), and the
    seconds that the weights of each mixture took."""
    matrices = read_affinities(context.folder)
    names = next(iter(matrices.values()))[1]
    size = sizes(context, names)
    learnt = read_transfer(context.folder)
    targets, relevance = read_targets(context.folder)
    inputs = Inputs(
        **known(context, TaskNames(names, targets), size),
        affinities={kind: S for kind, (S, _) in matrices.items()},
        resamples=read_resamples(context.folder),
        relevance=relevance,
        relevance_resamples=read_resamples(context.folder, "relevance"),
        share=None if learnt is None else learnt["share"],
        evidence=choosing.evidence(context),
    )
    under, planned = partial(inputs_under, inputs, learnt), list(sweep.mixtures(context))
    made, solving = {}, {}
    for name, row, config in planned:
        inputs_of_row = choosing.with_runs(under(config.mixture), name)
        made[name], solving[name] = solve_mixture(row, inputs_of_row)
    weights = Weights(
        tasks=names,
        families=None if context.weights_only else inputs.families,
        sizes=None if size is None else size.tolist(),
        main=next((name for name, m in made.items() if m.gap is not None), next(iter(made))),
        mixtures=made,
        targets=targets,
    )
    return weights, ratio_paths(under(planned[0][2].mixture)), solving


def inputs_under(inputs: Inputs, learnt: Mapping[str, np.ndarray] | None, section: Any) -> Inputs:
    """The inputs under a section `mixture`: its caps, and the losses that its budget promises."""
    size = inputs.sizes
    return replace(
        inputs,
        config=section.to_dict(),
        cap=None if size is None else compare.caps(size, section.budget, section.max_epochs),
        predicted=None if learnt is None else predicted_loss(section, learnt, size),
    )


def known(context: Context, names: TaskNames, size: np.ndarray | None) -> dict[str, Any]:
    """What is known of `Inputs` before anything is computed; caps and law are `inputs_under`'s."""
    config = context.config
    family = {} if context.weights_only else {task.name: task.family for task in context.judged}
    return {
        "names": names.mixed,
        "families": [family.get(name, "") for name in names.mixed],
        "targets": names.targets,
        "target_families": [family.get(name, "") for name in names.targets],
        "sizes": size,
        "cap": None,
        "config": config.mixture.to_dict(),
        "seed": config.seed,
    }


def check_wishes(context: Context) -> None:
    """Refuses, before anything is spent, what is wanted of mixtures and cannot be had.

    Raises:
      ValueError: names the key or the row.
    """
    section = context.config.affinity
    if section.matrix:
        names, _ = given(context)
    else:
        names = TaskNames(context.names, [task.name for task in context.targets])
        if names.targets and section.contexts == "pair":
            raise ValueError(
                "affinity.contexts=pair: targets have no model of their own to pair with: set pool"
            )
    size = sizes(context, names.mixed)
    nothing = Inputs(affinities={}, resamples={}, **known(context, names, size))
    for _, row, under in sweep.mixtures(context):
        inputs = inputs_under(nothing, None, under.mixture)
        inputs.check()
        compare.check_row(row, inputs)


def ratio_paths(inputs: Inputs) -> dict[str, np.ndarray]:
    """The ratio path of each affinity, as arrays KIND_ratios [k], KIND_weights [k, n].

    Between breakpoints weights are linear, and what follows from them is not: on a grid KIND_grid
    [g] there are KIND_effective [g] (effective tasks) and, where losses are known, KIND_predicted
    [g] in nats.
    """
    found = {}
    for kind in (*inputs.affinities, *([] if inputs.share is None else [TRANSFER])):
        path = inputs.path(kind)
        found[f"{kind}_ratios"] = path.ratios
        found[f"{kind}_weights"] = path.weights
        grid = np.unique(np.concatenate([path.ratios, GRID[GRID <= path.ratios[-1]]]))
        along = path.at(grid)
        found[f"{kind}_grid"] = grid
        found[f"{kind}_effective"] = np.asarray(mixture.effective_tasks(along))
        if inputs.predicted is not None:
            found[f"{kind}_predicted"] = np.asarray(inputs.predicted.loss(along, inputs.importance))
    return found


def predicted_loss(
    section: Any, learnt: Mapping[str, np.ndarray], size: np.ndarray | None
) -> mixture.PredictedLoss:
    """The law of method 12."""
    seen = learnt.get("seen")
    return mixture.PredictedLoss.from_losses(
        learnt["loss"],
        learnt.get("base_loss"),
        budget=None if seen is None else section.budget,
        sizes=None if seen is None else size,
        seen=seen,
    )


def solve_mixture(name: str, inputs: Inputs) -> tuple[MixtureRecord, float]:
    """One mixture: its weights and counts, its certificate and its explanation; and the seconds
    that its weights took."""
    start = time.monotonic()
    row, inputs, made = compare.make(name, inputs)
    seconds = time.monotonic() - start
    solution = made if isinstance(made, mixture.Solution | mixture.Selection) else None
    selection = made if isinstance(made, mixture.Selection) else None
    weights = np.asarray(getattr(made, "weights", made), np.float64)
    section = inputs.config
    counts = mixture.allocate(
        weights, section["budget"], sizes=inputs.sizes, max_epochs=section["max_epochs"]
    )
    record = MixtureRecord(
        weights=weights.tolist(),
        counts=[int(count) for count in counts],
        method=made.method if isinstance(made, mixture.Solution) else name,
        effective=float(mixture.effective_tasks(weights)),
        affinity=row.affinity,
        ratio=inputs.ratio(row.affinity) if row.affinity else None,
        energy=float(solution.energy) if solution else None,
        gap=float(solution.gap) if solution else None,
        explain=explain(row.affinity, inputs, weights, solution) if row.affinity else None,
        predicted=None
        if inputs.predicted is None
        else np.asarray(inputs.predicted.per_task(weights)).tolist(),
        selection=None
        if selection is None
        else SelectionRecord(
            order=selection.order.tolist(),
            share=selection.share.tolist(),
            guarantee=float(selection.guarantee),
        ),
    )
    return record, seconds
