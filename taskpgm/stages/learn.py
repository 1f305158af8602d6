"""Stages `adapters` and `runs`: one model per task, then one model per mixture."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from taskpgm import models, tasks, training
from taskpgm.stages import workdir as wd
from taskpgm.stages.context import Context, Source, say

Batches = Callable[[int], Mapping[str, np.ndarray]]


# --- One model per task --------------------------------------------------------------------------
def adapter_folder(context: Context, name: str) -> Path:
    return context.folder / "adapters" / name  # load_tasks admits only names of folders


def adapter_key(context: Context, task: tasks.Task) -> str:
    """Hash of all that decides the model of one task: nothing of any other task."""
    section = context.config.adapters.to_dict()
    for free in ("group", "memory", "checkpoint_every"):  # how it is computed, not what
        del section[free]
    return wd.digest(
        context.proxy.key, section, context.config.tasks.length, context.config.seed,
        [[x.prompt, x.response, x.messages] for x in task.train],
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


def adapters_stage(context: Context) -> None:
    """Fine-tunes one model per task, many side by side, and saves each under adapters/TASK."""
    missing = [
        task for task in context.tasks
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
    step = training.make_train_step(
        config, training.make_optimizer(section.optimizer.to_dict()), mode=section.mode, group=True,
        rules=context.rules,
    )
    for number, group in enumerate(groups, 1):
        params = train_group(
            context, config, params, step, group, rows, steps,
            f"adapters {number}/{len(groups)}",
        )


def planned_groups(
    context: Context,
    config: models.DecoderConfig,
    missing: Sequence[tasks.Task],
    steps: Mapping[str, int],
) -> list[list[tasks.Task]]:
    """Which tasks train side by side: what an interrupted run had planned, then what it had not.

    The plan is kept, because a group of another size gives other last bits: resumed, a task trains
    beside the same others as if nothing had happened.
    """
    path = context.folder / "adapters" / ".groups" / "plan.json"
    task_of = {adapter_key(context, task): task for task in context.tasks}
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
    return [[task_of[key] for key in keys] for keys in plan]


def adapter_steps(rows: int, section: Any) -> int:
    """Steps of one task: `epochs` of its rows, within the bounds of the config."""
    steps = max(section.min_steps, -(-int(np.ceil(section.epochs * rows)) // section.batch_size))
    return min(steps, section.max_steps) if section.max_steps else steps


def group_size(context: Context, config: models.DecoderConfig, count: int) -> int:
    """How many tasks fit a device side by side, by the memory it has, in groups of like size."""
    section = context.config.adapters
    most = training.group_size(
        config, count, section.memory * 2**30 or None, mode=section.mode, rows=section.batch_size,
        length=context.config.tasks.length, mesh=context.mesh.shape,
    )
    return -(-count // -(-count // most))


def train_group(
    context: Context,
    config: models.DecoderConfig,
    params: Any,
    step: Callable,
    group: Sequence[tasks.Task],
    rows: Mapping[str, tasks.Rows],
    steps: Mapping[str, int],
    title: str,
) -> Any:
    """Trains the models of a group in one program, saves each, and returns the base unharmed."""
    section, seed = context.config.adapters, context.config.seed
    keys = [adapter_key(context, task) for task in group]
    streams = [
        tasks.stream([rows[t.name]], batch_size=section.batch_size,
                     seed=context.seed_of("adapters", t.name))
        for t in group
    ]
    lengths = [steps[t.name] for t in group]

    def batch(k: int) -> Mapping[str, np.ndarray]:
        each = [stream[k] for stream in streams]
        return {name: np.stack([b[name] for b in each]) for name in each[0]}

    # All tasks begin at the same point: what differs between their models is their data.
    stack = partial(jax.tree.map, lambda x: np.stack([np.asarray(x)] * len(group)))
    optimizer = training.make_optimizer(section.optimizer.to_dict())
    if section.mode == "lora":
        trainable, frozen = stack(models.init_lora(config, jax.random.key(seed))), params
    else:
        trainable, frozen = stack(params), {}
    state = training.create_state(
        optimizer, trainable, frozen, group=True, mesh=context.mesh, axes=trained_axes(config),
        rules=context.rules,
    )
    start = time.monotonic()
    folder = context.folder / "adapters" / ".groups" / wd.digest(keys)
    state = training.fit(
        step, state, batch, steps=max(lengths), totals=lengths, directory=folder, name=title,
        seed=[seed] * len(group), checkpoint_every=section.checkpoint_every,
        log_every=context.config.log_every, keep=1,
        put=partial(training.put_batch, mesh=context.mesh, rules=context.rules, group=True),
    )
    seconds = time.monotonic() - start
    for i, (task, key) in enumerate(zip(group, keys, strict=True)):
        target = adapter_folder(context, task.name)
        if wd.is_done(target, key):
            continue
        wd.begin(target, key)
        training.save_tree(target / "weights", jax.tree.map(lambda x: x[i], state.trainable))  # noqa: B023
        wd.mark_done(target, key, steps=lengths[i], seconds=round(seconds / len(group), 2))
    return state.frozen if section.mode == "lora" else params


def load_adapters(context: Context, config: models.DecoderConfig, names: Sequence[str]) -> Any:
    """The trained parts of some tasks' models, stacked on a leading axis [g ...]."""
    like = jax.eval_shape(
        partial(models.init_lora if config.lora else models.init_params, config), jax.random.key(0)
    )
    everywhere = NamedSharding(context.mesh, PartitionSpec())
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), like
    )
    loaded = [
        training.restore_tree(adapter_folder(context, name) / "weights", like) for name in names
    ]
    return jax.tree.map(lambda *x: jax.numpy.stack(x), *loaded)


# --- One model per mixture -----------------------------------------------------------------------
@dataclass(frozen=True)
class Run:
    """One model to train: a mixture's counts of examples, and a seed for their draw and order."""

    mixture: str
    seed: int
    counts: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of its folder in runs/: the mixture's, and its seed's number but for the first."""
        return self.mixture if self.seed == 0 else f"{self.mixture}.seed{self.seed}"


def planned_runs(context: Context) -> list[Run]:
    """Every mixture of weights.json under every seed, the first seed of all mixtures first."""
    weights = wd.read_json(context.folder / "mixture" / "weights.json")
    return [
        Run(name, seed, tuple(entry["counts"]))
        for seed in range(context.config.train.seeds)
        for name, entry in weights["mixtures"].items()
    ]


def run_folder(context: Context, run: Run) -> Path:
    return context.folder / "runs" / run.name


def run_key(context: Context, run: Run, steps: int) -> str:
    """Hash of all that decides the model of a run."""
    section = context.config.train.to_dict()
    for free in ("checkpoint_every", "keep", "steps", "epochs", "seeds"):
        del section[free]
    return wd.digest(
        context.base.key, section, steps, context.config.tasks.length, context.config.seed,
        context.tasks_key, run.seed, run.counts,
    )


def mixture_rows(context: Context, run: Run) -> list[tasks.Rows]:
    """Packed rows of each task's share of a mixture: counts [n] examples, seeded, none twice within
    an epoch of its task."""
    chosen = []
    for task, count in zip(context.tasks, run.counts, strict=True):
        if count:
            seed = context.seed_of("draw", task.name, str(run.seed))
            index = tasks.draw(len(task.train), count, seed=seed)
            chosen.append(context.rows(context.base, [task.train[i] for i in index], task.name))
    return chosen


def runs_stage(context: Context) -> None:
    """Fine-tunes the base on every mixture of `compare`: same budget, same seeds, same steps."""
    section, runs = context.config.train, planned_runs(context)
    rows = {run: mixture_rows(context, run) for run in runs}
    lengths = {run: sum(len(r.tokens) for r in each) for run, each in rows.items()}
    most = int(np.ceil(section.epochs * max(lengths.values())))
    steps = section.steps or -(-most // section.batch_size)
    config = with_lora(
        context.decoder_config(models.DecoderConfig.from_hf(context.base.path)), section
    )
    step = training.make_train_step(
        config, training.make_optimizer(section.optimizer.to_dict()), mode=section.mode,
        accumulate=section.accumulate, rules=context.rules,
    )
    for run in runs:
        folder, key = run_folder(context, run), run_key(context, run, steps)
        if wd.is_done(folder, key):
            say("runs", f"{run.name}: done already")
            continue
        start = time.monotonic()
        epochs = steps * section.batch_size / lengths[run]
        say("runs", f"{run.name}: {steps} steps, {epochs:.2f} epochs of {lengths[run]} rows")
        wd.begin(folder, key)
        train_mixture(context, config, step, rows[run], steps, folder, run)
        wd.mark_done(folder, key, steps=steps, epochs=round(epochs, 4), rows=lengths[run],
                     examples=sum(run.counts), seconds=round(time.monotonic() - start, 1))


def train_mixture(
    context: Context,
    config: models.DecoderConfig,
    step: Callable,
    rows: Sequence[tasks.Rows],
    steps: int,
    folder: Path,
    run: Run,
) -> None:
    """Fine-tunes the base on packed rows and saves it in folder/hf, with its tokenizer."""
    section, seed = context.config.train, context.seed_of("runs", str(run.seed))
    _, params = context.load_model(context.base)
    optimizer = training.make_optimizer(section.optimizer.to_dict())
    lora = config.lora is not None
    trainable = models.init_lora(config, jax.random.key(seed)) if lora else params
    state = training.create_state(
        optimizer, trainable, params if lora else None, mesh=context.mesh,
        axes=trained_axes(config), rules=context.rules,
    )
    batches = tasks.stream(
        rows, batch_size=section.batch_size, seed=seed,
        host_index=jax.process_index(), host_count=jax.process_count(),
    )
    state = training.fit(
        step, state, batches.__getitem__, steps=steps, directory=folder, name=run.name, seed=seed,
        checkpoint_every=section.checkpoint_every, log_every=context.config.log_every,
        keep=section.keep, put=partial(training.put_batch, mesh=context.mesh, rules=context.rules),
        flops_per_token=partial(
            training.flops_per_token, config, context.config.tasks.length, section.mode
        ),
    )
    save_model(context, context.base, folder / "hf", config, state, section.mode)


def save_model(
    context: Context, source: Source, folder: Path, config: models.DecoderConfig, state: Any,
    mode: str,
) -> None:
    """A Hugging Face folder that `transformers` opens: adapters merged, the tokenizer beside it."""
    params = state.trainable if mode == "full" else state.frozen
    lora = state.trainable if mode == "lora" else None
    models.save_hf(folder, config, params, lora=lora)
    context.tokenizer(source).save_pretrained(folder)
