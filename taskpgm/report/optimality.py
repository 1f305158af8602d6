"""Why a mixture has its weights: the optimality conditions as a picture."""

import numpy as np
from jaxtyping import Float

from taskpgm.report.study import Mixture, Study
from taskpgm.report.style import (
    LABEL,
    WIDTH,
    Theme,
    family_colours,
    figure,
    png,
    shortened,
    text_inches,
)

HEIGHT = 4.8
LISTED = 24  # families in the legend


def optimality(study: Study, mixture: Mixture, theme: Theme) -> bytes:
    """Representativeness against redundancy of each task, as PNG bytes.

    At the optimum (S~ p)_i = r (S 1)_i / n + mu for every task kept and below its cap, so these lie
    on one line of slope r. A task at zero lies above it by its reduced cost, one at its cap below.
    Points carry no names: the table under the figure has all of them.
    """
    x, y = mixture.array("representativeness"), mixture.array("redundancy")
    if x is None or y is None:
        raise ValueError(f"the mixture {mixture.name} has nothing that explains its weights")
    families = [family for family in study.families if family]
    colours = family_colours(families, theme)
    colour = np.array([colours.get(study.family[task], theme.mixtures[0]) for task in study.tasks])
    kept = mixture.weights > 0
    area = 14 + 300 * mixture.weights / mixture.weights.max()
    legend = [shortened(family, 20) for family in families[:LISTED]]
    right = 1 - ((text_inches(legend, LABEL) + 0.35 if legend else 0.0) + 0.1) / WIDTH
    with figure(WIDTH, HEIGHT, theme) as drawn:
        axes = drawn.subplots()
        drawn.subplots_adjust(left=0.068, right=right, top=0.975, bottom=0.1)
        axes.scatter(x[kept], y[kept], s=area[kept], c=colour[kept], alpha=0.85, linewidths=0)
        axes.scatter(
            x[~kept], y[~kept], s=22, facecolors="none", edgecolors=colour[~kept], linewidths=1.1
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
        for i, family in enumerate(legend):
            height = 0.955 - 0.185 * i / HEIGHT
            at = right + 0.15 / WIDTH
            drawn.text(at, height, "●", color=colours[families[i]], fontsize=LABEL, va="center")
            drawn.text(at + 0.16 / WIDTH, height, family, fontsize=LABEL, va="center")
        return png(drawn)


def _padded(values: Float[np.ndarray, "n"]) -> tuple[float, float]:
    """Limits of an axis with a margin around the values."""
    reach = float(np.ptp(values)) or abs(float(values[0])) or 1.0
    return float(values.min()) - 0.09 * reach, float(values.max()) + 0.09 * reach
