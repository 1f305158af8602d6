"""One model's measures: on every task's test rows, and on the harness's benchmarks."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from taskpgm import evaluation, training
from taskpgm.artefact import digest, done_key, read_json, write_json
from taskpgm.records import Measures, from_json, to_json
from taskpgm.stages.context import Context, Source
from taskpgm.stages.estimate import Cost, Estimate, harness_tokens
from taskpgm.stages.runs import MADE as RUNS
from taskpgm.stages.stage_artefact import StageArtefact

MADE = "evaluation"
FILE = "measures.json"


def run_source(context: Context, name: str) -> Source:
    """The model runs/NAME; its key is "" until the run is finished."""
    folder = context.folder / RUNS / name
    return Source(folder / "hf", done_key(folder) or "")


def measured(context: Context, name: str, source: Source) -> "MeasuredModel":
    """The artefact that holds the measures of one model."""
    section = context.config.evaluation.to_dict()
    for free in ("batch_size", "harness_batch_size"):
        del section[free]
    key = digest(source.key, section, context.config.tasks.length, context.judged_key)
    return MeasuredModel(context.folder / MADE / name, key, context, name, source)


@dataclass(frozen=True)
class MeasuredModel(StageArtefact):
    """The measures of one model on every task's test rows, and on the harness's benchmarks."""

    source: Source | None = None

    def make(self) -> dict[str, Any]:
        context, section, source = self.context, self.context.config.evaluation, self.source
        if source is None or not source.key:
            raise ValueError(f"{self.title}: no finished run: run the stage `runs` first")
        config, params = context.load_model(source)
        tokenizer = context.tokenizer(source)
        per_task = evaluation.evaluate(
            config,
            params,
            tokenizer,
            context.judged,
            context.test_rows,
            batch_size=section.batch_size,
            max_new_tokens=section.max_new_tokens,
            exact_match_examples=section.exact_match_examples or None,
        )
        benchmarks = None
        if section.harness:
            shots = section.harness_num_fewshot
            benchmarks = evaluation.run_harness(
                config,
                params,
                tokenizer,
                list(section.harness),
                path=section.harness_path,
                batch_size=section.harness_batch_size,
                num_fewshot=shots if shots >= 0 else None,
                limit=section.harness_limit or None,
                chat_template=section.harness_chat_template,
            )
        mixed, targets = (
            {task.name: per_task[task.name] for task in part}
            for part in (context.tasks, context.targets)
        )
        write_json(self.folder / FILE, to_json(Measures(mixed, benchmarks, targets)))
        return {}

    def read(self) -> Measures:
        """What was measured."""
        return from_json(Measures, read_json(self.folder / FILE))

    def cost(self, estimate: Estimate) -> Cost:
        context, section = self.context, self.context.config.evaluation
        config, length = estimate.decoder(context.base), context.config.tasks.length
        counts = estimate.split(context.base, "test")
        read = counts.padded(length, 1)  # rows of all tasks share batches
        generated = estimate.generated(section.exact_match_examples, section.max_new_tokens)
        benchmarks, unknown = harness_tokens(section.harness)
        each = training.forward_flops_per_token(config, length)
        text = f"{read:,} test tokens with padding, {generated:,} to generate answers"
        if section.harness:
            text += f", {benchmarks:,} of {', '.join(section.harness)}"
        if unknown:
            text += f" ({', '.join(unknown)} not counted)"
        return Cost(text, (read + generated + benchmarks) * each)

    def summary(self) -> str:
        loss = mean(m["loss"] for m in self.read().tasks.values())
        return f"mean test loss {loss:.4f} nats per token"


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
