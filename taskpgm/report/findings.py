"""What the results say, in a few sentences and in plain values: no HTML, no drawing."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from taskpgm.records import PairComparison
from taskpgm.report.study import Study

BASE = "base, not fine-tuned"
MANY = 1000  # seeds, at which counting them ends


class Column(NamedTuple):
    """A measure of the results table: where it stands in a run, and which way is better."""

    title: str
    section: str  # "mean" over tasks or "family_mean" over families
    measure: str
    lower_is_better: bool


COLUMNS = (
    Column("loss, mean over tasks", "mean", "loss", True),
    Column("loss, over families", "family_mean", "loss", True),
    Column("exact match, over tasks", "mean", "exact_match", False),
    Column("exact match, over families", "family_mean", "exact_match", False),
)


TARGETS = Column("loss, over targets", "target_mean", "loss", True)


def columns(study: Study) -> tuple[Column, ...]:
    """The measures that this study has: with targets, their mean too."""
    judged = any(run.get("target_mean") for run in study.runs.values())
    return (*COLUMNS, TARGETS) if judged else COLUMNS


class ResultRow(NamedTuple):
    """A mixture's results: one value a column (None: not measured), and its effective tasks."""

    name: str
    values: tuple[float | None, ...]
    effective: float | None


def results_rows(study: Study) -> list[ResultRow]:
    """The results table: the base first, then the mixtures in the order they were compared."""
    rows = [(BASE, study.base)] if study.base.get("mean") else []
    rows += list(study.runs.items())
    return [
        ResultRow(
            name,
            tuple((run.get(c.section) or {}).get(c.measure) for c in columns(study)),
            study.mixtures[name].effective if name in study.mixtures else None,
        )
        for name, run in rows
    ]


def spread(run: Mapping[str, Any], column: Column) -> float | None:
    """Standard deviation of a measure over the seeds of a mixture; None for one seed."""
    seeds = [(each.get(column.section) or {}).get(column.measure) for each in run.get("seeds", ())]
    known = [value for value in seeds if value is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def seeds(study: Study) -> int:
    """Models trained per mixture."""
    return max((len(run.get("seeds", ())) for run in study.runs.values()), default=1) or 1


def best(values: Sequence[float | None], lower_is_better: bool, digits: int = 4) -> set[int]:
    """Positions of the best values, ties (as printed) included."""
    shown = [None if v is None else round(v if lower_is_better else -v, digits) for v in values]
    known = [v for v in shown if v is not None]
    return {i for i, v in enumerate(shown) if v is not None and v == min(known)}


def task_losses(run: Mapping[str, Any]) -> dict[str, float]:
    return {
        task: report["loss"]
        for task, report in (run.get("tasks") or {}).items()
        if report.get("loss") is not None
    }


def compared(study: Study, run: str, other: str, over: str = "tasks") -> PairComparison | None:
    """How `run` fares against `other` in test loss, over "tasks" or "families"."""
    found = study.comparison.get(over)
    for pair in found.pairs if found else ():
        if (pair.first, pair.second) == (run, other):
            return pair
        if (pair.first, pair.second) == (other, run):
            parts = found.parts if found else 0
            return PairComparison(
                first=run,
                second=other,
                difference=-pair.difference,
                low=None if pair.high is None else -pair.high,
                high=None if pair.low is None else -pair.low,
                wins=parts - pair.wins - pair.ties,
                ties=pair.ties,
            )
    return None


def interval(pair: PairComparison) -> str:
    """The bounds of a difference's interval; "" where it has none."""
    if pair.low is None or pair.high is None:
        return ""
    return f"{pair.low:+.4f} to {pair.high:+.4f}".replace("-", "\N{MINUS SIGN}")


def may_be_chance(pair: PairComparison) -> bool:
    """Whether the interval holds zero."""
    return pair.low is None or pair.high is None or pair.low <= 0 <= pair.high


def is_taskpgm(study: Study, name: str) -> bool:
    """Whether a mixture was made from an affinity by the energy."""
    mixture = study.mixtures.get(name)
    return bool(mixture and mixture.affinity) or name.startswith("taskpgm")


def reference_run(study: Study) -> str | None:
    """The run that others are set against: uniform, or else the first."""
    return "uniform" if "uniform" in study.runs else next(iter(study.runs), None)


def ranking(study: Study, measure: str = "loss") -> list[str]:
    """Runs that have the measure, best mean over tasks first."""
    found = {name: (run.get("mean") or {}).get(measure) for name, run in study.runs.items()}
    values = {name: value for name, value in found.items() if value is not None}
    return sorted(values, key=lambda name: values[name], reverse=measure != "loss")


def finding(study: Study) -> str:
    """The result in a few sentences, whichever way it went."""
    ranked = ranking(study)
    if not ranked:
        return _without_runs(study)
    loss = {name: study.runs[name]["mean"]["loss"] for name in ranked}
    first = ranked[0]
    if len(ranked) == 1:
        return (
            f"Only one mixture, {first}, was trained: its mean test loss is "
            f"{loss[first]:.4f} nats per token; there is nothing to compare it with."
        )
    sentences = [
        f"Of {len(ranked)} mixtures, {first} has the lowest mean test loss: "
        f"{loss[first]:.4f} nats per token, {_apart(loss, first, ranked[1])}, the next.",
        *_how_sure(study, ranked),
        *_over_families(study, first),
        *_about_taskpgm(study, ranked, loss),
    ]
    spreads = [spread(study.runs[name], COLUMNS[0]) for name in ranked]
    noise = [value for value in spreads if value is not None]
    if seeds(study) > 1 and len(noise) == len(ranked):
        sentences.append(
            f"Over {seeds(study)} seeds the mean loss of one mixture varies by "
            f"{np.median(noise):.4f} (standard deviation; the median of all mixtures)."
        )
    if len({name.partition("@")[0] for name in ranked}) < len(ranked):
        sentences.append(
            "Some of them are one mixture under several settings: the best setting was found by the"
            " same test rows, which flatters it."
        )
    if lost := left_out(study):
        sentences.append(f"{', '.join(lost)} has no loss on some task, and is not compared.")
    if seeds(study) == 1:
        sentences.append(
            "Each was trained once, and one seed cannot tell such mixtures apart: set train.seeds "
            "to 3 or more."
        )
    base = (study.base.get("mean") or {}).get("loss")
    if base is not None and base <= loss[first]:
        sentences.append(f"No mixture beats the base model without fine-tuning ({base:.4f}).")
    by_match = ranking(study, "exact_match")
    if first in by_match and by_match[0] != first:
        match = [study.runs[name]["mean"]["exact_match"] for name in (by_match[0], first)]
        if match[0] > match[1]:
            sentences.append(
                f"By exact match {by_match[0]} is first, {match[0]:.1%} against {match[1]:.1%} "
                f"for {first}."
            )
    return " ".join(sentences)


def _over_families(study: Study, first: str) -> list[str]:
    """Which mixture is first where every family counts once, if it is another than over tasks."""
    means = {name: (run.get("family_mean") or {}).get("loss") for name, run in study.runs.items()}
    loss = {name: value for name, value in means.items() if value is not None}
    best = min(loss, key=lambda name: loss[name], default=first)
    if best == first or first not in loss:
        return []
    return [
        f"Over families {best} is first, {loss[best]:.4f} against {loss[first]:.4f} for {first}."
    ]


def _about_taskpgm(study: Study, ranked: list[str], loss: Mapping[str, float]) -> list[str]:
    """How the best TaskPGM mixture compares: with uniform if it won, with the winner if not."""
    ours = next((name for name in ranked if is_taskpgm(study, name)), None)
    if ours is None:
        return []
    won = ours == ranked[0]
    other = reference_run(study) if won else ranked[0]
    if other is None or other == ours:
        return []
    against = compared(study, ours, other)
    if against is None:
        return []
    found = study.comparison["tasks"]
    if won:
        apart = "" if other == ranked[1] else f"{_apart(loss, ours, other)}, "
        text = f"{ours} is {apart}lower than {other}'s on {against.wins} of {found.parts} tasks"
    else:
        text = (
            f"TaskPGM does not win here: {ours}, its best mixture, is "
            f"{_apart(loss, ours, other)}, and lower on {against.wins} of {found.parts} tasks"
        )
    told = seeds(study) > 1 and {ours, other} == set(ranked[:2])  # by `_how_sure`
    if against.low is None or told:
        return [text + "."]
    seen = "seeds and tasks" if seeds(study) > 1 else "tasks alone"
    text += f" (95% interval of the mean difference over {seen}: {interval(against)}"
    if may_be_chance(against):
        text += ", which holds zero: it may be chance"
    return [text + ")."]


def left_out(study: Study) -> list[str]:
    """Runs that could not be compared."""
    found = study.comparison.get("tasks")
    return list(found.left_out) if found else []


def _how_sure(study: Study, ranked: Sequence[str]) -> list[str]:
    """Whether the seeds tell the first two apart, and if not, how many would."""
    found, pair = study.comparison.get("tasks"), compared(study, ranked[0], ranked[1])
    if found is None or found.best is None or pair is None or pair.low is None:
        return []
    text = (
        f"The 95% interval of that difference, over {found.seeds} seeds and {found.parts} tasks, "
        f"is {interval(pair)}"
    )
    if may_be_chance(pair):
        text += ", which holds zero: they cannot be told apart"
        needed = found.seeds_needed
        if needed is not None and needed > found.seeds:
            many = f"{needed} or more" if needed >= MANY else f"about {needed}"
            text += f", {many} seeds would be needed for it"
        elif needed is not None:
            text += " on other tasks than these"
    return [
        f"{text}; {ranked[0]} is the best mixture with probability {found.best[ranked[0]]:.2f}."
    ]


def _apart(loss: Mapping[str, float], name: str, other: str) -> str:
    """By how much the loss of one is below or above that of the other."""
    difference = loss[name] - loss[other]
    if difference == 0:
        return f"the same as {other}"
    side = "below" if difference < 0 else "above"
    return f"{abs(difference):.4f} ({abs(difference) / loss[other]:.1%}) {side} {other}"


def _without_runs(study: Study) -> str:
    """What can be said when nothing was trained."""
    mixture = study.mixtures.get(study.main or "")
    if mixture is None:
        return f"{len(study.tasks)} tasks; no mixture has been computed yet."
    top = int(np.argmax(mixture.weights))
    return (
        f"{mixture.name} keeps {mixture.support} of {len(study.tasks)} tasks, as many as "
        f"{mixture.effective:.1f} equally weighted ones; the heaviest is {study.tasks[top]} with "
        f"{mixture.weights[top]:.1%}. No model was trained on it, so what it is worth is not "
        "known from this page."
    )
