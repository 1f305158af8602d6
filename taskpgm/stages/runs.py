"""Stage `runs`: the base fine-tuned on every mixture with every seed, in runs/NAME."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from taskpgm import models, tasks, training
from taskpgm.artefact import digest
from taskpgm.multihost import on_primary
from taskpgm.stages import mixture
from taskpgm.stages.compare import folder_name
from taskpgm.stages.context import Context, say, trained_axes, with_lora
from taskpgm.stages.estimate import FLOAT32, Cost, Estimate, fits
from taskpgm.stages.stage_artefact import StageArtefact

SECTIONS = ("train",)
MADE = "runs"
# Keys that do not change the trained model; the resulting number of steps is hashed by itself.
FREE = ("checkpoint_every", "keep", "log", "steps", "epochs", "seeds")


@dataclass(frozen=True)
class Run:
    """One model to train: a mixture's counts of examples, and a seed for their draw and order.

    counts: None until the mixture is solved (in a `--dry_run`).
    """

    mixture: str
    seed: int
    counts: tuple[int, ...] | None

    @property
    def name(self) -> str:
        """The name of its folder in runs/: the mixture's, and the seed unless that is 0."""
        name = folder_name(self.mixture)
        return name if self.seed == 0 else f"{name}.seed{self.seed}"


def planned_runs(context: Context) -> list[Run]:
    """Every mixture with every seed: first all mixtures with the first seed, then the next."""
    (mixtures,) = mixture.artefacts(context)
    counts: dict[str, tuple[int, ...] | None] = dict.fromkeys(context.config.compare)
    if mixtures.is_done():
        weights = mixture.read_weights(context.folder)
        counts = {name: tuple(record.counts or ()) for name, record in weights.mixtures.items()}
    return [
        Run(name, seed, count)
        for seed in range(context.config.train.seeds)
        for name, count in counts.items()
    ]


def run_steps(context: Context, tokens_per_example: float | None = None) -> int:
    """Steps of every run, the same for all mixtures: `epochs` of the budget, spread evenly over
    tasks.

    They follow from budget, batch size and data only, so that one more mixture in `compare` changes
    no other run.
    """
    section = context.config.train
    if section.steps:
        return section.steps
    each = context.tokens_per_example if tokens_per_example is None else tokens_per_example
    rows = max(1, np.ceil(each * context.config.mixture.budget / context.config.tasks.length))
    return -(-int(np.ceil(section.epochs * rows)) // section.batch_size)


def artefacts(context: Context) -> Iterator[StageArtefact]:
    """The model of each run."""
    config = context.config
    low = config.train.mode == "full" and jax.numpy.dtype(config.base.param_dtype).itemsize == 2
    if low:
        say(
            "runs",
            f"weights are kept in {config.base.param_dtype}: an update below 1/256 of a weight is "
            "lost. config.base.param_dtype=float32 keeps it (config.base.dtype may stay)",
        )
    for run in planned_runs(context):
        steps = run_steps(context) if run.counts else 0
        key = run_key(context, run, steps)
        yield RunModel(context.folder / MADE / run.name, key, context, run.name, run, steps)


def run_key(context: Context, run: Run, steps: int) -> str:
    """Hash of everything that the model of a run depends on."""
    section = {k: v for k, v in context.config.train.to_dict().items() if k not in FREE}
    return digest(
        context.base.key,
        section,
        steps,
        context.config.tasks.length,
        context.config.seed,
        context.tasks_key,
        run.seed,
        run.counts,
    )


@dataclass(frozen=True)
class RunModel(StageArtefact):
    """Checkpoints, metrics.jsonl, and hf/, a folder that `transformers` loads."""

    run: Run = Run("", 0, None)
    steps: int = 0

    def make(self) -> dict[str, Any]:
        section, start = self.context.config.train, time.monotonic()
        rows = self.rows()
        count = sum(len(part.tokens) for part in rows)
        scored = int(sum((part.weights > 0).sum() for part in rows))
        epochs = self.steps * section.batch_size / count
        say("runs", f"{self.title}: {self.steps} steps, {epochs:.2f} epochs of {count} rows")
        self.train(rows)
        return {
            "steps": self.steps,
            "epochs": round(epochs, 4),
            "rows": count,
            "examples": sum(self.run.counts or ()),
            "tokens": round(scored * epochs),
            "seconds": round(time.monotonic() - start, 1),
        }

    def rows(self) -> list[tasks.Rows]:
        """Packed rows of `counts` examples of each task, drawn by a seed, without repeats within an
        epoch of the task."""
        context, chosen = self.context, []
        for task, count in zip(context.tasks, self.run.counts or (), strict=True):
            if count:
                seed = context.seed_of("draw", task.name, str(self.run.seed))
                index = tasks.draw(len(task.train), count, seed=seed)
                picked = [task.train[i] for i in index]
                chosen.append(context.rows(context.base, picked, task.name))
        return chosen

    def train(self, rows: list[tasks.Rows]) -> None:
        """Fine-tunes the base and saves it in hf/, adapters merged, with its tokenizer."""
        context, section = self.context, self.context.config.train
        seed = context.seed_of("runs", str(self.run.seed))
        config, params = context.load_model(context.base)
        config = with_lora(config, section)
        optimizer = training.make_optimizer(section.optimizer.to_dict())
        trainable = models.init_lora(config, jax.random.key(seed)) if config.lora else params
        frozen = params if config.lora else None
        state = training.create_state(optimizer, trainable, axes=trained_axes(config))
        step = training.make_train_step(config, optimizer, state, accumulate=section.accumulate)
        batches: Any = tasks.stream(rows, batch_size=section.batch_size, seed=seed)
        state = training.fit(
            step,
            state,
            batches.__getitem__,
            frozen=frozen,
            steps=self.steps,
            directory=self.folder,
            name=self.title,
            seed=seed,
            checkpoint_every=section.checkpoint_every,
            log_every=context.config.log_every,
            keep=section.keep,
            board=section.log,
            flops_per_token=partial(training.flops_per_token, config, context.config.tasks.length),
        )
        variables = models.trained_variables(config, state.trainable, frozen)
        tokenizer = context.tokenizer(context.base)
        models.save_hf(
            self.folder / "hf",
            config,
            **variables,
            base=context.base.path,
            trained_ends=(tokenizer.eos_token_id,),
        )
        on_primary(tokenizer.save_pretrained)(self.folder / "hf")

    def cost(self, estimate: Estimate) -> Cost:
        context, section = self.context, self.context.config.train
        length = context.config.tasks.length
        config = with_lora(estimate.decoder(context.base), section)
        steps = run_steps(context, estimate.tokens_per_example)
        tokens = steps * section.batch_size * length
        memory = training.estimate_memory(
            config,
            rows=section.batch_size,
            length=length,
            accumulate=section.accumulate,
            mesh=estimate.mesh,
        ).total
        return Cost(
            f"{config.num_params / 1e6:,.2f}M parameters ({section.mode}), {steps} steps, "
            f"{tokens:,} tokens with padding",
            tokens * training.flops_per_token(config, length),
            # The model, and if all weights are trained a checkpoint with two moments for each.
            FLOAT32 * config.num_params * (4 if config.lora is None else 1),
            memory,
            fits(
                estimate, memory, "train.accumulate, mesh.fsdp, base.remat=full or train.mode=lora"
            ),
        )

    def summary(self) -> str:
        return f"trained, in {self.folder / 'hf'}"
