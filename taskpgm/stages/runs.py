"""Stage `runs`: the base fine-tuned on every mixture with every seed, in runs/NAME."""

from collections.abc import Iterator

import jax

from taskpgm.stages import mixture
from taskpgm.stages.context import Context, say
from taskpgm.stages.run_groups import groups
from taskpgm.stages.run_models import MADE, Run, RunModel, run_key
from taskpgm.stages.stage_artefact import StageArtefact
from taskpgm.stages.steps import run_steps
from taskpgm.stages.sweep import Point, points

__all__ = ["MADE", "SECTIONS", "artefacts", "planned_runs"]

SECTIONS = ("train",)


def planned_runs(context: Context) -> list[Run]:
    """Every point under every seed, the first seed of all points first."""
    (mixtures,) = mixture.artefacts(context)
    counts: dict[str, tuple[int, ...] | None] = {}
    if mixtures.is_done():
        weights = mixture.read_weights(context.folder)
        counts = {name: tuple(record.counts or ()) for name, record in weights.mixtures.items()}
    of_label: dict[str, Point] = {}
    for point in points(context):
        known = of_label.setdefault(point.label, point)
        if point.seeds > known.seeds:
            of_label[point.label] = point
    return [
        Run(point, seed, counts.get(point.name))
        for seed in range(max(point.seeds for point in of_label.values()))
        for point in of_label.values()
        if seed < point.seeds
    ]


def artefacts(context: Context) -> Iterator[StageArtefact]:
    """The model of each run that is done or trains alone; then the groups that train together."""
    config = context.config
    modes = {point.config.train.mode for point in points(context)}
    low = "full" in modes and jax.numpy.dtype(config.base.param_dtype).itemsize == 2
    if low:
        say(
            "runs",
            f"weights are kept in {config.base.param_dtype}: an update below 1/256 of a weight is "
            "lost. config.base.param_dtype=float32 keeps it (config.base.dtype may stay)",
        )
    models = []
    for run in planned_runs(context):
        steps = run_steps(context, run.point.config) if run.counts else 0
        folder = context.folder / MADE / run.name
        key = run_key(context, run, steps)
        model = RunModel(folder, key, context, run.name, run=run, alone=key, steps=steps)
        models.append(model.as_made())
    together = groups(context, models)
    taken = {model.title for group in together for model in group.models}
    yield from (model for model in models if model.title not in taken)
    yield from together
