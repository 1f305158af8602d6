"""Stage `evaluation`: how good each mixture's model is, in evaluation/NAME and results.json."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskpgm import evaluation
from taskpgm.artefact import write_json
from taskpgm.records import Comparison, Measures, ModelResult, Results, Sample, from_json, to_json
from taskpgm.stages.benchmarked import benchmarked, judged
from taskpgm.stages.context import Context
from taskpgm.stages.estimate import Cost, Estimate
from taskpgm.stages.measured import MADE, mean, measured, run_source
from taskpgm.stages.runs import planned_runs
from taskpgm.stages.stage_artefact import MadeAnew, StageArtefact
from taskpgm.stages.sweep import own_group
from taskpgm.stages.sweep_results import Tried, asked_for, sweep_points

SECTIONS = ("evaluation",)
RESULTS = "results.json"


def artefacts(context: Context) -> Iterator[StageArtefact]:
    """The measures of the base and of every run's model, each an artefact, so that one more mixture
    costs one more evaluation; then their benchmarks; then the summary."""
    sources = {"base": context.base}
    sources |= {run.name: run_source(context, run.name) for run in planned_runs(context)}
    for name, source in sources.items():
        yield measured(context, name, source)
    if context.config.evaluation.harness:
        for name, source in sources.items():
            yield benchmarked(context, name, source)
    yield Summary(context.folder / MADE, "", context)


@dataclass(frozen=True)
class Summary(MadeAnew):
    """results.json, written again by each run from the measures of the models."""

    def make(self) -> dict[str, Any]:
        context = self.context
        families = {task.name: task.family for task in context.judged}
        base = judged(context, "base", context.base)
        asked = asked_for(context)
        own, groups = own_group(context), [each.group for each in asked]
        group = own if own in groups else groups[0]
        most: dict[str, Tried] = {}  # where the number of seeds is swept, all of them
        for each in asked:
            known = most.get(each.label)
            if each.group == group and (known is None or len(each.models) > len(known.models)):
                most[each.label] = each
        seeds = {name: [m.measures for m in each.models] for name, each in most.items()}
        facts = {name: [m.facts for m in each.models] for name, each in most.items()}
        first = {"base": base.judged} | {name: each[0].judged for name, each in seeds.items()}
        samples = evaluation.samples(context.judged, first)
        results = Results(
            base=result([base], families),
            runs={name: result(each, families, facts[name]) for name, each in seeds.items()},
            samples=[from_json(Sample, sample) for sample in samples],
            comparison=compared(seeds, families),
            sweep=sweep_points(context, asked),
        )
        write_json(self.folder / RESULTS, to_json(results))
        return {}

    def cost(self, estimate: Estimate) -> Cost:
        return Cost(f"{self.folder / RESULTS}")

    def summary(self) -> str:
        return f"{self.folder / RESULTS}"


def compared(
    seeds: Mapping[str, Sequence[Measures]], families: Mapping[str, str]
) -> dict[str, Comparison]:
    """All pairs of mixtures, over tasks and over families."""
    losses = {name: [each.losses for each in models] for name, models in seeds.items()}
    return {
        "tasks": evaluation.compare_runs(losses),
        "families": evaluation.compare_runs(losses, families),
    }


SPENT = ("steps", "epochs", "examples", "tokens", "seconds")


def result(
    seeds: Sequence[Measures],
    families: dict[str, str],
    facts: Sequence[Mapping[str, Any]] = (),
) -> ModelResult:
    """A model's averages over its seeds, and each seed's own; `facts`: what each of them took."""
    own = []
    for seed in seeds if facts else ():
        averages = averaged([seed], families)
        kept = ("mean", "family_mean", "target_mean")
        own.append({k: averages[k] for k in kept if k in averages} | {"losses": seed.losses})
    spent: dict[str, Any] = {name: mean(each[name] for each in facts) for name in SPENT if facts}
    for name in ("steps", "examples", "tokens"):
        if spent.get(name) is not None:
            spent[name] = round(spent[name])
    averages = averaged(seeds, families)
    return ModelResult(**averages, harness=seeds[0].harness, seeds=own, **spent)


def averaged(seeds: Sequence[Measures], families: dict[str, str]) -> dict[str, Any]:
    """`evaluation.aggregate` of the mean over seeds; where there are targets, theirs beside it."""
    mixed, targets = (
        {
            task: {
                **first,
                **{k: mean(part[task][k] for part in parts) for k in ("loss", "exact_match")},
            }
            for task, first in parts[0].items()
        }
        for parts in ([seed.tasks for seed in seeds], [seed.targets for seed in seeds])
    )
    found = evaluation.aggregate(mixed, families)
    if targets:
        apart = evaluation.aggregate(targets, families)
        found |= {"targets": apart["tasks"], "target_mean": apart["mean"]}
    return found
