"""Why a mixture has its weights: the optimality conditions as a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from taskpgm.report.artefacts import Mixture, Study
from taskpgm.report.style import (
    LABEL,
    SMALL,
    WIDTH,
    Theme,
    family_colours,
    figure,
    png,
    shortened,
    text_inches,
)

HEIGHT = 4.8
MOST_NAMES = 32
# Where a name may stand beside its point, away from the line: below it for the kept, else above.
BELOW = ((1, -1), (1, 0), (0, -1), (-1, 1), (-1, 0), (0, 1), (1, 1), (-1, -1))
ABOVE = ((-1, 1), (-1, 0), (0, 1), (1, -1), (1, 0), (0, -1), (1, 1), (-1, -1))


def reasons(study: Study, mixture: Mixture, theme: Theme) -> bytes:
    """Representativeness against redundancy of each task.

    At the optimum (S~ p)_i = r (S 1)_i / n + mu for every task kept and below its cap, so these lie
    on one line of slope r; a task at zero lies above it by its reduced cost, one at its cap below.
    """
    x, y = mixture.array("representativeness"), mixture.array("redundancy")
    families = [family for family in study.families if family]
    colours = family_colours(families, theme)
    tint = np.array([colours.get(study.family[task], theme.mixtures[0]) for task in study.tasks])
    kept = mixture.weights > 0
    relative = mixture.weights / mixture.weights.max()
    area = np.where(kept, 14 + 300 * relative, 22)
    listed = [shortened(family, 20) for family in families[:24]]
    legend = text_inches(listed, LABEL) + 0.35 if listed else 0.0
    with figure(WIDTH, HEIGHT, theme) as drawn:
        axes = drawn.subplots()
        right = 1 - (legend + 0.1) / WIDTH
        drawn.subplots_adjust(left=0.068, right=right, top=0.975, bottom=0.1)
        axes.scatter(x[kept], y[kept], s=area[kept], c=tint[kept], alpha=0.85, linewidths=0)
        axes.scatter(
            x[~kept],
            y[~kept],
            s=area[~kept],
            facecolors="none",
            edgecolors=tint[~kept],
            linewidths=1.1,
        )
        ratio, cost = mixture.facts.get("ratio"), mixture.array("reduced_cost")
        if ratio is not None and cost is not None:
            level = float(np.median(y - ratio * x - cost))  # mu, the same for every task
            axes.axline(
                (0, level),
                slope=ratio,
                color=theme.muted,
                linewidth=0.9,
                linestyle=(0, (4, 3)),
                zorder=0.9,
            )
        axes.set_xlim(*_padded(x))
        axes.set_ylim(*_padded(y))
        axes.grid(True)
        axes.set_xlabel("representativeness: mean affinity to all tasks")
        axes.set_ylabel("redundancy: affinity to the mixture")
        interest = np.where(kept, relative, 0.4)
        sides = [BELOW if k else ABOVE for k in kept]
        _name_points(axes, np.column_stack([x, y]), area, study.tasks, interest, sides, theme)
        for i, family in enumerate(listed):
            height = 0.955 - 0.185 * i / HEIGHT
            at = right + 0.15 / WIDTH
            drawn.text(at, height, "●", color=colours[families[i]], fontsize=LABEL, va="center")
            drawn.text(at + 0.16 / WIDTH, height, family, fontsize=LABEL, va="center")
        return png(drawn)


def _padded(values: np.ndarray) -> tuple[float, float]:
    reach = float(np.ptp(values)) or abs(float(values[0])) or 1.0
    return float(values.min()) - 0.09 * reach, float(values.max()) + 0.09 * reach


def _name_points(
    axes: Any,
    points: np.ndarray,
    area: np.ndarray,
    names: Sequence[str],
    interest: np.ndarray,
    sides: Sequence[Sequence[tuple[int, int]]],
    theme: Theme,
) -> None:
    """Names the points, the most interesting first, where a name touches nothing; or not at all.

    All boxes are in display units: (left, low, right, high).
    """
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2, foreground=theme.paper)]
    unit = axes.figure.dpi / 72
    centres = axes.transData.transform(points)
    radius = np.sqrt(area / np.pi) * unit
    taken = np.column_stack([centres - radius[:, None], centres + radius[:, None]])
    frame = axes.get_window_extent()
    tall = 1.2 * SMALL * unit
    for i in np.argsort(-interest, kind="stable")[:MOST_NAMES]:
        name = shortened(names[i], 30)
        wide = 72 * unit * text_inches([name], SMALL)
        others = np.arange(len(taken)) != i
        for across, up in sides[i]:
            reach = (radius[i] + 2 * unit) * (0.75 if across and up else 1.0)
            left = centres[i, 0] + across * reach - wide * (1 - across) / 2
            low = centres[i, 1] + up * reach - tall * (1 - up) / 2
            box = (left, low, left + wide, low + tall)
            inside = (
                frame.x0 < box[0] and box[2] < frame.x1 and frame.y0 < box[1] and box[3] < frame.y1
            )
            if inside and not (_touching(taken, box) & others).any():
                at = axes.transData.inverted().transform((left, low + tall / 2))
                axes.text(*at, name, fontsize=SMALL, va="center_baseline", path_effects=halo)
                taken = np.vstack([taken, box])
                break


def _touching(boxes: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    return (
        (boxes[:, 0] < box[2])
        & (box[0] < boxes[:, 2])
        & (boxes[:, 1] < box[3])
        & (box[1] < boxes[:, 3])
    )
