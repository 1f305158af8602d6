"""The charts of the page: weights, gains and training curves. Each returns PNG bytes.

matplotlib is imported when a figure is drawn, not before.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from taskpgm.report.findings import is_taskpgm, task_losses
from taskpgm.report.study import Study
from taskpgm.report.style import (
    LABEL,
    WIDTH,
    Theme,
    family_colours,
    figure,
    mixture_colours,
    png,
    shortened,
    text_inches,
)

MOST_BARS = 48  # tasks in a chart; of more, those that matter
MOST_PANELS = 6  # mixtures in a chart


def weights(study: Study, theme: Theme) -> bytes:
    """One panel per mixture, one bar per task, grouped by family; a line marks uniform."""
    names = list(study.mixtures)[:MOST_PANELS]
    stacked = np.stack([study.mixtures[name].weights for name in names])
    tasks = chosen_tasks(study, stacked.max(axis=0))
    colours = _colours(study, list(study.mixtures), theme)
    height = _height(tasks)
    with figure(WIDTH, height, theme) as drawn:
        panels = list(drawn.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0])
        _lay_out(drawn, study, tasks)
        for panel, name in zip(panels, names, strict=True):
            values = 100 * study.mixtures[name].weights[tasks]
            panel.barh(np.arange(len(tasks)), values, height=0.68, color=colours[name])
            for y in np.flatnonzero(values <= 0):
                panel.text(0, y, " 0", fontsize=6.4, color=theme.muted, va="center")
            panel.axvline(100 / len(study.tasks), color=theme.ink, linewidth=0.8, linestyle=":")
            panel.set_title(shortened(name, 17))
            panel.grid(axis="x")
            panel.spines["left"].set_color(theme.muted)
            panel.spines["bottom"].set_visible(False)
            panel.tick_params(axis="x", labelsize=LABEL)
            panel.set_xlabel("weight, %")
        panels[0].set_xlim(0, 100 * stacked[:, tasks].max() * 1.04)
        _task_axis(panels, study, tasks, theme)
        return png(drawn)


def gains(study: Study, reference: str, theme: Theme) -> bytes:
    """Test loss of every run minus the reference's, task by task; left of zero is better."""
    names = [name for name in study.runs if name != reference][:MOST_PANELS]
    losses = {name: task_losses(study.runs[name]) for name in study.runs}
    difference = np.array(
        [
            [losses[name].get(task, np.nan) - losses[reference].get(task, np.nan) for name in names]
            for task in study.tasks
        ]
    )
    tasks = chosen_tasks(study, np.nan_to_num(np.abs(difference)).max(axis=1))
    colours = _colours(study, list(study.runs), theme)
    spread = np.linspace(-0.18, 0.18, len(names)) if len(names) > 1 else [0.0]
    with figure(WIDTH, _height(tasks), theme) as drawn:
        axes = drawn.subplots()
        _lay_out(drawn, study, tasks)
        for j, name in enumerate(names):
            y = np.arange(len(tasks)) + spread[j]
            axes.scatter(
                difference[tasks, j],
                y,
                s=22,
                color=colours[name],
                linewidths=0,
                label=shortened(name),
            )
        axes.axvline(0, color=theme.muted, linewidth=1.0, zorder=0.9)
        axes.grid(axis="x")
        axes.spines[:].set_visible(False)
        axes.set_xlabel(f"test loss minus that of {reference}, nats per token (left is better)")
        _legend_above(axes)
        _task_axis([axes], study, tasks, theme)
        return png(drawn)


def training(study: Study, theme: Theme) -> bytes:
    """Training loss of every run: as logged, faint, and its running mean."""
    colours = _colours(study, list(study.curves), theme)
    height = 3.6
    with figure(WIDTH, height, theme) as drawn:
        axes = drawn.subplots()
        drawn.subplots_adjust(left=0.06, right=0.995, top=0.9, bottom=0.125)
        for name, curve in study.curves.items():
            step, loss = curve.T
            smooth = running_mean(loss, max(1, len(loss) // 25))
            axes.plot(step, loss, color=colours[name], linewidth=0.6, alpha=0.35)
            axes.plot(step, smooth, color=colours[name], linewidth=1.6, label=shortened(name))
        axes.grid(axis="y")
        axes.margins(x=0.01)
        axes.set_xlabel("step")
        axes.set_ylabel("training loss, nats per token")
        _legend_above(axes)
        return png(drawn)


def chosen_tasks(study: Study, scores: np.ndarray, limit: int = MOST_BARS) -> list[int]:
    """Tasks for a chart, grouped by family: all of them, or the `limit` with the largest scores."""
    rank = {family: i for i, family in enumerate(study.families)}
    kept = np.argsort(-scores, kind="stable")[:limit]
    return sorted(kept.tolist(), key=lambda i: (rank[study.family[study.tasks[i]]], i))


def running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Mean over the 2 half + 1 values around each, fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _colours(study: Study, names: Sequence[str], theme: Theme) -> dict[str, str]:
    """Colours by name, the same in every chart of the study."""
    known = list(dict.fromkeys([*study.mixtures, *study.runs, *names]))
    return mixture_colours(known, [name for name in known if is_taskpgm(study, name)], theme)


def _height(tasks: Sequence[int]) -> float:
    return 0.85 + (0.19 if len(tasks) <= 30 else 0.16) * max(len(tasks), 3)


def _lay_out(drawn: Any, study: Study, tasks: Sequence[int]) -> None:
    """Sets the margins: room for the longest name at the left, a title above, an axis below."""
    width, height = drawn.get_size_inches()
    names = text_inches([shortened(study.tasks[i]) for i in tasks], LABEL)
    families = text_inches([shortened(family, 18) for family in study.families], LABEL)
    drawn.subplots_adjust(
        left=(names + 0.12 + (families + 0.4 if families else 0.0)) / width,
        right=0.995,
        top=1 - 0.35 / height,
        bottom=0.45 / height,
        wspace=0.08,
    )


def _legend_above(axes: Any) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=MOST_PANELS,
        handlelength=1.2,
        handletextpad=0.5,
        columnspacing=1.5,
        borderaxespad=0.2,
    )


def _task_axis(panels: Sequence[Any], study: Study, tasks: Sequence[int], theme: Theme) -> None:
    """Task names; every other family shaded, each named in its colour at the far left."""
    first = panels[0]
    first.set_ylim(len(tasks) - 0.4, -0.6)
    first.set_yticks(range(len(tasks)), [shortened(study.tasks[i]) for i in tasks], fontsize=LABEL)
    colours = family_colours([family for family in study.families if family], theme)
    of_task = [study.family[study.tasks[i]] for i in tasks]
    starts = [i for i, f in enumerate(of_task) if i == 0 or of_task[i - 1] != f]
    box, inches = first.get_position(), first.figure.get_size_inches()[0]
    edge, unit = -box.x0 / box.width, 1 / (inches * box.width)  # figure's edge, an inch
    across = first.get_yaxis_transform()
    for k, (start, end) in enumerate(zip(starts, [*starts[1:], len(tasks)], strict=True)):
        family = of_task[start]
        if not family:
            continue
        for panel in panels if k % 2 == 0 else ():
            panel.axhspan(
                start - 0.5, end - 0.5, color=theme.line, alpha=0.4, linewidth=0, zorder=-1
            )
        first.plot(
            (edge + 0.05 * unit,) * 2,
            (start - 0.4, end - 0.6),
            color=colours[family],
            linewidth=3.2,
            solid_capstyle="butt",
            clip_on=False,
            transform=across,
        )
        first.text(
            edge + 0.14 * unit,
            (start + end - 1) / 2,
            shortened(family, 18),
            fontsize=LABEL,
            color=theme.muted,
            va="center",
            transform=across,
        )
