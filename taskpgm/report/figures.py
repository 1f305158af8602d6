"""The figures of the page. Each function returns PNG bytes; matplotlib is imported when called."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from taskpgm.report.artefacts import Affinity, Mixture, Study
from taskpgm.report.findings import is_taskpgm, task_losses
from taskpgm.report.order import cluster
from taskpgm.report.style import Theme, colormap, family_colours, figure, mixture_colours, png

LEGIBLE = 0.135  # inches a line of small text needs
MOST_BARS = 48  # tasks in a bar chart; of more, the ones that matter
WIDTH = 10.2  # inches, the page's text width


def heat_map(affinity: Affinity, family: Mapping[str, str], theme: Theme) -> bytes:
    """S ordered by clustering: family strips at two edges, the tree at the right.

    A matrix with negative entries is coloured around zero, another from its least to its greatest
    off-diagonal value; the scale ends at the 99th percentile, so that one pair does not fade all.
    """
    from matplotlib.patches import Rectangle

    n = len(affinity.matrix)
    tree = cluster(affinity.matrix)
    matrix = affinity.matrix[np.ix_(tree.order, tree.order)]
    names = [affinity.tasks[i] for i in tree.order]
    families = list(dict.fromkeys(family.get(task, "") for task in affinity.tasks))
    colours = family_colours(families, theme)

    label_inches = 0.35 + 0.062 * min(max(map(len, names)), 34)
    side = min(max(0.2 * n, 3.2), 6.6)
    tree_inches, bar_inches, gap = 0.75, 0.16, 0.14
    legend_rows = _legend_rows(families)
    bottom, top = label_inches + 0.17 * legend_rows + 0.15, 0.30
    width = label_inches + gap + side + tree_inches + 0.25 + bar_inches + 0.75
    width = max(width, 6.2)
    height = bottom + side + gap + top
    with figure(width, height, theme) as drawn:

        def axes(x: float, y: float, w: float, h: float) -> Any:
            return drawn.add_axes((x / width, y / height, w / width, h / height))

        main = axes(label_inches + gap, bottom, side, side)
        off = matrix[~np.eye(n, dtype=bool)] if n > 1 else matrix.ravel()
        signed = bool((off < 0).any())
        if signed:
            reach = float(np.quantile(np.abs(off), 0.99)) or 1.0
            scale = {"cmap": colormap(theme.diverging), "vmin": -reach, "vmax": reach}
        else:
            low, high = float(off.min()), float(np.quantile(off, 0.99))
            scale = {
                "cmap": colormap(theme.sequential),
                "vmin": low,
                "vmax": high if high > low else low + 1.0,
            }
        image = main.imshow(matrix, interpolation="nearest", aspect="auto", **scale)
        if n <= 60:  # hairlines between cells
            main.set_xticks(np.arange(1, n) - 0.5, minor=True)
            main.set_yticks(np.arange(1, n) - 0.5, minor=True)
            main.grid(which="minor", color=theme.paper, linewidth=0.5)
            main.tick_params(which="minor", length=0)
        every = max(1, int(np.ceil(n * LEGIBLE / side)))
        shown = np.arange(0, n, every)
        size = 7.6 if every == 1 else 6.6
        labels = [names[i] if len(names[i]) <= 34 else names[i][:33] + "…" for i in shown]
        pad = gap * 72 + 2
        main.set_yticks(shown, labels, fontsize=size)
        main.set_xticks(shown, labels, fontsize=size, rotation=90)
        main.tick_params(axis="y", pad=pad)
        main.tick_params(axis="x", pad=pad)
        for spine in main.spines.values():
            spine.set_visible(False)

        left = axes(label_inches, bottom, gap * 0.72, side)
        under = axes(label_inches + gap, bottom - gap, side, gap * 0.72)
        for strip, bounds in ((left, (0, 1, n, 0)), (under, (0, n, 0, 1))):
            strip.axis(bounds)
            strip.axis("off")
        for i, name in enumerate(names):
            colour = colours[family.get(name, "")]
            left.add_patch(Rectangle((0, i), 1, 1, color=colour, linewidth=0))
            under.add_patch(Rectangle((i, 0), 1, 1, color=colour, linewidth=0))

        branches = axes(label_inches + gap + side + 0.06, bottom, tree_inches, side)
        for a, b, low_a, low_b, at in tree.merges:
            branches.plot(
                (low_a, at, at, low_b),
                (a, a, b, b),
                color=theme.muted,
                linewidth=0.7 if n <= 60 else 0.4,
                solid_joinstyle="miter",
            )
        branches.set_ylim(n - 0.5, -0.5)
        branches.axis("off")

        bar = axes(width - 0.75 - bar_inches, bottom + side * 0.25, bar_inches, side * 0.5)
        beyond = "both" if signed else "max"
        drawn.colorbar(image, cax=bar, extend=beyond, extendfrac=0.04)
        bar.tick_params(labelsize=7.4)
        bar.spines["outline"].set_visible(False)
        _family_legend(drawn, families, colours, x=0.12, width=width, height=height, theme=theme)
        return png(drawn)


def _legend_rows(families: Sequence[str]) -> int:
    named = [family for family in families if family]
    return -(-min(len(named), 24) // 4)


def _family_legend(
    drawn: Any,
    families: Sequence[str],
    colours: Mapping[str, str],
    *,
    x: float,
    width: float,
    height: float,
    theme: Theme,
) -> None:
    """Families and their colours in four columns at the foot of the figure."""
    from matplotlib.patches import Rectangle

    named = [family for family in families if family]
    shown = named if len(named) <= 24 else named[:23]
    rows = _legend_rows(families)
    column = (width - x) / 4
    more = [f"and {len(named) - 23} more"] if len(named) > 24 else []
    for i, family in enumerate([*shown, *more]):
        left, low = x + column * (i // rows), 0.06 + 0.17 * (rows - 1 - i % rows)
        if family in colours:
            drawn.add_artist(
                Rectangle(
                    (left / width, (low + 0.01) / height),
                    0.09 / width,
                    0.09 / height,
                    transform=drawn.transFigure,
                    color=colours[family],
                    linewidth=0,
                )
            )
        text = family if len(family) <= 24 else family[:23] + "…"
        drawn.text(
            (left + 0.15) / width,
            low / height,
            text,
            fontsize=7.4,
            color=theme.ink,
            va="bottom",
        )


def chosen_tasks(study: Study, scores: np.ndarray, limit: int = MOST_BARS) -> list[int]:
    """Tasks for a chart, grouped by family: all of them, or the `limit` with the largest scores."""
    rank = {family: i for i, family in enumerate(study.families)}
    kept = np.argsort(-scores, kind="stable")[:limit]
    return sorted(kept.tolist(), key=lambda i: (rank[study.family[study.tasks[i]]], i))


def weights(study: Study, theme: Theme) -> bytes:
    """One panel a mixture, tasks under each other by family; a line marks uniform."""
    names = list(study.mixtures)[:6]
    stacked = np.stack([study.mixtures[name].weights for name in names])
    tasks = chosen_tasks(study, stacked.max(axis=0))
    ours = [name for name in study.mixtures if is_taskpgm(study, name)]
    colours = mixture_colours(list(study.mixtures), ours, theme)
    labels = [study.tasks[i] for i in tasks]
    label_inches = _label_inches(labels) + _family_inches(study)
    row = 0.19 if len(tasks) <= 30 else 0.155
    height = 0.45 + row * max(len(tasks), 3) + 0.4
    with figure(WIDTH, height, theme) as drawn:
        panels = drawn.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
        drawn.subplots_adjust(
            left=label_inches / WIDTH,
            right=0.99,
            top=1 - 0.35 / height,
            bottom=0.4 / height,
            wspace=0.08,
        )
        for panel, name in zip(panels, names, strict=True):
            values = study.mixtures[name].weights[tasks]
            panel.barh(np.arange(len(tasks)), 100 * values, height=0.68, color=colours[name])
            for y in np.flatnonzero(values <= 0):
                panel.text(0, y, " 0", fontsize=6.4, color=theme.muted, va="center")
            panel.axvline(100 / len(study.tasks), color=theme.muted, linewidth=0.8, linestyle=":")
            panel.set_title(name)
            panel.grid(axis="x")
            panel.spines["left"].set_color(theme.muted)
            panel.spines["bottom"].set_visible(False)
            panel.tick_params(axis="x", labelsize=7.4)
        panels[0].set_ylim(len(tasks) - 0.4, -0.6)
        panels[0].set_xlim(0, 100 * stacked[:, tasks].max() * 1.04)
        _task_axis(panels[0], study, tasks, theme)
        _family_bands(panels, study, tasks, theme)
        drawn.text(0.99, 0.06 / height, "weight, %", ha="right", fontsize=7.6, color=theme.muted)
        return png(drawn)


def gains(study: Study, reference: str, theme: Theme) -> bytes:
    """Held-out loss of every run minus the reference's, task by task; left of zero is better."""
    names = [name for name in study.runs if name != reference][:6]
    losses = {name: task_losses(study.runs[name]) for name in study.runs}
    difference = np.array(
        [
            [losses[name].get(task, np.nan) - losses[reference].get(task, np.nan) for name in names]
            for task in study.tasks
        ]
    )
    tasks = chosen_tasks(study, np.nan_to_num(np.abs(difference)).max(axis=1))
    ours = [name for name in study.runs if is_taskpgm(study, name)]
    colours = mixture_colours(list(study.runs), ours, theme)
    labels = [study.tasks[i] for i in tasks]
    label_inches = _label_inches(labels) + _family_inches(study)
    row = 0.19 if len(tasks) <= 30 else 0.155
    height = 0.5 + row * max(len(tasks), 3) + 0.45
    with figure(WIDTH, height, theme) as drawn:
        axes = drawn.subplots()
        drawn.subplots_adjust(
            left=label_inches / WIDTH, right=0.99, top=1 - 0.45 / height, bottom=0.42 / height
        )
        spread = np.linspace(-0.18, 0.18, len(names)) if len(names) > 1 else [0.0]
        for j, name in enumerate(names):
            y = np.arange(len(tasks)) + spread[j]
            axes.scatter(
                difference[tasks, j], y, s=20, color=colours[name], linewidths=0, label=name
            )
        axes.axvline(0, color=theme.muted, linewidth=1.0)
        axes.set_ylim(len(tasks) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.spines["bottom"].set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"held-out loss minus that of {reference}, nats per token (left is better)")
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(names), fontsize=8,
            handletextpad=0.1, columnspacing=1.4, borderpad=0.2, borderaxespad=0.2,
        )
        _task_axis(axes, study, tasks, theme)
        _family_bands([axes], study, tasks, theme)
        return png(drawn)


def _label_inches(labels: Sequence[str]) -> float:
    return 0.2 + 0.066 * min(max(map(len, labels)), 34)


def _family_inches(study: Study) -> float:
    """Room for family names left of the tasks' names."""
    longest = max(map(len, study.families))
    return 0.25 + 0.07 * min(longest, 18) if longest else 0.0


def _task_axis(axes: Any, study: Study, tasks: Sequence[int], theme: Theme) -> None:
    labels = [study.tasks[i] for i in tasks]
    labels = [label if len(label) <= 34 else label[:33] + "…" for label in labels]
    axes.set_yticks(range(len(tasks)), labels, fontsize=7.6)


def _family_bands(axes: Sequence[Any], study: Study, tasks: Sequence[int], theme: Theme) -> None:
    """Every other family shaded, each named and marked with its colour at the far left."""
    colours = family_colours(study.families, theme)
    in_order = [study.family[study.tasks[i]] for i in tasks]
    starts = [i for i, f in enumerate(in_order) if i == 0 or in_order[i - 1] != f]
    for k, (start, end) in enumerate(zip(starts, [*starts[1:], len(in_order)], strict=True)):
        family = in_order[start]
        if not family:
            continue
        for panel in axes:
            if k % 2 == 0:
                panel.axhspan(start - 0.5, end - 0.5, color=theme.line, alpha=0.35, linewidth=0)
        figure_width = axes[0].figure.get_size_inches()[0]
        left = axes[0].get_position().x0
        panel_width = axes[0].get_position().width
        at = -(left - 0.06 / figure_width) / panel_width
        axes[0].plot(
            (at, at), (start - 0.4, end - 0.6), color=colours[family], linewidth=3,
            solid_capstyle="butt", clip_on=False, transform=axes[0].get_yaxis_transform(),
        )
        text = family if len(family) <= 18 else family[:17] + "…"
        axes[0].text(
            at + 0.09 / figure_width / panel_width, (start + end - 1) / 2, text, fontsize=7.6,
            color=theme.muted, va="center", transform=axes[0].get_yaxis_transform(),
        )


def training(study: Study, theme: Theme) -> bytes:
    """Training loss of every run: as logged, faint, and its running mean."""
    ours = [name for name in study.curves if is_taskpgm(study, name)]
    colours = mixture_colours(list(study.curves), ours, theme)
    height = 3.6
    with figure(WIDTH, height, theme) as drawn:
        axes = drawn.subplots()
        drawn.subplots_adjust(left=0.065, right=0.99, top=0.9, bottom=0.125)
        for name, curve in study.curves.items():
            step, loss = curve.T
            smooth = running_mean(loss, max(1, len(loss) // 25))
            axes.plot(step, loss, color=colours[name], linewidth=0.6, alpha=0.35)
            axes.plot(step, smooth, color=colours[name], linewidth=1.6, label=name)
        axes.grid(axis="y")
        axes.margins(x=0.01)
        axes.set_xlabel("step")
        axes.set_ylabel("training loss, nats per token")
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=6, fontsize=8, columnspacing=1.4,
            borderaxespad=0.2, handlelength=1.4,
        )
        return png(drawn)


def running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Mean over the 2 half + 1 values around each, fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def reasons(study: Study, mixture: Mixture, theme: Theme) -> bytes:
    """Representativeness against redundancy: the optimality conditions as a picture.

    At the optimum (S~ p)_i = r (S 1)_i / n + mu for each task kept (below its cap), so these lie on
    one line; a task at zero lies above it, by its reduced cost.
    """
    x, y = mixture.array("representativeness"), mixture.array("redundancy")
    colours = family_colours(study.families, theme)
    kept = mixture.weights > 0
    height = 4.8
    with figure(WIDTH, height, theme) as drawn:
        axes = drawn.subplots()
        drawn.subplots_adjust(left=0.075, right=0.8, top=0.96, bottom=0.105)
        size = 14 + 420 * mixture.weights / mixture.weights.max()
        tint = np.array([colours[study.family[task]] for task in study.tasks])
        axes.scatter(x[kept], y[kept], s=size[kept], c=tint[kept], alpha=0.8, linewidths=0)
        axes.scatter(
            x[~kept], y[~kept], s=22, facecolors=theme.paper, edgecolors=tint[~kept],
            linewidths=1.1,
        )
        ratio = mixture.facts.get("ratio")
        if ratio is not None:
            ends = np.array([x.min(), x.max()])
            level = float(np.min((y - ratio * x)[kept])) if kept.all() else float(
                np.median((y - ratio * x)[kept])
            )
            axes.axline(
                (ends[0], ratio * ends[0] + level), slope=ratio, color=theme.muted,
                linewidth=0.9, linestyle=(0, (4, 3)), zorder=0,
            )
        axes.grid(True)
        axes.margins(0.06)
        axes.set_xlabel("representativeness: mean affinity to all tasks")
        axes.set_ylabel("redundancy: affinity to the mixture")
        interest = mixture.weights / mixture.weights.max() + np.where(kept, 0.0, 0.4)
        _place_labels(axes, x, y, size, list(study.tasks), interest, theme)
        for i, family in enumerate([f for f in study.families if f][:24]):
            drawn.text(
                0.825, 0.93 - 0.19 * i / height, "●", color=colours[family], fontsize=8, va="center"
            )
            drawn.text(0.845, 0.93 - 0.19 * i / height, family[:20], fontsize=7.6, va="center")
        return png(drawn)


def _place_labels(
    axes: Any,
    x: np.ndarray,
    y: np.ndarray,
    size: np.ndarray,
    names: Sequence[str],
    interest: np.ndarray,
    theme: Theme,
) -> None:
    """Names the points, most interesting first, each where its label touches nothing yet."""
    axes.figure.canvas.draw()
    scale = axes.figure.dpi / 72
    points = axes.transData.transform(np.column_stack([x, y]))
    radius = np.sqrt(size / np.pi) * scale
    frame = axes.get_window_extent()
    taken = [(px - r, py - r, px + r, py + r) for (px, py), r in zip(points, radius, strict=True)]
    font = 6.8
    for i in np.argsort(-interest, kind="stable"):
        name = names[i][:30]
        wide, tall = 0.6 * font * len(name) * scale, 1.15 * font * scale
        px, py = points[i]
        away = radius[i] + 2 * scale
        for horizontal, vertical in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1)):
            left = px + horizontal * away - wide * (1 - horizontal) / 2
            low = py + vertical * (away if horizontal == 0 else 0.9 * away) - tall / 2
            low += vertical * tall / 2
            box = (left, low, left + wide, low + tall)
            inside = frame.x0 < box[0] and box[2] < frame.x1 and frame.y0 < box[1] < frame.y1 - tall
            if inside and not any(_touch(box, other) for j, other in enumerate(taken) if j != i):
                at = axes.transData.inverted().transform((left, low + tall / 2))
                axes.text(*at, name, fontsize=font, color=theme.ink, va="center")
                taken.append(box)
                break


def _touch(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
