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
    n, k = transfer.share.shape
    own = transfer.share[:, :n]
    order = order_rows(0.5 * (own + own.T)) if n > 1 else np.arange(n)
    columns = np.append(order, np.arange(n, k))
    every_name = [*transfer.tasks, *transfer.targets]
    names = [every_name[i] for i in columns]
    side = min(max(0.21 * n, 3.2), 6.8)
    across = side * k / n
    every = max(1, int(np.ceil(n * LEGIBLE / side)))
    size = LABEL if every == 1 else SMALL
    shown, below = np.arange(0, n, every), np.arange(0, k, every)
    labels = [shortened(names[i]) for i in below]
    margin = EDGE + text_inches(labels, size) + 0.3
    width, height = margin + across + 0.2 + BAR + 0.55, margin + side + 0.12
    with figure(width, height, theme) as drawn:

        def axes(x: float, y: float, w: float, h: float) -> Any:
            return drawn.add_axes((x / width, y / height, w / width, h / height))

        main = axes(margin, margin, across, side)
        image = main.imshow(
            transfer.share[np.ix_(order, columns)],
            interpolation="nearest",
            aspect="auto",
            cmap=colormap(theme.diverging),
            vmin=-1,
            vmax=1,
        )
        main.set_yticks(shown, [shortened(names[i]) for i in shown], fontsize=size)
        main.set_xticks(below, labels, fontsize=size, rotation=90)
        if k > n:
            main.axvline(n - 0.5, color=theme.ink, linewidth=0.8)
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
    out; for every target its teachers."""
    share = transfer.share.copy()
    np.fill_diagonal(share, -np.inf)

    names = [*transfer.tasks, *transfer.targets]

    def best(values: np.ndarray) -> list[tuple[str, str]]:
        order = np.argsort(-values, kind="stable")[:BEST]
        return [(names[i], f"{values[i]:.2f}") for i in order if values[i] > 0]

    return [
        Influence(
            name,
            bool(transfer.learnt[k]),
            best(share[:, k]),
            best(share[k]) if k < len(share) else [],
        )
        for k, name in enumerate(names)
    ]
