"""Stage `evaluation`: how good each mixture's model is, in evaluation/NAME and results.json."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from taskpgm import evaluation, training
from taskpgm.artefact import digest, done_facts, done_key, read_json, write_json
from taskpgm.records import Measures, ModelResult, Results, Sample, from_json, to_json
from taskpgm.stages.context import Context, Source
from taskpgm.stages.estimate import Cost, Estimate, harness_tokens
from taskpgm.stages.runs import MADE as RUNS
from taskpgm.stages.runs import Run, planned_runs
from taskpgm.stages.stage_artefact import MadeAnew, StageArtefact

SECTIONS = ("evaluation",)
MADE = "evaluation"
FILE = "measures.json"
RESULTS = "results.json"


def artefacts(context: Context) -> Iterator[StageArtefact]:
    """The measures of the base and of every run's model, each an artefact, so that one more mixture
    costs one more evaluation; then their summary."""
    yield measured(context, "base", context.base)
    runs = planned_runs(context)
    for run in runs:
        yield measured(context, run.name, run_source(context, run))
    yield Summary(context.folder / MADE, "", context)


def run_source(context: Context, run: Run) -> Source:
    """The model of a run; its key is "" until the run is finished."""
    folder = context.folder / RUNS / run.name
    return Source(folder / "hf", done_key(folder) or "")


def measured(context: Context, name: str, source: Source) -> "MeasuredModel":
    """The artefact that holds the measures of one model."""
    section = context.config.evaluation.to_dict()
    for free in ("batch_size", "harness_batch_size"):
        del section[free]
    key = digest(source.key, section, context.config.tasks.length, context.tasks_key)
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
            context.tasks,
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
        write_json(self.folder / FILE, to_json(Measures(per_task, benchmarks)))
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


@dataclass(frozen=True)
class Summary(MadeAnew):
    """results.json, written again by each run from the measures of the models."""

    def make(self) -> dict[str, Any]:
        context = self.context
        families = {task.name: task.family for task in context.tasks}
        base = measured(context, "base", context.base).read()
        seeds: dict[str, list[Measures]] = {}
        facts: dict[str, dict[str, Any]] = {}
        for run in planned_runs(context):
            model = measured(context, run.name, run_source(context, run))
            seeds.setdefault(run.mixture, []).append(model.read())
            facts[run.mixture] = done_facts(context.folder / RUNS / run.name)
        first = {"base": base.tasks} | {name: each[0].tasks for name, each in seeds.items()}
        samples = evaluation.samples(context.tasks, first)
        results = Results(
            base=result([base], families),
            runs={name: result(each, families, facts[name]) for name, each in seeds.items()},
            samples=[from_json(Sample, sample) for sample in samples],
        )
        write_json(self.folder / RESULTS, to_json(results))
        return {}

    def cost(self, estimate: Estimate) -> Cost:
        return Cost(f"{self.folder / RESULTS}")

    def summary(self) -> str:
        return f"{self.folder / RESULTS}"


SPENT = ("steps", "epochs", "examples", "tokens", "seconds")


def result(
    seeds: list[Measures], families: dict[str, str], facts: dict[str, Any] | None = None
) -> ModelResult:
    """A mixture's measures averaged over its seeds, and the averages of each seed."""
    per_task = {
        task: {
            **first,
            **{k: mean(seed.tasks[task][k] for seed in seeds) for k in ("loss", "exact_match")},
        }
        for task, first in seeds[0].tasks.items()
    }
    averages = [evaluation.aggregate(seed.tasks, families) for seed in seeds]
    return ModelResult(
        **evaluation.aggregate(per_task, families),
        harness=seeds[0].harness,
        seeds=[{k: each[k] for k in ("mean", "family_mean")} for each in averages] if facts else [],
        **{k: facts[k] for k in SPENT} if facts else {},
    )


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
