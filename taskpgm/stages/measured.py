"""One model's measures on every task's test rows, in evaluation/NAME."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax

from taskpgm import evaluation, models, training
from taskpgm.artefact import digest, done_key, read_json, write_json
from taskpgm.records import Measures, from_json, to_json
from taskpgm.stages.context import Context, Source
from taskpgm.stages.estimate import FLOAT32, Cost, Estimate, fits, idle
from taskpgm.stages.run_models import MADE as RUNS
from taskpgm.stages.stage_artefact import StageArtefact

MADE = "evaluation"
FILE = "measures.json"


def run_source(context: Context, name: str) -> Source:
    """The model runs/NAME; its key is "" until the run is finished."""
    folder = context.folder / RUNS / name
    return Source(folder / "hf", done_key(folder) or "")


# What of the section decides a measure: not the benchmarks, nor how many are done at a time.
DECIDED_BY = ("exact_match_examples", "max_new_tokens")


def measured(context: Context, name: str, source: Source) -> "MeasuredModel":
    """The artefact with the measures of one model."""
    settings = [context.config.evaluation[key] for key in DECIDED_BY]
    key = digest(source.key, settings, context.config.tasks.length, context.judged_key)
    return MeasuredModel(context.folder / MADE / name, key, context, name, source)


@dataclass(frozen=True)
class JudgedModel(StageArtefact):
    """Something that is measured of one model, which has to be there."""

    source: Source | None = None

    def load(self) -> tuple[Any, Any, Any]:
        """Its config, parameters and tokenizer."""
        if self.source is None or not self.source.key:
            raise ValueError(f"{self.title}: no finished run: run the stage `runs` first")
        return (*self.context.load_model(self.source), self.context.tokenizer(self.source))


@dataclass(frozen=True)
class MeasuredModel(JudgedModel):
    """The measures of one model on every task's test rows."""

    def make(self) -> dict[str, Any]:
        context, section = self.context, self.context.config.evaluation
        per_task = evaluation.evaluate(
            *self.load(),
            context.judged,
            context.test_rows,
            batch_size=section.batch_size,
            max_new_tokens=section.max_new_tokens,
            exact_match_examples=section.exact_match_examples or None,
        )
        mixed, targets = (
            {task.name: per_task[task.name] for task in part}
            for part in (context.tasks, context.targets)
        )
        write_json(self.folder / FILE, to_json(Measures(mixed, targets=targets)))
        return {}

    def read(self) -> Measures:
        """What was measured."""
        return from_json(Measures, read_json(self.folder / FILE))

    def cost(self, estimate: Estimate) -> Cost:
        context, section = self.context, self.context.config.evaluation
        config, length = estimate.decoder(context.base), context.config.tasks.length
        split, batch = estimate.split(context.base, "test"), section.batch_size
        # Rows of all tasks share batches.
        read = -(-sum(x.rows for x in split) // batch) * batch * length
        asked = estimate.prompts(section.exact_match_examples, section.max_new_tokens, batch)
        memory = judging_memory(config, batch, length, asked.longest, estimate)
        share, longest = estimate.used(batch), max(1, asked.longest)
        flops = training.forward_flops_per_token
        return Cost(
            f"{read:,} test tokens read with padding, {asked.read:,} of prompts, {asked.written:,} "
            "written",
            read * flops(config, length, sum(x.scored for x in split) / read)
            + asked.read * flops(config, longest, 0.0)
            + asked.written * flops(config, longest),
            memory=memory,
            problem=fits(estimate, memory, "evaluation.batch_size or mesh.fsdp")
            or idle(estimate, share, batch, "evaluation.batch_size"),
            share=share,
            scored=read + asked.read + asked.written,
        )

    def summary(self) -> str:
        loss = mean(m["loss"] for m in self.read().tasks.values())
        return f"mean test loss {loss:.4f} nats per token"


def judging_memory(
    config: models.DecoderConfig, rows: int, length: int, longest: int, estimate: Estimate
) -> float:
    """Bytes on one device to score rows of `length`, or to continue prompts up to `longest`: the
    model, and the larger of a forward pass and of keys, values and logits."""
    mesh = estimate.mesh
    weights = training.model_bytes(config) / (mesh["fsdp"] * mesh["tensor"])
    parts = mesh["data"] * mesh["fsdp"]
    here = rows // parts if rows % parts == 0 else rows
    # `forward_memory` counts two whole models, of which one is here, and not whole.
    reading = training.forward_memory(config, rows=here, length=length, mesh=mesh)
    reading -= 2 * training.model_bytes(config)
    each = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    cache = here * longest * each * jax.numpy.dtype(config.dtype).itemsize
    return weights + max(reading, 2 * cache + here * FLOAT32 * config.vocab_size)


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
