"""What mixtures were predicted to be worth: against what was measured, and along a ratio path."""

from collections.abc import Mapping, Sequence

import numpy as np

from taskpgm.report.findings import is_taskpgm, task_losses
from taskpgm.report.study import RatioPath, Study
from taskpgm.report.style import LABEL, WIDTH, Theme, figure, mixture_colours, png, shortened

RATIOS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # that are labelled along a path


def predicted_and_measured(study: Study) -> dict[str, tuple[float, float]]:
    """By run: predicted and measured loss, means over tasks, nats per token."""
    found = {}
    for name, run in study.runs.items():
        mixture, losses = study.mixtures.get(name), task_losses(run)
        if mixture is None or mixture.predicted is None or not losses:
            continue
        told = [task for task in study.tasks if task in losses]
        at = [study.tasks.index(task) for task in told]
        measured = float(np.mean([losses[task] for task in told]))
        found[name] = (float(np.mean(mixture.predicted[at])), measured)
    return found


def rank_correlation(points: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's, of predicted and measured losses; None of fewer than three, or of equal ones."""
    from scipy.stats import spearmanr

    values = np.array(points)
    if len(values) < 3 or (values == values[0]).all(0).any():
        return None
    correlation = np.asarray(spearmanr(*values.T))[0]
    return float(correlation)


def predicted_against_measured(study: Study, theme: Theme) -> bytes:
    """One point a run; on the line, the prediction was right. PNG bytes."""
    points = predicted_and_measured(study)
    colours = mixture_colours(list(points), [x for x in points if is_taskpgm(study, x)], theme)
    with figure(0.6 * WIDTH, 3.9, theme) as drawn:
        axes = drawn.subplots()
        drawn.subplots_adjust(left=0.12, right=0.98, top=0.97, bottom=0.13)
        for name, (predicted, measured) in points.items():
            axes.scatter(
                predicted,
                measured,
                s=30,
                color=colours[name],
                linewidths=0,
                label=shortened(name),
                zorder=3,
            )
        values = np.array(list(points.values()))
        ends = values.min(), values.max()
        axes.plot(ends, ends, color=theme.muted, linewidth=0.8, linestyle=":")
        axes.grid()
        axes.margins(0.08)
        axes.set_xlabel("predicted loss, nats per token")
        axes.set_ylabel("measured test loss, nats per token")
        axes.legend(fontsize=LABEL)
        return png(drawn)


def along_the_path(
    paths: Mapping[str, RatioPath], chosen: Mapping[str, float], theme: Theme
) -> bytes:
    """For every affinity: weights, effective tasks and predicted loss against the ratio, with the
    breakpoints below and a line where its mixture stands. PNG bytes."""
    with figure(WIDTH, 0.5 + 2.3 * len(paths), theme) as drawn:
        panels = drawn.subplots(len(paths), 3, squeeze=False)
        drawn.subplots_adjust(
            left=0.06, right=0.99, top=1 - 0.12 / len(paths), bottom=0.2 / len(paths),
            wspace=0.24, hspace=0.5,
        )  # fmt: skip
        for row, (kind, path) in zip(panels, paths.items(), strict=True):
            curves: list[tuple[str, np.ndarray, np.ndarray]] = [
                ("weights", path.ratios, path.weights),
                ("effective tasks", path.grid, path.effective),
            ]
            if path.predicted is not None:
                curves.append(("predicted loss", path.grid, path.predicted))
            for panel, (title, ratios, values) in zip(row, curves, strict=False):
                panel.plot(ratios, values, linewidth=0.9)
                panel.plot(path.ratios, np.full(len(path.ratios), 0.0), "|", markersize=3,
                           transform=panel.get_xaxis_transform(), color=theme.muted)  # fmt: skip
                if kind in chosen:
                    panel.axvline(chosen[kind], color=theme.ink, linewidth=0.8, linestyle=":")
                panel.set_title(f"{kind}: {title}", fontsize=LABEL)
                panel.set_xlabel("ratio r", fontsize=LABEL)
                panel.set_xscale("symlog", linthresh=1.0)
                panel.set_xlim(0, path.ratios[-1])
                ticks = [r for r in RATIOS if r <= path.ratios[-1]]
                panel.set_xticks(ticks, [f"{r:g}" for r in ticks])
                panel.minorticks_off()
                panel.tick_params(labelsize=LABEL)
                panel.grid()
            for panel in row[len(curves) :]:
                panel.axis("off")
        return png(drawn)


def selection_curve(study: Study, theme: Theme) -> bytes:
    """f(A) / f(all) of the first k tasks, for every row that selects, and the share of the best k
    tasks' value that theory grants. PNG bytes."""
    with figure(0.6 * WIDTH, 2.9, theme) as drawn:
        axes = drawn.subplots()
        drawn.subplots_adjust(left=0.1, right=0.98, top=0.96, bottom=0.17)
        for name, mixture in study.mixtures.items():
            if mixture.selection:
                share = mixture.selection["share"]
                (line,) = axes.plot(
                    range(1, len(share) + 1), share, marker="o", markersize=3, label=shortened(name)
                )
                granted = float(mixture.selection["guarantee"])
                told = f"theory's bound, {100 * granted:.2g}%"
                axes.axhline(
                    granted, color=line.get_color(), linewidth=0.8, linestyle=":", label=told
                )
        axes.set_ylim(0, 1.03)
        axes.grid(axis="y")
        axes.set_xlabel("tasks selected, k")
        axes.set_ylabel("f(A) / f(all)")
        axes.legend(fontsize=LABEL)
        return png(drawn)
