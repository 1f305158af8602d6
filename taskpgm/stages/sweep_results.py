"""The results of all settings in a workdir: those asked for now, and earlier ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from taskpgm import evaluation
from taskpgm.artefact import done_facts, done_key
from taskpgm.records import Measures, SweepPoint
from taskpgm.stages.benchmarked import judged
from taskpgm.stages.compare import parse
from taskpgm.stages.context import Context
from taskpgm.stages.measured import measured, run_source
from taskpgm.stages.run_models import MADE, inputs_key, run_name
from taskpgm.stages.sweep import SEEDS, depends, first_settings, points


@dataclass(frozen=True)
class Model:
    """One model: its measures, and what it cost to make."""

    measures: Measures
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Tried:
    """A row under settings, with its models by seed. See `sweep.Point`."""

    label: str
    row: str
    settings: Mapping[str, Any]
    group: str
    models: Sequence[Model]


def read_model(context: Context, name: str) -> Model:
    """The model runs/NAME, which has to be trained and measured."""
    measures = judged(context, name, run_source(context, name))
    return Model(measures, done_facts(context.folder / MADE / name))


def asked_for(context: Context) -> list[Tried]:
    """Every point of the config."""
    models: dict[str, Model] = {}
    found = []
    for point in points(context):
        names = [run_name(point.label, seed) for seed in range(point.seeds)]
        for name in names:
            if name not in models:
                models[name] = read_model(context, name)
        of_seeds = [models[name] for name in names]
        found.append(Tried(point.label, point.row, point.settings, point.group, of_seeds))
    return found


def from_before(context: Context, asked: Sequence[Tried]) -> list[Tried]:
    """Models that earlier launches have trained and measured on the same base and tasks."""
    known, inputs = {each.label for each in asked}, inputs_key(context)
    of_label: dict[str, dict[int, tuple[str, Mapping[str, Any]]]] = {}
    folder = context.folder / MADE
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or done_key(path) is None:
            continue
        facts = done_facts(path)
        if facts.get("inputs") == inputs and facts["label"] not in known:
            of_label.setdefault(facts["label"], {})[facts["seed"]] = path.name, facts
    found = []
    for label, of_seed in of_label.items():
        models = []
        while len(models) in of_seed:
            name, facts = of_seed[len(models)]
            if not measured(context, name, run_source(context, name)).is_done():
                break
            models.append(read_model(context, name))
        if models:
            facts = models[0].facts
            found.append(Tried(label, facts["row"], facts["settings"], facts["group"], models))
    return found


def sweep_points(context: Context, asked: Sequence[Tried]) -> list[SweepPoint]:
    """Every row under every setting of the workdir; empty if there is only one setting."""
    tried = [*asked, *from_before(context, asked)]
    first = first_settings(context.folder, context.config)
    keys = dict.fromkeys(key for each in tried for key in each.settings)
    if not keys:
        return []
    best = probabilities(tried)
    families = {task.name: task.family for task in context.tasks}
    found = []
    for each in tried:
        seeds = [evaluation.aggregate(model.measures.tasks, families) for model in each.models]
        losses = [seed["mean"]["loss"] for seed in seeds if seed["mean"]["loss"] is not None]
        whole = len(losses) == len(seeds)
        facts = [model.facts for model in each.models]
        found.append(
            SweepPoint(
                name=each.label,
                row=bare(each.row),
                settings={key: v for key in keys if (v := value(each, key, first)) is not None},
                seeds=len(seeds),
                loss=float(np.mean(losses)) if whole else None,
                sd=float(np.std(losses, ddof=1)) if whole and len(losses) > 1 else None,
                family_loss=mean(seed["family_mean"]["loss"] for seed in seeds),
                exact_match=mean(seed["mean"]["exact_match"] for seed in seeds),
                best=best.get((each.label, len(seeds))),
                examples=facts[0]["examples"],
                tokens=round(float(np.mean([fact["tokens"] for fact in facts]))),
                steps=facts[0]["steps"],
            )
        )
    return found


def bare(row: str) -> str:
    """A row's name without k, which counts as a setting here."""
    head, colon, tail = row.partition(":")
    kept = [part for part in tail.split(",") if not part.startswith("k=")]
    return head + (colon + ",".join(kept) if any(kept) else "")


def value(tried: Tried, key: str, first: Mapping[str, Any]) -> Any:
    """The value of a key with which a row was tried; None if the row does not depend on it."""
    if key == SEEDS:
        return len(tried.models)
    if key in tried.settings:
        return tried.settings[key]
    if key == "k":
        return parse(tried.row, needs=False)[1].get("k")
    return first.get(key) if depends(tried.row, key) else None


def probabilities(tried: Sequence[Tried]) -> dict[tuple[str, int], float]:
    """By label and number of seeds: how likely it is the best of the same budget, training and
    seeds; none with one seed, or alone."""
    groups: dict[tuple[str, int], list[Tried]] = {}
    for each in tried:
        groups.setdefault((each.group, len(each.models)), []).append(each)
    found = {}
    for (_, seeds), group in groups.items():
        losses = {each.label: [m.measures.losses for m in each.models] for each in group}
        best = evaluation.compare_runs(losses).best
        for label, probability in (best or {}).items() if len(losses) > 1 else ():
            found[label, seeds] = probability
    return found


def mean(values: Any) -> float | None:
    """The mean; None if a value is unknown."""
    known = list(values)
    return None if any(x is None for x in known) else float(np.mean(known))
