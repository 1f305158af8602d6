"""Averages of what `evaluate` measured, and a few answers for people to read."""

from collections.abc import Mapping, Sequence

import numpy as np

from taskpgm.evaluation.measure import Report, asked
from taskpgm.tasks import Task

MEASURES = ("loss", "exact_match")


def aggregate(per_task: Mapping[str, Report], families: Mapping[str, str]) -> Report:
    """Averages of one model's measurements.

    Args:
      per_task: what `evaluate` returned.
      families: {task: family}.

    Returns:
      {"tasks": {task: {...}} (texts left out), "families": {family: {"loss", "exact_match",
      "tasks"}}, each the mean over its tasks, "mean": the mean over tasks, "family_mean": the mean
      over families, which keeps a large family from deciding alone}.
    """
    tasks = {
        name: {key: value for key, value in report.items() if key != "predictions"}
        for name, report in per_task.items()
    }
    members: dict[str, list[Report]] = {}
    for name, report in tasks.items():
        members.setdefault(families[name], []).append(report)
    by_family = {
        family: {**_mean(reports), "tasks": len(reports)} for family, reports in members.items()
    }
    return {
        "tasks": tasks,
        "families": by_family,
        "mean": _mean(list(tasks.values())),
        "family_mean": _mean(list(by_family.values())),
    }


def _mean(reports: Sequence[Report]) -> dict[str, float | None]:
    """Plain means; a measure that some report lacks has none."""
    return {
        key: None
        if any(report[key] is None for report in reports)
        else float(np.mean([report[key] for report in reports]))
        for key in MEASURES
    }


def samples(
    tasks: Sequence[Task], runs: Mapping[str, Mapping[str, Report]], per_task: int = 1
) -> list[Report]:
    """A few examples with what each model answered, for people to read.

    Args:
      runs: {run: what `evaluate` returned for it}.
      per_task: so many from each task, the first ones that every run answered.

    Returns:
      dicts of "task", "family", "prompt", "response", "predictions" ({run: text}).
    """
    chosen = []
    for task in tasks:
        answers = {run: reports[task.name]["predictions"] for run, reports in runs.items()}
        answered = [
            i
            for i in range(min(map(len, answers.values()), default=0))
            if all(texts[i] is not None for texts in answers.values())
        ]
        for i in answered[:per_task]:
            prompt, response = asked(task.test[i])
            chosen.append(
                {
                    "task": task.name,
                    "family": task.family,
                    "prompt": prompt,
                    "response": response,
                    "predictions": {run: texts[i] for run, texts in answers.items()},
                }
            )
    return chosen
