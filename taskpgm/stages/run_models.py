"""The model of one run: the base fine-tuned on a mixture's examples, in runs/NAME."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from taskpgm import models, tasks, training
from taskpgm.artefact import digest, done_facts, done_key
from taskpgm.multihost import on_primary
from taskpgm.stages.compare import folder_name
from taskpgm.stages.context import Context, say
from taskpgm.stages.decoders import trained_axes, with_lora
from taskpgm.stages.estimate import FLOAT32, Cost, Estimate, fits, idle
from taskpgm.stages.stage_artefact import StageArtefact
from taskpgm.stages.steps import run_steps
from taskpgm.stages.sweep import Point

MADE = "runs"
# Keys that do not change the trained model; the resulting number of steps is hashed by itself, and
# so are the runs that train in one program.
FREE = ("checkpoint_every", "keep", "log", "steps", "epochs", "seeds", "group")


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


def run_settings(run: Run) -> dict[str, Any]:
    """Keys of `train` that decide what a run's model becomes."""
    return {k: v for k, v in run.point.config.train.to_dict().items() if k not in FREE}


def run_key(context: Context, run: Run, steps: int) -> str:
    """Hash of everything that the model of a run depends on."""
    return digest(
        context.base.key,
        run_settings(run),
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
    """Checkpoints, metrics.jsonl, and hf/, a folder that `transformers` loads.

    Attributes:
      alone: its key where it trains alone.
      together: those keys of all runs that it trains with in one program, in their order, its own
        among them; () for one that trains alone.
    """

    run: Run = field(kw_only=True)
    alone: str = field(kw_only=True)
    steps: int = 0
    together: tuple[str, ...] = ()

    @property
    def section(self) -> Any:
        """`train`, under the run's settings."""
        return self.run.point.config.train

    def beside(self, together: Sequence[str]) -> "RunModel":
        """The same run trained with others: its last bits depend on them, and so does its key."""
        key = digest(self.alone, "together", list(together))
        return replace(self, key=key, together=tuple(together))

    def as_made(self) -> "RunModel":
        """The run as it is in its folder, where that was trained with others."""
        if done_key(self.folder) is None:
            return self
        together = done_facts(self.folder).get("together")
        made = self.beside(together) if together else self
        return made if made.is_done() else self

    def make(self) -> dict[str, Any]:
        start, rows = time.monotonic(), self.rows()
        self.say_begin(rows)
        (trained,) = train(self.context, [self], [rows], self.folder, self.title)
        self.save(*trained)
        return self.facts(rows) | {"seconds": round(time.monotonic() - start, 1)}

    def say_begin(self, rows: Sequence[tasks.Rows]) -> None:
        epochs, count = self.epochs(rows), sum(len(part.tokens) for part in rows)
        say("runs", f"{self.title}: {self.steps} steps, {epochs:.2f} epochs of {count} rows")

    def epochs(self, rows: Sequence[tasks.Rows]) -> float:
        return self.steps * self.section.batch_size / sum(len(part.tokens) for part in rows)

    def facts(self, rows: Sequence[tasks.Rows]) -> dict[str, Any]:
        """What done.json tells of it, beside the seconds."""
        point, epochs = self.run.point, self.epochs(rows)
        scored = int(sum((part.weights > 0).sum() for part in rows))
        facts = {
            "label": point.label,
            "row": point.row,
            "settings": dict(point.settings),
            "group": point.group,
            "seed": self.run.seed,
            "inputs": inputs_key(self.context),
            "steps": self.steps,
            "epochs": round(epochs, 4),
            "rows": sum(len(part.tokens) for part in rows),
            "examples": sum(self.run.counts or ()),
            "tokens": round(scored * epochs),
        }
        return facts | ({"together": list(self.together)} if self.together else {})

    def rows(self) -> list[tasks.Rows]:
        """Packed rows of `counts` examples of each task, drawn by a seed, without repeats within an
        epoch of the task."""
        context, chosen = self.context, []
        for task, count in zip(context.tasks, self.run.counts or (), strict=True):
            if count:
                picked = drawn(context, task, count, self.run.seed)
                chosen.append(context.rows(context.base, picked, task.name))
        return chosen

    def save(self, config: models.DecoderConfig, variables: Mapping[str, Any]) -> None:
        """Writes hf/: the trained model, adapters merged, with its tokenizer."""
        context = self.context
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
        return runs_cost(estimate, [self], 1)

    def summary(self) -> str:
        return f"trained, in {self.folder / 'hf'}"


def train(
    context: Context,
    runs: Sequence[RunModel],
    rows: Sequence[Sequence[tasks.Rows]],
    directory: Path,
    title: str,
) -> Iterator[tuple[models.DecoderConfig, Mapping[str, Any]]]:
    """Fine-tunes the base on the rows of each of some runs of one shape: one alone, or several side
    by side in one program. Yields what each has become, as `RunModel.save` takes it.

    Each run begins as it would alone, and has the same batches and keys of dropout.
    """
    alone, section, steps = len(runs) == 1, runs[0].section, runs[0].steps
    seeds = [context.seed_of("runs", str(each.run.seed)) for each in runs]
    config, params = context.load_model(context.base)
    config, frozen = with_lora(config, section), None
    if config.lora:
        frozen = params
        each = [models.init_lora(config, jax.random.key(seed)) for seed in seeds]
    else:
        each = [params]
    first = each[0]
    if not alone:  # a view, where all begin with the same weights
        first = jax.tree.map(
            lambda *x: stacked([models.to_host(one) for one in x], len(runs)), *each
        )
    optimizer, axes = training.make_optimizer(section.optimizer.to_dict()), trained_axes(config)
    state = training.create_state(optimizer, first, group=not alone, axes=axes)
    del params, each, first  # beside a group of whole models there need be no other
    streams: list[Any] = [
        tasks.stream(part, batch_size=section.batch_size, seed=seed)
        for part, seed in zip(rows, seeds, strict=True)
    ]

    def batch(k: int) -> Mapping[str, np.ndarray]:
        parts = [stream[k] for stream in streams]
        return parts[0] if alone else {x: np.stack([part[x] for part in parts]) for x in parts[0]}

    state = training.fit(
        training.make_train_step(config, optimizer, state, accumulate=section.accumulate),
        state,
        batch,
        frozen=frozen,
        steps=steps,
        totals=steps if alone else [steps] * len(runs),
        directory=directory,
        name=title,
        seed=seeds[0] if alone else seeds,
        checkpoint_every=section.checkpoint_every,
        log_every=context.config.log_every,
        keep=section.keep,
        board=section.log,
        flops_per_token=partial(training.flops_per_token, config, context.config.tasks.length),
        members=None if alone else {run.title: run.folder for run in runs},
    )
    for trained in [state.trainable] if alone else training.unstack(state.trainable, axes):
        yield config, models.trained_variables(config, trained, frozen)


def stacked(arrays: Sequence[np.ndarray], count: int) -> np.ndarray:
    """`count` arrays along a new first axis; if there is only one, it stands for all."""
    if len(arrays) == count:
        return np.stack(arrays)
    return np.broadcast_to(arrays[0], (count, *arrays[0].shape))


def runs_cost(estimate: Estimate, runs: Sequence[RunModel], side: int) -> Cost:
    """The cost of some runs of one shape, `side` of them side by side."""
    first, context = runs[0], runs[0].context
    section, length = first.section, context.config.tasks.length
    config = with_lora(estimate.decoder(context.base), section)
    steps = run_steps(context, first.run.point.config, estimate.tokens_per_example)
    tokens = len(runs) * steps * section.batch_size * length
    rows = section.batch_size // section.accumulate
    share = estimate.used(rows, side)
    memory = training.estimate_memory(
        config,
        rows=section.batch_size,
        length=length,
        group=side,
        accumulate=section.accumulate,
        mesh=estimate.mesh,
    ).total
    keys = "train.accumulate, mesh.fsdp, base.remat=full or train.mode=lora"
    several = f"{len(runs)} runs, {side} side by side: " if len(runs) > 1 else ""
    return Cost(
        f"{several}{config.num_params / 1e6:,.2f}M parameters ({section.mode}), {steps} steps, "
        f"{tokens:,} tokens with padding",
        tokens * training.flops_per_token(config, length, estimate.scored_share(context.base)),
        # The model, and if all weights are trained a checkpoint with two moments for each.
        FLOAT32 * config.num_params * (4 if config.lora is None else 1) * len(runs),
        memory,
        fits(estimate, memory, ("train.group, " if side > 1 else "") + keys)
        or idle(estimate, share, rows, "train.batch_size / train.accumulate"),
        share=share,
        trained=tokens,
    )
