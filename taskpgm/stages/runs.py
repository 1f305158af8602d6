"""Stage `runs`: the base fine-tuned on every mixture with every seed, in runs/NAME."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax

from taskpgm import models, tasks, training
from taskpgm.artefact import digest
from taskpgm.multihost import on_primary
from taskpgm.stages import mixture
from taskpgm.stages.compare import folder_name
from taskpgm.stages.context import Context, say
from taskpgm.stages.decoders import trained_axes, with_lora
from taskpgm.stages.estimate import FLOAT32, Cost, Estimate, fits, idle
from taskpgm.stages.stage_artefact import StageArtefact
from taskpgm.stages.steps import run_steps
from taskpgm.stages.sweep import Point, points

SECTIONS = ("train",)
MADE = "runs"
# Keys that do not change the trained model; the resulting number of steps is hashed by itself.
FREE = ("checkpoint_every", "keep", "log", "steps", "epochs", "seeds")


@dataclass(frozen=True)
class Run:
    """One model to train: a mixture's counts of examples, and a seed for their draw and order.

    counts: None until the mixture is solved (in a `--dry_run`).
    """

    point: Point
    seed: int
    counts: tuple[int, ...] | None

    @property
    def name(self) -> str:
        """Of its folder in runs/."""
        return run_name(self.point.label, self.seed)


def run_name(label: str, seed: int) -> str:
    """The point's, and its seed's number but for the first."""
    name = folder_name(label)
    return name if seed == 0 else f"{name}.seed{seed}"


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
    """The model of each run."""
    config = context.config
    modes = {point.config.train.mode for point in points(context)}
    low = "full" in modes and jax.numpy.dtype(config.base.param_dtype).itemsize == 2
    if low:
        say(
            "runs",
            f"weights are kept in {config.base.param_dtype}: an update below 1/256 of a weight is "
            "lost. config.base.param_dtype=float32 keeps it (config.base.dtype may stay)",
        )
    for run in planned_runs(context):
        steps = run_steps(context, run.point.config) if run.counts else 0
        key = run_key(context, run, steps)
        folder = context.folder / MADE / run.name
        yield RunModel(folder, key, context, run.name, run=run, steps=steps)


def run_key(context: Context, run: Run, steps: int) -> str:
    """Hash of everything that the model of a run depends on."""
    section = {k: v for k, v in run.point.config.train.to_dict().items() if k not in FREE}
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


def drawn(context: Context, task: tasks.Task, count: int, seed: int) -> list[tasks.Example]:
    """`count` training examples of a task, the same for every mixture that has as many."""
    index = tasks.draw(len(task.train), count, seed=context.seed_of("draw", task.name, str(seed)))
    return [task.train[i] for i in index]


def inputs_key(context: Context) -> str:
    """Hash of what all runs of a workdir have in common."""
    length, seed = context.config.tasks.length, context.config.seed
    return digest(context.base.key, length, seed, context.tasks_key)


@dataclass(frozen=True)
class RunModel(StageArtefact):
    """Checkpoints, metrics.jsonl, and hf/, a folder that `transformers` loads."""

    run: Run = field(kw_only=True)
    steps: int = 0

    @property
    def section(self) -> Any:
        """`train`, under the run's settings."""
        return self.run.point.config.train

    def make(self) -> dict[str, Any]:
        section, start = self.section, time.monotonic()
        rows = self.rows()
        count = sum(len(part.tokens) for part in rows)
        scored = int(sum((part.weights > 0).sum() for part in rows))
        epochs = self.steps * section.batch_size / count
        say("runs", f"{self.title}: {self.steps} steps, {epochs:.2f} epochs of {count} rows")
        self.train(rows)
        point = self.run.point
        return {
            "label": point.label,
            "row": point.row,
            "settings": dict(point.settings),
            "group": point.group,
            "seed": self.run.seed,
            "inputs": inputs_key(self.context),
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
                picked = drawn(context, task, count, self.run.seed)
                chosen.append(context.rows(context.base, picked, task.name))
        return chosen

    def train(self, rows: list[tasks.Rows]) -> None:
        """Fine-tunes the base and saves it in hf/, adapters merged, with its tokenizer."""
        context, section = self.context, self.section
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
        context, section = self.context, self.section
        length = context.config.tasks.length
        config = with_lora(estimate.decoder(context.base), section)
        steps = run_steps(context, self.run.point.config, estimate.tokens_per_example)
        tokens = steps * section.batch_size * length
        rows = section.batch_size // section.accumulate
        share = estimate.used(rows)
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
            tokens * training.flops_per_token(config, length, estimate.scored_share(context.base)),
            # The model, and if all weights are trained a checkpoint with two moments for each.
            FLOAT32 * config.num_params * (4 if config.lora is None else 1),
            memory,
            fits(
                estimate, memory, "train.accumulate, mesh.fsdp, base.remat=full or train.mode=lora"
            )
            or idle(estimate, share, rows, "train.batch_size / train.accumulate"),
            share=share,
            trained=tokens,
        )

    def summary(self) -> str:
        return f"trained, in {self.folder / 'hf'}"
