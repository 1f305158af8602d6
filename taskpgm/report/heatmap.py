"""The affinity as a heat map, its rows ordered by clustering."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.cluster import hierarchy

from taskpgm.mixture.clustering import linkage
from taskpgm.report.study import Affinity
from taskpgm.report.style import (
    LABEL,
    SMALL,
    Theme,
    colormap,
    family_colours,
    figure,
    png,
    shortened,
    text_inches,
)

LEGIBLE = 0.135  # inches a line of small text needs
STRIP, TREE, BAR = 0.13, 0.8, 0.14  # inches: family strips, the tree, the colour scale
COLUMNS, MOST, LINE = 4, 24, 0.175  # the legend: columns, families named, inches a line
EDGE = 0.08


def heat_map(affinity: Affinity, family: Mapping[str, str], theme: Theme) -> bytes:
    """S ordered by clustering: families as strips at two edges, the tree at the right.

    A matrix with negative entries is coloured around zero, another from its least to its greatest
    off-diagonal value; the scale ends at the 99th percentile, so that one pair does not fade all.
    """
    from matplotlib.colors import to_rgb

    n = len(affinity.matrix)
    tree = linkage(affinity.matrix) if n > 1 else None
    order = np.arange(n) if tree is None else hierarchy.leaves_list(tree)
    matrix = affinity.matrix[np.ix_(order, order)]
    names = [affinity.tasks[i] for i in order]
    families = [f for f in dict.fromkeys(family.get(task, "") for task in affinity.tasks) if f]
    colours = family_colours(families, theme)

    side = min(max(0.21 * n, 3.2), 6.8)
    every = max(1, int(np.ceil(n * LEGIBLE / side)))
    size = LABEL if every == 1 else SMALL
    shown = np.arange(0, n, every)
    labels = [shortened(names[i]) for i in shown]
    strip = STRIP if families else 0.0
    margin = EDGE + text_inches(labels, size) + 0.08 + strip
    legend = LINE * -(-min(len(families), MOST) // COLUMNS) + 0.1 if families else 0.0
    bottom = margin + legend
    width = margin + side + TREE + 0.2 + BAR + 0.55
    height = bottom + side + 0.12
    with figure(width, height, theme) as drawn:

        def axes(x: float, y: float, w: float, h: float) -> Any:
            return drawn.add_axes((x / width, y / height, w / width, h / height))

        main = axes(margin, bottom, side, side)
        scale, beyond = _scale(matrix, theme)
        image = main.imshow(matrix, interpolation="nearest", aspect="auto", **scale)
        main.set_yticks(shown, labels, fontsize=size)
        main.set_xticks(shown, labels, fontsize=size, rotation=90)
        main.tick_params(pad=72 * strip + 3)
        main.spines[:].set_visible(False)
        if n <= 60:  # hairlines between cells
            between, ends = np.arange(1, n) - 0.5, (-0.5, n - 0.5)
            main.hlines(between, *ends, color=theme.paper, linewidth=0.5)
            main.vlines(between, *ends, color=theme.paper, linewidth=0.5)

        if families:
            of_task = np.array([to_rgb(colours.get(family.get(x, ""), theme.line)) for x in names])
            left = axes(margin - strip, bottom, 0.7 * strip, side)
            left.imshow(of_task[:, None], interpolation="nearest", aspect="auto")
            under = axes(margin, bottom - strip, side, 0.7 * strip)
            under.imshow(of_task[None, :], interpolation="nearest", aspect="auto")
            left.axis("off")
            under.axis("off")
            _legend(drawn, families, colours)

        if tree is not None:
            _tree(axes(margin + side + 0.06, bottom, TREE, side), tree, theme)
        bar = axes(width - 0.55 - BAR, bottom + side / 4, BAR, side / 2)
        drawn.colorbar(image, cax=bar, extend=beyond, extendfrac=0.04)
        bar.tick_params(labelsize=LABEL)
        bar.spines["outline"].set_visible(False)
        return png(drawn)


def _scale(matrix: np.ndarray, theme: Theme) -> tuple[dict[str, Any], str]:
    """The colour scale, and at which ends values lie beyond it."""
    off = matrix[~np.eye(len(matrix), dtype=bool)] if len(matrix) > 1 else matrix.ravel()
    if (off < 0).any():
        reach = float(np.quantile(np.abs(off), 0.99)) or 1.0
        return {"cmap": colormap(theme.diverging), "vmin": -reach, "vmax": reach}, "both"
    low, high = float(off.min()), float(np.quantile(off, 0.99))
    high = high if high > low else low + 1.0
    return {"cmap": colormap(theme.sequential), "vmin": low, "vmax": high}, "max"


def _tree(axes: Any, tree: Float[np.ndarray, "merges 4"], theme: Theme) -> None:
    """The merges as brackets, the leaves at the left."""
    from matplotlib.collections import LineCollection

    drawn = hierarchy.dendrogram(tree, no_plot=True)
    # scipy puts leaf i at 10 i + 5.
    places, heights = np.array(drawn["icoord"]) / 10 - 0.5, np.array(drawn["dcoord"])
    brackets = np.stack([heights, places], axis=-1)
    n = len(tree) + 1
    lines = LineCollection(list(brackets), colors=theme.muted, linewidths=0.7 if n <= 60 else 0.4)
    axes.add_collection(lines)
    axes.axis((0, 1.03 * (float(heights.max()) or 1.0), n - 0.5, -0.5))
    axes.axis("off")


def _legend(drawn: Any, families: Sequence[str], colours: Mapping[str, str]) -> None:
    """Families and their colours at the foot of the figure, down each column in turn."""
    from matplotlib.patches import Rectangle

    width, height = drawn.get_size_inches()
    shown = list(families) if len(families) <= MOST else list(families[: MOST - 1])
    rows = -(-min(len(families), MOST) // COLUMNS)
    if len(families) > MOST:
        shown.append(f"and {len(families) - len(shown)} more")
    for i, family in enumerate(shown):
        left = EDGE + (width - EDGE) / COLUMNS * (i // rows)
        low = 0.04 + LINE * (rows - 1 - i % rows)
        if family in colours:
            patch = Rectangle(
                (left / width, (low + 0.015) / height),
                0.09 / width,
                0.09 / height,
                transform=drawn.transFigure,
                color=colours[family],
                linewidth=0,
            )
            drawn.add_artist(patch)
        x, y = (left + 0.15) / width, low / height
        drawn.text(x, y, shortened(family, 26), fontsize=LABEL, va="bottom")
