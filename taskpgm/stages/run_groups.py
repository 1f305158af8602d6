"""Runs of one shape that train side by side in one program (`train.group`): which, and how.

A group is one unit. It is planned once, in runs/.groups/plan.json, because the last bits of a model
depend on who trained beside it, and its key names them: after a restart a run goes on in the same
group, or is done.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskpgm import training
from taskpgm.artefact import STARTED, digest, read_json, remove, write_json
from taskpgm.multihost import on_primary
from taskpgm.stages.context import Context, say
from taskpgm.stages.decoders import with_lora
from taskpgm.stages.estimate import Cost, Estimate
from taskpgm.stages.run_models import MADE, RunModel, run_settings, runs_cost, train
from taskpgm.stages.stage_artefact import StageArtefact

FOLDER, PLAN = ".groups", "plan.json"


@dataclass(frozen=True)
class RunGroup(StageArtefact):
    """Runs that train together, in folders of their own; checkpoints are the group's.

    models: at least two, under the keys of runs that train together (`RunModel.beside`).
    """

    models: tuple[RunModel, ...] = field(default=(), repr=False)

    def is_done(self) -> bool:
        return all(model.is_done() for model in self.models)

    def begin(self) -> None:
        """Nothing: every run has its own folder."""

    def finish(self, **facts: Any) -> None:
        """Nothing: every run has its own mark."""

    def make(self) -> dict[str, Any]:
        start, models = time.monotonic(), self.models
        rows = [model.rows() for model in models]
        for model, own in zip(models, rows, strict=True):
            if not model.is_done():
                model.begin()
            model.say_begin(own)
        say("runs", f"{self.title}: {len(models)} runs side by side")
        seconds = None
        made = train(self.context, models, rows, self.folder, self.title)
        for model, own, trained in zip(models, rows, made, strict=True):
            seconds = seconds or round((time.monotonic() - start) / len(models), 1)
            if not model.is_done():  # where the group was killed while its models were saved
                model.save(*trained)
                model.finish(**model.facts(own), seconds=seconds)
        remove(self.folder)
        return {}

    def cost(self, estimate: Estimate) -> Cost:
        count = len(self.models)
        if self.context.config.train.group:
            return runs_cost(estimate, self.models, count)
        # Of a plan: how many of them the machine that is planned for has room for.
        return runs_cost(
            estimate, self.models, evened(count, most(self.models[0], count, estimate))
        )

    def summary(self) -> str:
        return f"{len(self.models)} runs trained, in {self.context.folder / MADE}"


def groups(context: Context, models: Sequence[RunModel]) -> list[RunGroup]:
    """The groups of those runs that are not done and do not train alone."""
    of_name = {model.title: model for model in models}
    found = []
    for names in plan(context, models):
        keys = [of_name[name].alone for name in names]
        together = tuple(of_name[name].beside(keys) for name in names)
        title = f"{names[0]}+{len(names) - 1}"
        found.append(RunGroup(folder_of(context, keys), digest(keys), context, title, together))
    return found


def folder_of(context: Context, keys: Sequence[str]) -> Path:
    """Of the group of the runs with these keys."""
    return context.folder / MADE / FOLDER / digest(list(keys))


@on_primary
def plan(context: Context, models: Sequence[RunModel]) -> list[list[str]]:
    """Names of the runs of each group: first of those that an earlier launch has planned, then of
    new ones.

    What was planned under another `train.group` stays where it has checkpoints. A run that has
    checkpoints of its own ends alone.
    """
    asked, path = context.config.train.group, context.folder / MADE / FOLDER / PLAN
    of_name = {model.title: model for model in models}
    missing = {model.title: model for model in models if not model.is_done()}

    def stays(group: Mapping[str, Any]) -> bool:
        runs, keys = group["runs"], tuple(group["runs"].values())
        if runs.keys() - of_name.keys() or not runs.keys() & missing.keys():
            return False
        for model in map(of_name.__getitem__, runs):
            # Some are done where it was killed while its models were saved.
            free = not begun_alone(model) if model.title in missing else model.together == keys
            if model.alone != runs[model.title] or not free:
                return False
        return group["asked"] == asked or has_checkpoints(folder_of(context, keys))

    kept = [group for group in read_json(path, []) if stays(group)]
    taken = {name for group in kept for name in group["runs"]}
    of_shape: dict[str, list[RunModel]] = {}
    for model in missing.values():
        if model.title not in taken and not begun_alone(model):
            of_shape.setdefault(shape(model), []).append(model)
    new = []
    for same in of_shape.values():
        # A plan for another machine is to find out how many that has room for.
        several = asked or (len(same) if context.planning else most(same[0], len(same)))
        size = evened(len(same), several)
        for at in range(0, len(same), size):
            runs = {model.title: model.alone for model in same[at : at + size]}
            if len(runs) > 1:
                new.append({"asked": asked, "runs": runs})
    if new and not context.planning and all(model.run.counts for model in models):
        write_json(path, [*kept, *new])
    return [list(group["runs"]) for group in (*kept, *new)]


def shape(model: RunModel) -> str:
    """What runs have in common that can train side by side: all settings, and the steps."""
    config = model.run.point.config
    steps = config.train.steps or [config.train.epochs, config.mixture.budget]
    return digest(run_settings(model.run), steps)


def begun_alone(model: RunModel) -> bool:
    """Whether an interrupted launch has trained it alone."""
    started = model.folder / STARTED
    if not started.is_file() or read_json(started)["key"] != model.alone:
        return False
    return has_checkpoints(model.folder)


def has_checkpoints(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("[0-9]*"))


def most(model: RunModel, count: int, estimate: Estimate | None = None) -> int:
    """How many of `count` such runs have room on a device; the estimate is rough, and one is
    always tried."""
    context, section = model.context, model.section
    config = with_lora(context.decoder(context.base), section)
    try:
        return training.group_size(
            config,
            count,
            estimate.machine.memory if estimate else None,
            rows=section.batch_size,
            length=context.config.tasks.length,
            accumulate=section.accumulate,
            mesh=estimate.mesh if estimate else context.mesh.shape,
        )
    except ValueError:
        return 1


def evened(count: int, most: int) -> int:
    """The size of groups of about the same size, at most `most`."""
    return -(-count // -(-count // most))
