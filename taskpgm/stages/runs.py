"""Stage `runs`: the base fine-tuned on every mixture, under every seed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from taskpgm import models, tasks, training
from taskpgm.multihost import on_primary
from taskpgm.stages import workdir as wd
from taskpgm.stages.adapters import trained_axes, with_lora
from taskpgm.stages.context import Context, Source, on_mesh, say


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
        context.base.key,
        section,
        steps,
        context.config.tasks.length,
        context.config.seed,
        context.tasks_key,
        run.seed,
        run.counts,
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


@on_mesh
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
    if config.lora is None and jax.numpy.dtype(config.param_dtype).itemsize == 2:
        say(
            "runs",
            f"weights are kept in {config.param_dtype}: an update below 1/256 of a weight is lost. "
            "config.base.param_dtype=float32 keeps it (config.base.dtype may stay)",
        )
    optimizer = training.make_optimizer(section.optimizer.to_dict())
    for run in runs:
        folder, key = run_folder(context, run), run_key(context, run, steps)
        if wd.is_done(folder, key):
            say("runs", f"{run.name}: done already")
            continue
        start = time.monotonic()
        epochs = steps * section.batch_size / lengths[run]
        say("runs", f"{run.name}: {steps} steps, {epochs:.2f} epochs of {lengths[run]} rows")
        wd.begin(folder, key)
        train_mixture(context, config, optimizer, rows[run], steps, folder, run)
        wd.mark_done(
            folder,
            key,
            steps=steps,
            epochs=round(epochs, 4),
            rows=lengths[run],
            examples=sum(run.counts),
            seconds=round(time.monotonic() - start, 1),
        )


def train_mixture(
    context: Context,
    config: models.DecoderConfig,
    optimizer: training.Optimizer,
    rows: Sequence[tasks.Rows],
    steps: int,
    folder: Path,
    run: Run,
) -> None:
    """Fine-tunes the base on packed rows and saves it in folder/hf, with its tokenizer."""
    section, seed = context.config.train, context.seed_of("runs", str(run.seed))
    _, params = context.load_model(context.base)
    lora = config.lora is not None
    trainable = models.init_lora(config, jax.random.key(seed)) if lora else params
    frozen = params if lora else None
    state = training.create_state(optimizer, trainable, axes=trained_axes(config))
    step = training.make_train_step(config, optimizer, state, accumulate=section.accumulate)
    batches = tasks.stream(rows, batch_size=section.batch_size, seed=seed)
    state = training.fit(
        step,
        state,
        batches.__getitem__,
        frozen=frozen,
        steps=steps,
        directory=folder,
        name=run.name,
        seed=seed,
        checkpoint_every=section.checkpoint_every,
        log_every=context.config.log_every,
        keep=section.keep,
        flops_per_token=partial(training.flops_per_token, config, context.config.tasks.length),
    )
    save_model(context, context.base, folder / "hf", config, state.trainable, frozen)


def save_model(
    context: Context,
    source: Source,
    folder: Path,
    config: models.DecoderConfig,
    trained: Any,
    frozen: Any,
) -> None:
    """A Hugging Face folder that `transformers` opens: adapters merged, the tokenizer beside it."""
    variables = models.trained_variables(config, trained, frozen)
    models.save_hf(folder, config, **variables)
    on_primary(context.tokenizer(source).save_pretrained)(folder)
