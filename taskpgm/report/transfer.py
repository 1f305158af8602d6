"""Who helps whom: the directed matrix of transfer as a picture, and each task's best teachers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from taskpgm.mixture.clustering import order_rows
from taskpgm.report.study import StudyTransfer
from taskpgm.report.style import LABEL, SMALL, Theme, colormap, figure, png, shortened, text_inches

LEGIBLE = 0.135  # inches a line of small text needs
BAR, EDGE = 0.14, 0.08  # inches: the colour scale, the margin
BEST = 3  # teachers and pupils named


class Influence(NamedTuple):
    """A task with its best teachers and pupils, each a task and the share that it brings."""

    task: str
    learnt: bool
    teachers: list[tuple[str, str]]
    pupils: list[tuple[str, str]]


def transfer_map(transfer: StudyTransfer, family: Mapping[str, str], theme: Theme) -> bytes:
    """G with rows and columns ordered by clustering of who helps alike; PNG bytes.

    Rows help columns: blue helps, red harms. The scale is symmetric and ends at 1, the share that a
    task's own training brings.
    """
    share, n = transfer.share, len(transfer.tasks)
    order = order_rows(0.5 * (share + share.T)) if n > 1 else np.arange(n)
    names = [transfer.tasks[i] for i in order]
    side = min(max(0.21 * n, 3.2), 6.8)
    every = max(1, int(np.ceil(n * LEGIBLE / side)))
    size = LABEL if every == 1 else SMALL
    shown = np.arange(0, n, every)
    labels = [shortened(names[i]) for i in shown]
    margin = EDGE + text_inches(labels, size) + 0.3
    width, height = margin + side + 0.2 + BAR + 0.55, margin + side + 0.12
    with figure(width, height, theme) as drawn:

        def axes(x: float, y: float, w: float, h: float) -> Any:
            return drawn.add_axes((x / width, y / height, w / width, h / height))

        main = axes(margin, margin, side, side)
        image = main.imshow(
            share[np.ix_(order, order)],
            interpolation="nearest",
            aspect="auto",
            cmap=colormap(theme.diverging),
            vmin=-1,
            vmax=1,
        )
        main.set_yticks(shown, labels, fontsize=size)
        main.set_xticks(shown, labels, fontsize=size, rotation=90)
        main.set_ylabel("teacher", fontsize=LABEL)
        main.set_xlabel("pupil", fontsize=LABEL)
        main.spines[:].set_visible(False)
        bar = axes(width - 0.55 - BAR, margin + side / 4, BAR, side / 2)
        drawn.colorbar(image, cax=bar, extend="both", extendfrac=0.04)
        bar.tick_params(labelsize=LABEL)
        bar.spines["outline"].set_visible(False)
        return png(drawn)


def influences(transfer: StudyTransfer) -> list[Influence]:
    """For every task its three best teachers and pupils, itself and those who bring nothing left
    out."""
    share = transfer.share.copy()
    np.fill_diagonal(share, -np.inf)

    def best(values: np.ndarray) -> list[tuple[str, str]]:
        order = np.argsort(-values, kind="stable")[:BEST]
        return [(transfer.tasks[i], f"{values[i]:.2f}") for i in order if values[i] > 0]

    return [
        Influence(name, bool(transfer.learnt[k]), best(share[:, k]), best(share[k]))
        for k, name in enumerate(transfer.tasks)
    ]
