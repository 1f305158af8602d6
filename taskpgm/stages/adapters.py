"""Stage `adapters`: one model per task, many side by side in one program, under adapters/TASK."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from taskpgm import models, tasks, training
from taskpgm.artefact import digest, read_json, remove, write_json
from taskpgm.multihost import on_primary
from taskpgm.stages.adapter_files import (
    MADE,
    ImportedModels,
    PeftFolders,
    adapter,
    adapter_key,
    adapter_seconds,
)
from taskpgm.stages.context import Context, say
from taskpgm.stages.decoders import trained_axes, with_lora
from taskpgm.stages.estimate import FLOAT32, Cost, Estimate, fits, idle
from taskpgm.stages.stage_artefact import StageArtefact, Unit

SECTIONS = ("proxy", "adapters")


def artefacts(context: Context) -> Iterator[StageArtefact]:
    """All single-task models as one artefact, because they are grouped for training together."""
    section, folder = context.config.adapters, context.folder / MADE
    key = digest([adapter_key(context, task) for task in context.tasks])
    kind = ImportedModels if section.source else SingleTaskModels
    yield kind(folder, key, context)
    if section.peft:
        yield PeftFolders(folder, key, context, "PEFT")


@dataclass(frozen=True)
class SingleTaskModels(StageArtefact):
    """adapters/: a folder per task, each an artefact with a key of its own."""

    def is_done(self) -> bool:
        return not self.missing()

    def begin(self) -> None:
        """Nothing: the finished models of other tasks stay."""

    def finish(self, **facts: Any) -> None:
        """Nothing: every task has its own mark."""

    def missing(self) -> list[tasks.Task]:
        """The tasks that have no model yet."""
        return [task for task in self.context.tasks if not adapter(self.context, task).is_done()]

    def make_parts(self, share: Callable[[Sequence[Unit]], None]) -> None:
        """The groups, each named by its first task."""
        training_run, made = GroupTraining(self.context), partial(adapter, self.context)
        groups = training_run.groups(self.missing())
        units = [
            Unit(
                group[0].name,
                lambda group=group: all(made(task).is_done() for task in group),
                partial(training_run.train, group, f"adapters {number}/{len(groups)}"),
            )
            for number, group in enumerate(groups, 1)
        ]
        share(units)

    def planned_parts(self) -> Sequence[tuple[str, bool]]:
        path, context = self.folder / ".groups" / "plan.json", self.context
        of_key = {adapter_key(context, task): adapter(context, task) for task in context.tasks}
        planned = read_json(path, [])
        return [
            (of_key[keys[0]].folder.name, all(of_key[key].is_done() for key in keys))
            for keys in planned
            if set(keys) <= of_key.keys()
        ]

    def make(self) -> dict[str, Any]:
        context, missing = self.context, self.missing()
        section = context.config.adapters
        training_run = GroupTraining(context)
        groups = training_run.groups(missing)
        steps = [training_run.steps(task) for group in groups for task in group]
        say(
            "adapters",
            f"{len(missing)} of {len(context.tasks)} tasks to train ({section.mode}), up to "
            f"{max(map(len, groups))} side by side, {min(steps)} to {max(steps)} steps each",
        )
        for number, group in enumerate(groups, 1):
            training_run.train(group, f"adapters {number}/{len(groups)}")
        return {}

    def cost(self, estimate: Estimate) -> Cost:
        context, section = self.context, self.context.config.adapters
        length, missing = context.config.tasks.length, len(self.missing())
        config = with_lora(estimate.decoder(context.proxy), section)
        steps = [adapter_steps(rows, section) for rows in estimate.adapter_rows]
        steps.sort(reverse=True)
        shape = {"rows": section.batch_size, "length": length, "mesh": estimate.mesh}
        problem = None
        try:
            group = section.group or group_size(context, config, len(steps), estimate)
        except ValueError as error:
            group, problem = 1, str(error)
        memory = training.estimate_memory(config, group=group, **shape).total
        used = estimate.used(section.batch_size, group)
        problem = problem or fits(estimate, memory, "adapters.group, adapters.batch_size")
        problem = problem or idle(estimate, used, section.batch_size, "adapters.batch_size")
        # The tasks of a group are computed until the longest of them ends.
        groups = [steps[at : at + group] for at in range(0, len(steps), group)]
        tokens = sum(len(each) * each[0] for each in groups) * section.batch_size * length
        each = training.num_adapter_params(config) if config.lora else config.num_params
        return Cost(
            f"{len(steps)} x {each / 1e6:,.2f}M {section.mode} parameters, {group} side by side, "
            f"{min(steps)} to {max(steps)} steps, {tokens:,} tokens with padding",
            tokens * training.flops_per_token(config, length, estimate.scored_share(context.proxy)),
            # The models, and two checkpoints of one group, each with two moments per weight.
            FLOAT32 * each * (len(steps) + 2 * 3 * group),
            memory,
            problem,
            done=(len(steps) - missing, len(steps)),
            trained=tokens,
            share=used,
        )

    def seconds(self) -> float:
        return sum(adapter_seconds(self.context, task) for task in self.context.tasks)

    def summary(self) -> str:
        return f"{len(self.context.tasks)} models of one task each"


class GroupTraining:
    """Trains groups of tasks. The base is loaded once, each task's rows when they are needed."""

    def __init__(self, context: Context):
        self.context = context
        self.section = context.config.adapters
        config, self.params = context.load_model(context.proxy)
        self.config = with_lora(config, self.section)
        self._rows: dict[str, tasks.Rows] = {}

    @cached_property
    def optimizer(self) -> training.Optimizer:
        return training.make_optimizer(self.section.optimizer.to_dict())

    def rows(self, task: tasks.Task) -> tasks.Rows:
        if task.name not in self._rows:
            self._rows[task.name] = self.context.rows(self.context.proxy, task.train, task.name)
        return self._rows[task.name]

    def steps(self, task: tasks.Task) -> int:
        return adapter_steps(len(self.rows(task).tokens), self.section)

    def groups(self, missing: Sequence[tasks.Task]) -> list[list[tasks.Task]]:
        """Which tasks train side by side."""
        task_of = {adapter_key(self.context, task): task for task in self.context.tasks}
        steps = {task.name: self.steps(task) for task in missing}
        plan = plan_groups(self.context, self.config, missing, steps)
        return [[task_of[key] for key in keys] for keys in plan]

    def train(self, group: Sequence[tasks.Task], title: str) -> None:
        """Trains the models of a group in one program and saves each."""
        context, section, config = self.context, self.section, self.config
        made = [adapter(context, task) for task in group]
        streams: list[Any] = [
            tasks.stream(
                [self.rows(t)],
                batch_size=section.batch_size,
                seed=context.seed_of("adapters", t.name),
            )
            for t in group
        ]
        lengths = [self.steps(task) for task in group]

        start = time.monotonic()
        folder = context.folder / MADE / ".groups" / digest([one.key for one in made])
        state = train_side_by_side(
            context,
            config,
            self.params,
            self.optimizer,
            [stream.__getitem__ for stream in streams],
            lengths,
            folder,
            title,
        )
        seconds = round((time.monotonic() - start) / len(group), 2)
        each = training.unstack(state.trainable, trained_axes(config))
        for task, one, steps, weights in zip(group, made, lengths, each, strict=True):
            if one.is_done():
                continue
            one.begin()
            training.save_tree(one.folder / "weights", weights)
            per_row = len(task.train) / len(self.rows(task).tokens)
            examples = round(steps * section.batch_size * per_row, 1)
            one.finish(steps=steps, examples=examples, seconds=seconds)
        # The group's checkpoints (weights and two moments): the adapters are saved now.
        remove(folder / "checkpoints")


def train_side_by_side(
    context: Context,
    config: models.DecoderConfig,
    params: Any,
    optimizer: training.Optimizer,
    batches: Sequence[Callable[[int], Mapping[str, np.ndarray]]],
    lengths: Sequence[int],
    folder: Path,
    title: str,
) -> training.TrainState:
    """Trains one small model on each of some streams of batches, in one program, as the section
    `adapters` says; resumed from `folder`. Groups that share an optimizer share their program.

    All begin at the same point: what differs between the models is their data.
    """
    section, seed, group = context.config.adapters, context.config.seed, len(batches)

    def batch(k: int) -> Mapping[str, np.ndarray]:
        each = [of_one(k) for of_one in batches]
        return {name: np.stack([b[name] for b in each]) for name in each[0]}

    stack = partial(jax.tree.map, lambda x: np.broadcast_to(models.to_host(x), (group, *x.shape)))
    first = models.init_lora(config, jax.random.key(seed)) if config.lora else params
    state = training.create_state(optimizer, stack(first), group=True, axes=trained_axes(config))
    return training.fit(
        training.make_train_step(config, optimizer, state),
        state,
        batch,
        frozen=params if config.lora else None,
        steps=max(lengths),
        totals=list(lengths),
        directory=folder,
        name=title,
        seed=[seed] * group,
        checkpoint_every=section.checkpoint_every,
        log_every=context.config.log_every,
    )


@on_primary
def plan_groups(
    context: Context,
    config: models.DecoderConfig,
    missing: Sequence[tasks.Task],
    steps: Mapping[str, int],
) -> list[list[str]]:
    """The groups, as keys of adapters: first those that an interrupted run planned, then new ones.

    The plan is stored because the last bits of a result depend on the size of its group: after a
    restart a task must train in the same group, to end in the same bits.
    """
    wanted = {adapter_key(context, task): task for task in missing}
    known = {adapter_key(context, task) for task in context.tasks}
    path = context.folder / MADE / ".groups" / "plan.json"
    before = read_json(path, [])
    plan = [keys for keys in before if known >= set(keys) and wanted.keys() & set(keys)]
    fresh = [wanted[key] for key in wanted.keys() - {key for keys in plan for key in keys}]
    # Tasks with similar numbers of steps share a group, so that none waits long for another.
    fresh.sort(key=lambda task: (-steps[task.name], task.name))
    if fresh:
        size = context.config.adapters.group or group_size(context, config, len(fresh))
        keys = [adapter_key(context, task) for task in fresh]
        plan += [keys[i : i + size] for i in range(0, len(keys), size)]
    write_json(path, plan)
    return plan


def adapter_steps(rows: int, section: Any) -> int:
    """Steps of one task: `epochs` of its rows, within the bounds of the config."""
    steps = max(section.min_steps, -(-int(np.ceil(section.epochs * rows)) // section.batch_size))
    return min(steps, section.max_steps) if section.max_steps else steps


def group_size(
    context: Context, config: models.DecoderConfig, count: int, estimate: Estimate | None = None
) -> int:
    """How many tasks to train side by side: as many as fit a device's memory, then evened out so
    that all groups have about the same size.

    Raises:
      ValueError: not even one task fits.
    """
    section = context.config.adapters
    available = section.memory * 2**30 or (estimate.machine.memory if estimate else None)
    most = training.group_size(
        config,
        count,
        available,
        rows=section.batch_size,
        length=context.config.tasks.length,
        mesh=estimate.mesh if estimate else context.mesh.shape,
    )
    return -(-count // -(-count // most))
