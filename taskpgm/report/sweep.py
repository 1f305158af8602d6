"""A sweep: what every row was worth under every setting, as a table and as curves."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from taskpgm.records import SweepPoint
from taskpgm.report.findings import is_taskpgm
from taskpgm.report.records_tables import Head, RecordTable, Value
from taskpgm.report.study import Study
from taskpgm.report.style import LABEL, WIDTH, Theme, figure, mixture_colours, png, shortened

WIDE = 20  # a ratio of the largest to the smallest value beyond which the axis is logarithmic


def swept_keys(study: Study) -> list[str]:
    """Keys of which the workdir has more than one value."""
    values: dict[str, set[str]] = {}
    for point in study.sweep:
        for key, value in point.settings.items():
            values.setdefault(key, set()).add(shown(value))
    return [key for key, found in values.items() if len(found) > 1]


def title(key: str) -> str:
    """A key without its section: `ratio`, `optimizer.lr`."""
    return key.split(".", 1)[-1]


def shown(value: Any) -> str:
    """A value as tables and axes show it."""
    if isinstance(value, list):
        return "+".join(map(str, value))
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def table(study: Study) -> RecordTable:
    """One row a point, those of one row of `compare` together and by value."""
    keys = swept_keys(study)
    heads = (
        Head("mixture"),
        *(Head(title(key)) for key in keys),
        Head("seeds", "d"),
        Head("loss, mean over tasks", ".4f"),
        Head("sd over seeds", ".4f"),
        Head("loss, over families", ".4f"),
        Head("exact match", ".1%"),
        Head("probability of being best at this budget and training", ".2f"),
        Head("examples", ",d"),
        Head("tokens", ",d"),
        Head("steps", ",d"),
    )
    order = list(dict.fromkeys(point.row for point in study.sweep))
    points = sorted(
        study.sweep,
        key=lambda p: (order.index(p.row), [_sortable(p.settings.get(key)) for key in keys]),
    )
    rows: list[tuple[Value, ...]] = []
    for p in points:
        values = [shown(p.settings[key]) if key in p.settings else "any" for key in keys]
        told = (p.seeds, p.loss, p.sd, p.family_loss, p.exact_match, p.best)
        rows.append((p.row, *values, *told, p.examples, p.tokens, p.steps))
    return RecordTable("sweep", heads, rows)


def figures(study: Study) -> Iterator[tuple[str, str, Any]]:
    """(name, text in place of the image, theme -> PNG) of each swept key."""
    for key in swept_keys(study):
        yield (
            f"sweep-{title(key)}",
            f"test loss of every mixture against {title(key)}",
            lambda theme, key=key: curves(study, key, theme),
        )


def curves(study: Study, key: str, theme: Theme) -> bytes:
    """Loss against a swept key, a line for each row and each setting of the other keys; bars are a
    standard deviation over seeds, a dashed line is a row that does not depend on the key."""
    others = [other for other in swept_keys(study) if other != key]
    known = [p for p in study.sweep if p.loss is not None]
    values = sorted({_sortable(p.settings[key]) for p in known if key in p.settings})
    numbers = all(order == 0 for order, *_ in values)
    at = {value: value[1] if numbers else float(i) for i, value in enumerate(values)}
    lines: dict[str, list[SweepPoint]] = {}
    for p in known:
        lines.setdefault(_line(p, others), []).append(p)
    ours = [label for label, points in lines.items() if is_taskpgm(study, points[0].row)]
    colours = mixture_colours(list(lines), ours, theme)
    with figure(WIDTH, 3.9, theme) as drawn:
        axes = drawn.subplots()
        drawn.subplots_adjust(left=0.08, right=0.7, top=0.97, bottom=0.13)
        for i, (label, points) in enumerate(lines.items()):
            style = {"color": colours[label], "label": shortened(label)}
            if key not in points[0].settings:
                axes.axhline(_height(points[0]), linestyle="--", linewidth=1.0, **style)
                continue
            points = sorted(points, key=lambda p: _sortable(p.settings[key]))
            placed = [(_sortable(p.settings[key]), p) for p in points]
            for joined in (True, False):  # no way leads from a number to a word, as "auto"
                part = [(value, p) for value, p in placed if (value[0] == 0) == joined]
                if not part:
                    continue
                axes.errorbar(
                    [at[value] for value, _ in part],
                    [_height(p) for _, p in part],
                    yerr=[p.sd or 0.0 for _, p in part],
                    marker="os^Dv"[i % 5],
                    markersize=4,
                    linewidth=1.2 if joined else 0.0,
                    elinewidth=1.2,
                    capsize=2,
                    **style,
                )
                style.pop("label", None)  # once in the legend
        if not numbers:
            axes.set_xticks(range(len(values)), [shortened(text) for *_, text in values])
        elif values[0][1] > 0 and values[-1][1] / values[0][1] > WIDE:
            axes.set_xscale("log")
        axes.grid(axis="y")
        axes.set_xlabel(title(key))
        axes.set_ylabel("test loss, nats per token")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=LABEL)
        return png(drawn)


def _height(point: SweepPoint) -> float:
    return float("nan") if point.loss is None else point.loss


def _line(point: SweepPoint, others: list[str]) -> str:
    """What the points of one line have in common."""
    told: Mapping[str, Any] = {title(k): point.settings[k] for k in others if k in point.settings}
    settings = ", ".join(f"{name}={shown(value)}" for name, value in told.items())
    return f"{point.row}{', ' if settings else ''}{settings}"


def _sortable(value: Any) -> tuple[int, float, str]:
    """Numbers in their order, then texts."""
    text = "" if value is None else shown(value)
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    return (0, number, text) if np.isfinite(number) else (1, 0.0, text)
