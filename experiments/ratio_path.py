"""Every mixture between diversity and representativeness, of one affinity matrix, as a picture.

    python experiments/ratio_path.py PATH.npy                  # some seconds
    python experiments/ratio_path.py PATH.npz --ratio_max=16   # with `affinity` in it, from a run

The unary/pairwise ablation without a grid: the critical-line method gives the exact mixture for
every ratio r at once, with every breakpoint (see taskpgm/mixture/path.py). Writes NAME.md, the
table, NAME.png and NAME_shifts.png, the pictures, into --out (experiments/results):

  weights      the tasks that matter most, against r; a tick for every breakpoint
  tasks        effective number e^H and support of the exact mixture, and of the closed form
  energy       its two terms: representativeness and redundancy
  closed form  how far above the optimum the paper's formula is, and how far apart the mixtures are
  shifts       effective tasks along the whole path for the least shift and for the paper's

On the PMI matrix that the authors of arXiv 2507.12612 published (316 tasks; sim_mat.npy of their
repository ParthPratim/task-mixtures, commit 8d76569) expect 72.8 effective tasks at r = 0, where
the paper's shift (--psd=shift) gives 266.9; and 6 tasks at r = 158 under that shift, their setting.
"""

import argparse
from pathlib import Path

import numpy as np

from record import header, machine
from taskpgm.mixture import Path as RatioPath
from taskpgm.mixture import (
    Solution,
    effective_tasks,
    energy_from_affinity,
    ratio_path,
    solve_closed_form,
)

TABLE = (0, 0.5, 1, 2, 4, 16, 63.2, 158)
SHIFTS = {"simplex": "the least shift (simplex)", "shift": "the paper's shift"}
NAMED = 10  # tasks drawn in colour
BLUE, ORANGE, GREY = "#2f6db3", "#d9822b", "#9a9a96"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("matrix", type=Path)
    parser.add_argument("--ratio_max", type=float, default=158.0)
    parser.add_argument("--psd", default="simplex")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--name", default="mixture_ratio_path")
    given = parser.parse_args()
    try:
        affinity, tasks = load(given.matrix)
        path = ratio_path(affinity, ratio_max=given.ratio_max, psd=given.psd)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{given.matrix}: {error}") from None

    # --- The table --------------------------------------------------------------------------------
    ratios = [r for r in TABLE if r <= given.ratio_max]
    lines = table(affinity, path, ratios, given.psd)
    relative = (path.gap / np.maximum(1, np.abs(path.energy))).max()
    text = "\n".join(
        [
            *header(f"The ratio path of {given.matrix.name}", machine(("jax", "numpy", "scipy"))),
            "",
            f"{len(affinity)} tasks, r from 0 to {given.ratio_max:g}, psd={given.psd}: "
            f"{len(path.ratios) - 2} breakpoints, largest gap {relative:.1e} of max(1, |E|).",
            "",
            *lines,
            "",
        ]
    )
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{given.name}.md").write_text(text)

    # --- The picture ------------------------------------------------------------------------------
    draw(affinity, tasks, path, given.psd, given.out / f"{given.name}.png")
    both = {psd: ratio_path(affinity, ratio_max=given.ratio_max, psd=psd) for psd in SHIFTS}
    draw_shifts(both, given.out / f"{given.name}_shifts.png")


def load(file: Path) -> tuple[np.ndarray, list[str]]:
    """The matrix and the tasks' names, from .npy or from the .npz of a run."""
    loaded = np.load(file)
    if isinstance(loaded, np.ndarray):
        return loaded, [f"task {i}" for i in range(len(loaded))]
    if "affinity" not in loaded:
        raise ValueError(f"has no array `affinity`, only {', '.join(loaded) or 'nothing'}")
    names = loaded["tasks"] if "tasks" in loaded else range(len(loaded["affinity"]))
    return loaded["affinity"], [str(name) for name in names]


def table(affinity: np.ndarray, path: RatioPath, ratios: list[float], psd: str) -> list[str]:
    """The columns of the known table: the exact mixture read off the path, and the closed form."""
    lines = [
        "| r | exact E | support | effective tasks | closed form E | its gap | total variation |",
        "|---|---|---|---|---|---|---|",
    ]
    for ratio in ratios:
        energy = energy_from_affinity(affinity, ratio, psd=psd)
        exact, closed = path.at(ratio), solve_closed_form(energy)
        apart = 0.5 * np.abs(exact - closed.weights).sum()
        gap = 0.0 if closed.gap < 1e-9 else float(f"{closed.gap:.3g}")
        lines.append(
            f"| {ratio:g} | {energy.energy(exact):.6f} | {(exact > 0).sum()} "
            f"| {effective_tasks(exact):.2f} | {closed.energy:.6f} | {gap:g} | {apart:.3f} |"
        )
    return lines


def draw(affinity: np.ndarray, tasks: list[str], path: RatioPath, psd: str, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Kinks lie densely where r is small: the axis is linear to 1 and logarithmic from there.
    end = path.ratios[-1]
    grid = np.unique(np.concatenate([path.ratios, np.linspace(0, min(end, 4), 200)]))
    if end > 4:
        grid = np.unique(np.concatenate([grid, np.geomspace(4, end, 200)]))
    exact = path.at(grid)
    energy = energy_from_affinity(affinity, grid, psd=psd)
    closed: Solution = solve_closed_form(energy)
    unary, pairwise = energy.terms(exact)

    settings = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "legend.frameon": False,
    }
    with plt.rc_context(settings):
        figure, axes = plt.subplots(2, 2, figsize=(11, 7.4), constrained_layout=True, sharex=True)
        weights, count, terms, excess = axes.flat
        _draw_weights(weights, tasks, path, grid, exact)

        count.plot(grid, effective_tasks(exact), color=BLUE, label="effective, exact")
        count.plot(grid, (exact > 0).sum(1), color=BLUE, lw=0.9, ls=":", label="support, exact")
        count.plot(
            grid, effective_tasks(closed.weights), color=ORANGE, label="effective, closed form"
        )
        count.set(title="Tasks in the mixture", yscale="log", ylabel="number of tasks")
        ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if t <= 1.3 * len(tasks)]
        count.set_yticks(ticks, [str(t) for t in ticks])
        count.minorticks_off()
        count.legend()

        terms.plot(grid, -unary, color=BLUE, label=r"representativeness $(r/n)\,(S1)'p$")
        terms.plot(grid, pairwise, color=ORANGE, label=r"redundancy $\frac{1}{2}\,p'\tilde{S}p$")
        terms.axhline(0, color=GREY, lw=0.6)
        terms.set(title="The two terms of the energy", ylabel="energy")
        terms.set_yscale("symlog", linthresh=1)
        terms.legend()

        above = np.maximum(closed.energy - energy.energy(exact), 0)
        apart = 0.5 * np.abs(exact - closed.weights).sum(1)
        excess.plot(grid, above, color=ORANGE, label="energy above the optimum")
        excess.plot(grid, apart, color=BLUE, label="total variation from the optimum")
        leaves = grid[(above > 1e-9) & (grid > 1)]
        if len(leaves):
            excess.axvline(leaves[0], color=GREY, lw=0.8, ls="--")
            excess.annotate(
                f"leaves the optimum at r = {leaves[0]:.3g}",
                (leaves[0], 0.95),
                xycoords=("data", "axes fraction"),
                xytext=(6, 0),
                textcoords="offset points",
                color="#555555",
            )
        excess.set(title="What the closed form loses", ylim=(0, None))
        excess.set_yscale("symlog", linthresh=1e-3)
        excess.legend()

        for axis in axes.flat:
            axis.set_xscale("symlog", linthresh=1)
            axis.set_xlim(0, end)
            marks = [r for r in (0, 0.5, 1, 2, 4, 8, 16, 32, 64, 128) if r <= end]
            axis.set_xticks(marks, [f"{r:g}" for r in marks])
            axis.minorticks_off()
            axis.axvline(1, color=GREY, lw=0.6)
        for axis in axes[1]:
            axis.set_xlabel("ratio r of unary to pairwise potential (1: exactly uniform)")
        figure.savefig(file, dpi=150)
        plt.close(figure)


def draw_shifts(paths: dict[str, RatioPath], file: Path) -> None:
    """Effective tasks against r for each way to make the affinity convex, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    with plt.rc_context(settings):
        figure, axis = plt.subplots(figsize=(6.8, 4.0), constrained_layout=True)
        for (psd, path), colour in zip(paths.items(), (BLUE, ORANGE), strict=True):
            end = path.ratios[-1]
            grid = np.concatenate([[1.0], path.ratios, np.geomspace(0.05, max(end, 1), 300)])
            grid = np.unique(grid)
            grid = grid[grid <= end]
            count = effective_tasks(path.at(grid))
            axis.plot(grid, count, color=colour, label=SHIFTS[psd])
            axis.annotate(
                f"{count[0]:.1f} at r = 0",
                (0, count[0]),
                xytext=(5, -14),
                textcoords="offset points",
                color=colour,
            )
        axis.axvline(1, color=GREY, lw=0.7)
        axis.set(
            title=f"Effective tasks of {paths['simplex'].weights.shape[1]}",
            xlabel="ratio r of unary to pairwise potential (1: exactly uniform)",
            ylabel="effective tasks",
            ylim=(0, None),
            xlim=(0, end),
        )
        axis.set_xscale("symlog", linthresh=1)
        marks = [r for r in (0, 0.5, 1, 2, 4, 8, 16, 32, 64, 128) if r <= end]
        axis.set_xticks(marks, [f"{r:g}" for r in marks])
        axis.minorticks_off()
        axis.legend(frameon=False)
        figure.savefig(file, dpi=150)
        plt.close(figure)


def _draw_weights(axis, tasks, path, grid, exact) -> None:
    """Every task as a line; the ones that reach furthest in colour, named where they peak."""
    import matplotlib.pyplot as plt

    top = np.argsort(-exact.max(0), kind="stable")[:NAMED]
    rest = np.setdiff1d(np.arange(exact.shape[1]), top)
    axis.plot(grid, exact[:, rest], color=GREY, lw=0.4, alpha=0.35)
    for colour, i in zip(plt.get_cmap("tab10").colors, top, strict=False):
        axis.plot(grid, exact[:, i], color=colour, lw=1.3, label=tasks[i])
    floor = 0.02 / exact.shape[1]
    axis.plot(path.ratios, np.full(len(path.ratios), floor * 1.15), "|", color="#444444", ms=6)
    axis.set(title=f"Weights, and {len(path.ratios) - 2} breakpoints (ticks)", ylabel="weight")
    axis.set_yscale("log")
    axis.set_ylim(floor, 1.1)
    axis.legend(fontsize=7, ncols=2, loc="upper left")


if __name__ == "__main__":
    main()
