"""Stage `adapters`: one model per task, many side by side in one program."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from taskpgm import models, tasks, training
from taskpgm.multihost import on_primary
from taskpgm.stages import workdir as wd
from taskpgm.stages.context import Context, on_mesh, say


def adapter_folder(context: Context, name: str) -> Path:
    return context.folder / "adapters" / name  # load_tasks admits only names of folders


def adapter_key(context: Context, task: tasks.Task) -> str:
    """Hash of all that decides the model of one task: nothing of any other task."""
    section = context.config.adapters.to_dict()
    for free in ("group", "memory", "checkpoint_every"):  # how it is computed, not what
        del section[free]
    return wd.digest(
        context.proxy.key,
        section,
        context.config.tasks.length,
        context.config.seed,
        task.train_hash,
    )


def adapter_config(context: Context, config: models.DecoderConfig) -> models.DecoderConfig:
    """The decoder of a single-task model: with adapters, unless all weights are trained."""
    return with_lora(config, context.config.adapters)


def with_lora(config: models.DecoderConfig, section: Any) -> models.DecoderConfig:
    """`config` with the LoRA of a config section whose mode asks for it."""
    if section.mode != "lora":
        return config
    return replace(config, lora=models.LoraConfig(**section.lora.to_dict()))


def trained_axes(config: models.DecoderConfig) -> Any:
    """Logical axes of what is trained: the adapters, or all weights."""
    return models.lora_logical_axes(config) if config.lora else models.logical_axes(config)


@on_mesh
def adapters_stage(context: Context) -> None:
    """Fine-tunes one model per task, many side by side, and saves each under adapters/TASK."""
    missing = [
        task
        for task in context.tasks
        if not wd.is_done(adapter_folder(context, task.name), adapter_key(context, task))
    ]
    if not missing:
        say("adapters", f"done already: {len(context.tasks)} tasks")
        return
    section = context.config.adapters
    config, params = context.load_model(context.proxy)
    config = adapter_config(context, config)
    rows = {t.name: context.rows(context.proxy, t.train, t.name) for t in context.tasks}
    steps = {name: adapter_steps(len(r.tokens), section) for name, r in rows.items()}
    groups = planned_groups(context, config, missing, steps)
    say(
        "adapters",
        f"{len(missing)} of {len(context.tasks)} tasks to train ({section.mode}), up to "
        f"{max(map(len, groups))} side by side, {min(steps.values())} to {max(steps.values())} "
        "steps each",
    )
    optimizer = training.make_optimizer(section.optimizer.to_dict())
    for number, group in enumerate(groups, 1):
        train_group(
            context,
            config,
            params,
            optimizer,
            group,
            rows,
            steps,
            f"adapters {number}/{len(groups)}",
        )


def planned_groups(
    context: Context,
    config: models.DecoderConfig,
    missing: Sequence[tasks.Task],
    steps: Mapping[str, int],
) -> list[list[tasks.Task]]:
    """Which tasks train side by side."""
    task_of = {adapter_key(context, task): task for task in context.tasks}
    return [[task_of[key] for key in keys] for keys in plan_groups(context, config, missing, steps)]


@on_primary
def plan_groups(
    context: Context,
    config: models.DecoderConfig,
    missing: Sequence[tasks.Task],
    steps: Mapping[str, int],
) -> list[list[str]]:
    """The keys of groups: what an interrupted run had planned, then what it had not.

    The plan is kept, because a group of another size gives other last bits: resumed, a task trains
    beside the same others as if nothing had happened.
    """
    task_of = {adapter_key(context, task): task for task in context.tasks}
    path = context.folder / "adapters" / ".groups" / "plan.json"
    wanted = {adapter_key(context, task) for task in missing}
    before = wd.read_json(path) if path.is_file() else []
    plan = [keys for keys in before if task_of.keys() >= set(keys) and wanted & set(keys)]
    fresh = [task_of[key] for key in wanted - {key for keys in plan for key in keys}]
    # Tasks of like length share a group: none waits long for another.
    fresh.sort(key=lambda task: (-steps[task.name], task.name))
    if fresh:
        size = context.config.adapters.group or group_size(context, config, len(fresh))
        keys = [adapter_key(context, task) for task in fresh]
        plan += [keys[i : i + size] for i in range(0, len(keys), size)]
    wd.write_json(path, plan)
    return plan


def adapter_steps(rows: int, section: Any) -> int:
    """Steps of one task: `epochs` of its rows, within the bounds of the config."""
    steps = max(section.min_steps, -(-int(np.ceil(section.epochs * rows)) // section.batch_size))
    return min(steps, section.max_steps) if section.max_steps else steps


def group_size(context: Context, config: models.DecoderConfig, count: int) -> int:
    """How many tasks fit a device side by side, by the memory it has, in groups of like size."""
    section = context.config.adapters
    most = training.group_size(
        config,
        count,
        section.memory * 2**30 or None,
        rows=section.batch_size,
        length=context.config.tasks.length,
        mesh=context.mesh.shape,
    )
    return -(-count // -(-count // most))


def train_group(
    context: Context,
    config: models.DecoderConfig,
    params: Any,
    optimizer: training.Optimizer,
    group: Sequence[tasks.Task],
    rows: Mapping[str, tasks.Rows],
    steps: Mapping[str, int],
    title: str,
) -> None:
    """Trains the models of a group in one program and saves each."""
    section, seed = context.config.adapters, context.config.seed
    keys = [adapter_key(context, task) for task in group]
    streams = [
        tasks.stream(
            [rows[t.name]], batch_size=section.batch_size, seed=context.seed_of("adapters", t.name)
        )
        for t in group
    ]
    lengths = [steps[t.name] for t in group]

    def batch(k: int) -> Mapping[str, np.ndarray]:
        each = [stream[k] for stream in streams]
        return {name: np.stack([b[name] for b in each]) for name in each[0]}

    # All tasks begin at the same point: what differs between their models is their data.
    stack = partial(
        jax.tree.map, lambda x: np.broadcast_to(models.to_host(x), (len(group), *x.shape))
    )
    trainable = stack(models.init_lora(config, jax.random.key(seed)) if config.lora else params)
    state = training.create_state(optimizer, trainable, group=True, axes=trained_axes(config))
    step = training.make_train_step(config, optimizer, state)
    start = time.monotonic()
    folder = context.folder / "adapters" / ".groups" / wd.digest(keys)
    state = training.fit(
        step,
        state,
        batch,
        frozen=params if config.lora else None,
        steps=max(lengths),
        totals=lengths,
        directory=folder,
        name=title,
        seed=[seed] * len(group),
        checkpoint_every=section.checkpoint_every,
        log_every=context.config.log_every,
    )
    seconds = time.monotonic() - start
    each = training.unstack(state.trainable, trained_axes(config))
    for task, key, weights in zip(group, keys, each, strict=True):
        target = adapter_folder(context, task.name)
        if wd.is_done(target, key):
            continue
        wd.begin(target, key)
        training.save_tree(target / "weights", weights)
        wd.mark_done(target, key, steps=steps[task.name], seconds=round(seconds / len(group), 2))
    # Thrice the size of what it led to, and no use any more.
    wd.remove(folder / "checkpoints")


def load_adapters(
    context: Context, config: models.DecoderConfig, names: Sequence[str]
) -> Callable[[Sequence[int]], Any]:
    """The trained parts of some tasks' models: indices into `names` -> stacked [g ...], on devices.

    They wait in the host's memory: 316 whole GPT-2 are 150 GB, and a device needs a few at a time.
    """
    like = jax.eval_shape(
        partial(models.init_lora if config.lora else models.init_params, config), jax.random.key(0)
    )
    everywhere = NamedSharding(context.mesh, PartitionSpec())
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), like)
    held = jax.tree.map(lambda x: np.empty((len(names), *x.shape), x.dtype), like)
    for i, name in enumerate(names):
        folder = adapter_folder(context, name)
        try:
            model = training.restore_tree(folder / "weights", one)
        except (training.Damaged, FileNotFoundError) as error:
            raise OSError(f"{error}; {wd.way_out(folder)}") from error
        jax.tree.map(lambda into, x: into.__setitem__(i, x), held, model)  # noqa: B023
    return lambda some: jax.tree.map(
        lambda x: training.place(x[np.asarray(some)], everywhere), held
    )
