"""The page's tables as cells: formatted numbers, with the best ones marked."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from taskpgm.report import findings, records_tables
from taskpgm.report.study import Mixture, Study

TINT = 0.10  # a relative difference that has the full tint
PAIRS = 1000  # of tasks that are listed; all are in affinity/*.npz


class Cell(NamedTuple):
    """A number of a table: text, a quiet second text, whether it is the best, a tint in [-1, 1]."""

    text: str
    second: str = ""
    best: bool = False
    tint: float = 0.0


def facts(study: Study) -> list[tuple[str, str]]:
    """The numbers under the title: (value, what it is)."""
    named = [family for family in study.families if family]
    found = [(f"{len(study.tasks):,}", "tasks")]
    if named:
        found.append((f"{len(named):,}", "families"))
    if study.targets:
        found.append((f"{len(study.targets):,}", "targets, judged and not mixed"))
    if study.train:
        found.append((f"{sum(study.train.values()):,}", "training examples"))
    if study.heldout:
        found.append((f"{sum(study.heldout.values()):,}", "held-out examples, which choose"))
    if study.test:
        found.append((f"{sum(study.test.values()):,}", "test examples, which judge"))
    mixture = study.mixtures.get(study.main or "")
    if mixture and mixture.counts:
        found.append((f"{sum(mixture.counts):,}", "examples in a mixture"))
    if mixture:
        found.append((f"{mixture.support} of {len(study.tasks)}", f"tasks kept by {mixture.name}"))
    steps = {run.get("steps") for run in study.runs.values()} - {None}
    if len(steps) == 1:
        found.append((f"{steps.pop():,}", "steps a run"))
    return found


def results_cells(study: Study) -> list[tuple[str, list[Cell], list[str]]]:
    """Rows of the results table: (name, measures, probability of being best, effective tasks and
    what was spent)."""
    rows = findings.results_rows(study)
    winners = [
        findings.best([row.values[j] for row in rows], column.lower_is_better)
        for j, column in enumerate(findings.columns(study))
    ]
    sure = [records_tables.best(study, over) for over in ("tasks", "families")]
    table = []
    for i, row in enumerate(rows):
        cells = [
            Cell(_number(value, column.measure), _spread(study, row.name, column), i in winners[j])
            for j, (value, column) in enumerate(
                zip(row.values, findings.columns(study), strict=True)
            )
        ]
        probability = " / ".join(f"{each[row.name]:.2f}" for each in sure if row.name in each)
        effective = "–" if row.effective is None else f"{row.effective:.1f}"
        run = study.runs.get(row.name, {})
        spent = [records_tables.shown(run.get(key), head) for key, head in records_tables.SPENT]
        table.append((row.name, cells, [probability or "–", effective, *spent]))
    return table


class Difference(NamedTuple):
    """How the loss of one mixture differs from that of another, over tasks or over families."""

    difference: str
    interval: str
    wins: str
    sure: bool  # the interval leaves out zero


def differences(study: Study, name: str, other: str) -> list[Difference]:
    """Over tasks and over families, the loss of `name` less that of `other`."""
    cells = []
    for over, comparison in study.comparison.items():
        pair = findings.compared(study, name, other, over)
        if pair is None:
            cells.append(Difference("–", "–", "–", False))
            continue
        tied = f", {pair.ties} tied" if pair.ties else ""
        cells.append(
            Difference(
                f"{pair.difference:+.4f}".replace("-", "\N{MINUS SIGN}"),
                findings.interval(pair) or "–",
                f"{pair.wins} of {comparison.parts}{tied}",
                not findings.may_be_chance(pair),
            )
        )
    return cells


def against_first(study: Study) -> list[tuple[str, list[Difference]]]:
    """Every mixture but the first, against that."""
    found = study.comparison.get("tasks")
    ranked = found.ranked if found else []
    return [(name, differences(study, name, ranked[0])) for name in ranked[1:]]


def all_pairs(study: Study) -> list[tuple[str, str, list[Difference]]]:
    """Every pair, the better one over tasks first."""
    found = study.comparison.get("tasks")
    names = [(pair.first, pair.second) for pair in found.pairs] if found else []
    return [(first, second, differences(study, first, second)) for first, second in names]


def choosing_rows(study: Study) -> list[tuple[str, list[str], str]]:
    """(mixture or shared part, its costs, what it rests on or how many mixtures share it)."""
    if study.choosing is None:
        return []
    heads = [head for _, head in records_tables.CHOOSING]
    rows = []
    for name, row in study.choosing.rows.items():
        costs = records_tables.cost_of_choosing(study, name)
        cells = [records_tables.shown(cost, head) for cost, head in zip(costs, heads, strict=True)]
        rests = ", ".join(row.parts) or ("nothing" if row.total else "a given matrix")
        rows.append((name, cells, rests))
    used = [part for row in study.choosing.rows.values() for part in row.parts]
    for name, part in study.choosing.parts.items():
        costs = [getattr(part, key) for key, _ in records_tables.CHOOSING]
        cells = [records_tables.shown(cost, head) for cost, head in zip(costs, heads, strict=True)]
        rows.append((f"shared: {name}", cells, f"{used.count(name)} mixtures"))
    return rows


def _spread(study: Study, name: str, column: findings.Column) -> str:
    error = findings.spread(study.runs.get(name, {}), column)
    return "" if error is None else f"± {_number(error, column.measure)}"


def loss_cells(study: Study, section: str) -> list[tuple[str, str, list[Cell], list[str]]]:
    """Loss and exact match of each family or task under each run: (name, family, cells, counts of
    examples and tokens of a task).

    The tint is the difference to the reference run, relative to it.
    """
    runs = ([study.base] if study.base.get(section) else []) + list(study.runs.values())
    named = list({"families": study.families, "targets": study.targets}.get(section, study.tasks))
    rank = {family: i for i, family in enumerate(study.families)}
    if section == "tasks":
        named.sort(key=lambda task: rank[study.family[task]])
    reference = (study.runs.get(findings.reference_run(study) or "") or {}).get(section) or {}
    table = []
    for name in named:
        reports = [(run.get(section) or {}).get(name) or {} for run in runs]
        values = [report.get("loss") for report in reports]
        if all(value is None for value in values):
            continue
        winners = findings.best(values, True)
        anchor = (reference.get(name) or {}).get("loss")
        cells = []
        for i, (report, value) in enumerate(zip(reports, values, strict=True)):
            tint = (anchor - value) / (TINT * anchor) if anchor and value is not None else 0.0
            match = report.get("exact_match")
            cells.append(
                Cell(
                    _number(value, "loss"),
                    "" if match is None else f"{match:.0%}",
                    i in winners,
                    max(-1.0, min(1.0, tint)) if report is not reports[0] or not study.base else 0,
                )
            )
        counts = records_tables.task_counts(study, runs, name) if section == "tasks" else []
        told = ["–" if count is None else f"{count:,}" for count in counts]
        table.append((name, study.family.get(name, name), cells, told))
    return table


def benchmark_rows(study: Study) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """Public benchmarks, where they were run: (models, [(benchmark and metric, cells)])."""
    models = {"base": study.base, **study.runs}
    found = {name: run["harness"] for name, run in models.items() if run.get("harness")}
    keys = dict.fromkeys(
        (task, metric)
        for scores in found.values()
        for task, metrics in scores.items()
        for metric in metrics
        if "stderr" not in metric and "," in metric
    )
    rows = []
    for task, metric in keys:
        values = [scores.get(task, {}).get(metric) for scores in found.values()]
        winners = findings.best(values, "perplexity" in metric)
        cells = [
            Cell("–" if value is None else f"{value:.4f}", best=i in winners)
            for i, value in enumerate(values)
        ]
        rows.append((f"{task}: {metric.split(',')[0]}", cells))
    return list(found), rows


def task_rows(study: Study, mixture: Mixture) -> list[dict[str, Any]]:
    """What decides each task's weight, heaviest first."""
    unknown = np.full(len(mixture.weights), np.nan)

    def per_task(key: str) -> Float[np.ndarray, "n"]:
        values = mixture.array(key)
        return unknown if values is None else values

    redundancy, cost = per_task("redundancy"), per_task("reduced_cost")
    low, high, kept_share = per_task("low"), per_task("high"), per_task("kept_share")
    widest = np.nanmax([mixture.weights, high])
    # Where a kept task's is not zero: at its cap, or the mixture is not the minimiser.
    priced = np.abs(cost) > 1e-6 * np.abs(redundancy).max()
    rows = []
    for i in np.argsort(-mixture.weights, kind="stable").tolist():
        weight = mixture.weights[i]
        interval = not np.isnan(low[i] + high[i])
        rows.append(
            {
                "task": study.tasks[i],
                "family": study.family[study.tasks[i]],
                "train": study.train.get(study.tasks[i]),
                "weight": f"{weight:.2%}",
                "share": float(weight / widest),
                "low": float(low[i] / widest) if interval else None,
                "high": float(high[i] / widest) if interval else None,
                "interval": f"{low[i]:.1%} to {high[i]:.1%}" if interval else "",
                "count": None if mixture.counts is None else mixture.counts[i],
                "representativeness": _plain(float(per_task("representativeness")[i])),
                "redundancy": _plain(float(redundancy[i])),
                "reduced_cost": _plain(float(cost[i])) if weight == 0 or priced[i] else "",
                "kept_share": "" if np.isnan(kept_share[i]) else f"{kept_share[i]:.0%}",
                "notes": study.notes.get(study.tasks[i], ()),
            }
        )
    return rows


def affinity_note(study: Study, kind: str) -> str:
    """Numbers that go with a heat map: within families against between, and how sure."""
    affinity = study.affinities[kind]
    n = len(affinity.tasks)
    if n < 2:
        return ""
    family = np.array([study.family.get(task, "") for task in affinity.tasks])
    off = ~np.eye(n, dtype=bool)
    within = (family[:, None] == family[None, :]) & off & (family != "")[:, None]
    text = ""
    if within.any() and (~within & off).any():
        text = (
            f"Mean within families {_plain(affinity.matrix[within].mean())}, between them "
            f"{_plain(affinity.matrix[~within & off].mean())}."
        )
    if affinity.low is not None and affinity.high is not None and (affinity.matrix[off] < 0).any():
        sure = (affinity.low > 0) | (affinity.high < 0)
        text += f" The 95% interval leaves out zero for {sure[off].mean():.0%} of the pairs."
    return text


def pair_rows(study: Study, kind: str) -> list[dict[str, Any]]:
    """Pairs of tasks, closest first, `PAIRS` at most, each with its affinity and interval."""
    affinity = study.affinities[kind]
    first, second = np.triu_indices(len(affinity.tasks), 1)
    rows = []
    closest = np.argsort(-affinity.matrix[first, second], kind="stable")[:PAIRS]
    for i, j in zip(first[closest].tolist(), second[closest].tolist(), strict=True):
        ends = [float(bound[i, j]) for bound in (affinity.low, affinity.high) if bound is not None]
        rows.append(
            {
                "tasks": (affinity.tasks[i], affinity.tasks[j]),
                "value": _plain(float(affinity.matrix[i, j])),
                "interval": " to ".join(map(_plain, ends)),
            }
        )
    return rows


def _number(value: float | None, measure: str) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if measure == "loss" else f"{value:.1%}"


def _plain(value: float) -> str:
    """Four decimals and a true minus sign; nothing for NaN."""
    if not np.isfinite(value):
        return ""
    return f"{value:.4f}".replace("-", "\N{MINUS SIGN}")
