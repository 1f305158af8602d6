"""Two pictures of the study: who is better than uniform, and what the predicted loss is worth."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = ("#c2570c", "#1f5fa8")  # of the budgets


def draw_differences(compared: Mapping[str, Any], path: Path) -> None:
    """Every row's loss minus that of uniform, with its interval; `compared` by budget and unit."""
    *_, most = compared
    order = list(reversed(compared[most]["tasks"]))
    figure, axes = plt.subplots(1, 2, figsize=(10, 6), sharey=True)
    for axis, unit in zip(axes, ("tasks", "families"), strict=True):
        for k, (budget, colour) in enumerate(zip(compared, COLOURS, strict=True)):
            at = compared[budget][unit]
            for y, row in enumerate(order):
                middle, low, high = at[row]["against"].get("uniform", (0, 0, 0))
                height = y + 0.15 - 0.3 * k
                axis.plot([low, high], [height, height], color=colour, linewidth=1.5)
                axis.plot(middle, height, "o", color=colour, markersize=4)
            axis.plot([], [], "o-", color=colour, label=f"{budget} examples")
        axis.axvline(0, color="#888888", linewidth=0.8)
        axis.set_xlabel(f"test loss minus that of uniform, nats, over {unit}")
    axes[0].set_yticks(range(len(order)), order)
    axes[0].legend(loc="upper right", frameon=False)
    _save(figure, path)


def draw_ranks(
    expected: Mapping[str, Mapping[str, float]],
    compared: Mapping[str, Any],
    correlations: Mapping[str, tuple[float, float]],
    path: Path,
) -> None:
    """The rank of every row by predicted loss, and by measured loss over tasks, for each budget."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5))
    for axis, budget, colour in zip(axes, compared, COLOURS, strict=True):
        before = sorted(expected[budget], key=lambda row: expected[budget][row])
        after = list(compared[budget]["tasks"])
        for row in before:
            axis.plot([0, 1], [before.index(row), after.index(row)], "o-", color=colour, ms=3, lw=1)
        axis.set_yticks(range(len(before)), before, fontsize=8)
        axis.invert_yaxis()
        right = axis.twinx()
        right.set_ylim(axis.get_ylim())
        right.set_yticks(range(len(after)), after, fontsize=8)
        axis.set_xticks([0, 1], ["predicted", "measured"])
        axis.set_title(f"{budget} examples, rank correlation {correlations[budget][0]:.2f}")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
