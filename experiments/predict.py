"""What predicts the loss of a trained mixture? Predictors against the runs of a swarm.

    cd experiments/results && python ../predict.py swarm real_study_300 real_study_1200  # a minute

Folders of `runs.jsonl` and `scores.npz` (see experiments/swarm.py; train_swarm.py makes one).
Prints the tables and writes them into results/predict.md, between its two marks; the log around
them stays. No predictor has seen a trained mixture. The tables there also have two earlier swarms,
embedded_swarm and real_swarm. `--trained results/predict_trained.jsonl` belongs to the first of
these (give another --out).

  predictors  rank correlation of predicted and measured loss over runs
  halves      constants of the law chosen on one half of the mixtures, judged on the other
  choices     the law with one choice changed at a time
  ceiling     what the noise of single seeds leaves for a perfect predictor
  minimisers  the law's own and more careful ones, where resampled scores are the truth
  ratios      predicted and measured loss along the ratios of an affinity
  chosen      predicted and measured loss of the named mixtures and of the law's minimisers
  trained     what was trained afterwards, on the suite of the first folder (--trained FILE, runs as
              in runs.jsonl): mixtures drawn when the law was frozen, and minimisers
"""

import argparse
import itertools
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from predictors import PREDICTORS, law_of, losses, open_law
from record import machine
from swarm import Agreement, Swarm, agreement, ceiling, halves, later_runs, load
from taskpgm.affinity import resample_losses
from taskpgm.mixture import PredictedLoss

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- tables: experiments/predict.py -->", "<!-- end of tables -->"
GRID = {
    "floor": (0.0, 0.5, 0.75, 0.9),
    "least": (0.02, 0.1, 0.2, 0.3),
    "pace": (0.5, 1.0, 2.0, 4.0),
    "epochs": (0.5, 1.0, 2.0, None),
}
CHOICES = {
    "as it is": {},
    "reference: the base": {"reference": "base"},
    "reference: the median": {"reference": "median"},
    "a run counts by its examples": {"unit": "examples"},
    "exp(-x) for (1 + x / 2)^-2": {"power": None},
    "both: the law of before": {"unit": "examples", "power": None},
    "repeats teach as well": {"epochs": None},
    "what others cost does not count": {"harm": 0.0},
    "and no faster to prevent": {"guard": 1.0},
    "unlearning counts 0.1": {"negative": 0.1},
    "unlearning counts 1": {"negative": 1.0},
    "floor 0": {"floor": 0.0},
    "floor 0.5": {"floor": 0.5},
    "a run may leave 0.02": {"least": 0.02},
    "pace 0.5": {"pace": 0.5},
    "pace 2": {"pace": 2.0},
    "pace 4": {"pace": 4.0},
    "(1 + x)^-1": {"power": 1.0},
    "(1 + 2 x)^-1/2": {"power": 0.5},
}
STRENGTHS = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("swarms", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--trained", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "predict.md")
    given = parser.parse_args()
    if given.trained and not given.trained.is_file():
        parser.error(f"--trained {given.trained} is not there: name a file of later runs")
    swarms = {folder.name: load(folder) for folder in given.swarms}
    facts = machine(("jax", "numpy", "scipy"))
    lines = [f"`python experiments/predict.py {' '.join(swarms)}`, {facts['date']}, ", ""]
    lines[0] += facts["versions"]
    for name, swarm in swarms.items():
        lines += [*predictors(name, swarm), *ceilings(swarm, ~swarm.by_law)]
    lines += choices(swarms)
    for name, swarm in swarms.items():
        if np.char.startswith(swarm.mixture, "dir").any():
            lines += chosen_on_a_half(name, swarm, swarms)
        lines += [*along_paths(name, swarm), *chosen(name, swarm), *minimisers(name, swarm)]
    if given.trained:
        first = list(swarms.values())[0]
        lines += trained(first, later_runs(given.trained, first))
    text = "\n".join(lines)
    print(text)
    before, after = "# What predicts the loss of a trained mixture\n\n", "\n"
    if given.out.is_file() and BEGIN in given.out.read_text():
        before, _, rest = given.out.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def shown(found: Agreement) -> list[str]:
    def interval(x: tuple[float, float, float]) -> str:
        return f"{x[0]:.2f} [{x[1]:.2f}, {x[2]:.2f}]"

    return [
        interval(found.spearman),
        interval(found.spearman_families),
        f"{found.kendall:.2f}",
        f"{found.kendall_families:.2f}",
        f"{found.per_task:.2f}",
    ]


def short(swarm: Swarm, predicted: np.ndarray, runs: np.ndarray) -> str:
    found = agreement(swarm, predicted, runs, resamples=2)
    return f"{found.spearman[0]:.2f} / {found.spearman_families[0]:.2f}"


def predictors(name: str, swarm: Swarm) -> list[str]:
    """Every predictor on the runs that no law chose, and on all."""
    lines = []
    for what, runs in {
        f"{(~swarm.by_law).sum()} runs whose mixture no law chose": ~swarm.by_law,
        f"all {len(swarm.seed)} runs": np.ones(len(swarm.seed), bool),
    }.items():
        lines += [f"## {name}: {what}", "", *ranked(swarm, runs)]
    return lines


def ranked(swarm: Swarm, runs: np.ndarray) -> list[str]:
    head = ["predictor", "Spearman, tasks", "families", "Kendall, tasks", "families"]
    found = {k: f(swarm) for k, f in PREDICTORS.items()}
    found |= {f"merged adapters, {scale}": loss for scale, loss in swarm.merged.items()}
    rows = [[k, *shown(agreement(swarm, loss, runs))] for k, loss in found.items()]
    return table([*head, "Spearman by task"], rows)


def ceilings(swarm: Swarm, runs: np.ndarray) -> list[str]:
    if len(set(swarm.mixture[runs].tolist())) == runs.sum():
        return ["One run of each mixture: what noise leaves to be predicted is not known.", ""]
    rows = []
    for what in ("tasks", "families"):
        c = ceiling(swarm, runs, what)
        rows.append(
            [
                what,
                f"{c['noise']:.3f}",
                f"{c['spread']:.3f}",
                f"{c['mean']:.2f} [{c['low']:.2f}, {c['high']:.2f}]",
            ]
        )
    head = ["mean over", "noise of a seed", "spread of runs", "Spearman of the truth, 90%"]
    return ["What a predictor that knew the truth would reach (same runs as above):", ""] + table(
        head, rows
    )


def choices(swarms: dict[str, Swarm]) -> list[str]:
    rows = []
    for label, change in CHOICES.items():
        row = [label]
        for swarm in swarms.values():
            found = open_law(swarm, **change)
            row += [short(swarm, found, ~swarm.by_law), short(swarm, found, swarm.seed >= 0)]
            row.append(f"{np.sqrt(((found - swarm.measured) ** 2).mean()):.3f}")
        rows.append(row)
    head = ["choice"]
    for name in swarms:
        head += [f"{name}, no law's", "all", "error, nats"]
    return ["## One choice changed (Spearman, tasks / families)", "", *table(head, rows)]


def chosen_on_a_half(name: str, swarm: Swarm, swarms: dict[str, Swarm]) -> list[str]:
    """The constants that rank one half best, judged on the other half and on other swarms."""
    first, second = halves(swarm)
    settings = [
        dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())
    ]
    predicted = [open_law(swarm, **setting) for setting in settings]

    def score(p: np.ndarray, runs: np.ndarray) -> float:
        found = agreement(swarm, p, runs, resamples=2)
        return found.spearman[0] + found.spearman_families[0]

    others = {k: s for k, s in swarms.items() if k != name}
    rows = []
    for label, fit, judge in (("first", first, second), ("second", second, first)):
        best = int(np.argmax([score(p, fit) for p in predicted]))
        rows.append(
            [f"chosen on the {label} half: {settings[best]}", short(swarm, predicted[best], fit)]
            + [short(swarm, predicted[best], judge)]
            + [short(s, open_law(s, **settings[best]), ~s.by_law) for s in others.values()]
        )
    own = open_law(swarm)
    rows.append(
        ["the package's constants", short(swarm, own, first), short(swarm, own, second)]
        + [short(s, open_law(s), ~s.by_law) for s in others.values()]
    )
    head = ["constants", "half they were chosen on (first)", "other half (second)", *others]
    return [f"## {name}: constants chosen on one half", "", *table(head, rows)]


def minimisers(name: str, swarm: Swarm, worlds: int = 20) -> list[str]:
    """Loss above the optimum of what resampled scores choose, the stored ones being the truth."""
    make = partial(
        PredictedLoss.from_losses, budget=swarm.budget, sizes=swarm.sizes, seen=swarm.seen
    )
    truth, uniform = law_of(swarm), np.full(swarm.n, 1 / swarm.n)
    best = float(truth.minimise().energy)
    scored = (swarm.log_likelihood, swarm.task, swarm.tokens)
    above: dict[str, list[float]] = {"uniform": [float(truth.loss(uniform)) - best]}
    for estimate in resample_losses(*scored, resamples=worlds, seed=1):
        law = make(estimate, swarm.base)
        found = {f"pull {s:g}" if s else "the law's own": s for s in STRENGTHS}
        weights = {k: law.minimise(prior=uniform, strength=s).weights for k, s in found.items()}
        # Errors of an estimate are about those of the estimate from the truth: shift, and average.
        drawn = resample_losses(*scored, resamples=30, seed=2) * (estimate / losses(swarm))
        weights["average over resamples"] = make(drawn, swarm.base).minimise().weights
        for label, w in weights.items():
            above.setdefault(label, []).append(float(truth.loss(w)) - best)
    rows = [[label, f"{np.mean(x):.4f}", f"{np.max(x):.4f}"] for label, x in above.items()]
    return [
        f"## {name}: minimisers of resampled scores",
        "",
        f"The stored scores stand for the truth; {worlds} resamples of them are what a user would "
        "have. Nats above the true optimum.",
        "",
        *table(["minimiser", "mean", "worst"], rows),
    ]


def along_paths(name: str, swarm: Swarm) -> list[str]:
    """Mixtures that differ in their ratio alone: would the prediction choose the right one?"""
    predicted, rows = PREDICTORS["**PredictedLoss**"](swarm), []
    found = {x: re.fullmatch(r"(?!dir)(.*)-(\d[\d.]*)", x) for x in dict.fromkeys(swarm.mixture)}
    kinds = [match[1] for match in found.values() if match]
    for mixture, match in found.items():
        if match and kinds.count(match[1]) > 1:
            runs, row = swarm.mixture == mixture, [match[1], match[2]]
            for what in ("tasks", "families"):
                both = predicted[runs] @ swarm.over(what), swarm.measured[runs] @ swarm.over(what)
                row += [f"{x.mean():.3f}" for x in both]
            rows.append(row)
    head = ["affinity", "r", "predicted, tasks", "measured", "predicted, families", "measured"]
    return [f"## {name}: ratios", "", *table(head, sorted(rows))]


def chosen(name: str, swarm: Swarm) -> list[str]:
    """The named mixtures and the law's minimisers: naive ones, and those pulled to a prior."""
    predicted, rows = PREDICTORS["**PredictedLoss**"](swarm), []
    for mixture in sorted(set(swarm.mixture.tolist())):
        if re.match(r"law|uniform|size", mixture):
            runs, row = swarm.mixture == mixture, [mixture]
            for what in ("tasks", "families"):
                w = swarm.over(what)
                each = swarm.measured[runs] @ w
                noise = f" ± {each.std(ddof=1):.3f}" if len(each) > 1 else ""
                row += [f"{(predicted[runs] @ w).mean():.3f}", f"{each.mean():.3f}{noise}"]
            rows.append([*row, str(runs.sum())])
    head = ["mixture", "predicted, tasks", "measured", "predicted, families", "measured", "seeds"]
    title = f"## {name}: named mixtures and the law's minimisers (standard deviation over seeds)"
    return [title, "", *table(head, rows)]


def trained(swarm: Swarm, later: Swarm) -> list[str]:
    """Mixtures drawn when the law was frozen, and minimisers, that were trained afterwards."""
    fresh = np.char.startswith(later.mixture, "fresh")
    lines = []
    if fresh.any():
        mixtures = len(set(later.mixture[fresh].tolist()))
        lines += [
            f"## {mixtures} mixtures that were drawn and trained when the law was frozen",
            "",
            *ranked(later, fresh),
            *ceilings(later, fresh),
        ]
    rows = []
    stored = ("uniform", "family-uniform", "half", "T-1.2", "law-t-1.0", "law-f-1.0", "law-f-0.5")
    for name in [*dict.fromkeys(later.mixture[~fresh].tolist()), *stored]:
        source = swarm if name in stored else later
        row, runs = [f"{name} (stored)" if name in stored else name], source.mixture == name
        for what in ("tasks", "families"):
            each = source.measured[runs] @ swarm.over(what)
            row.append(f"{each.mean():.3f} ± {each.std(ddof=1) / np.sqrt(len(each)):.3f}")
        rows.append([*row, str(len(each))])
    lines += [
        "## Minimisers that were trained (mean ± standard error)",
        "",
        "For the mean over tasks or families, pulled to uniform; beside mixtures of the swarm.",
        "",
        *table(["mixture", "loss over tasks", "over families", "seeds"], rows),
    ]
    both = replace(
        swarm,
        mixture=np.append(swarm.mixture[swarm.by_law], later.mixture[~fresh]),
        seed=np.append(swarm.seed[swarm.by_law], later.seed[~fresh]),
        weights=np.vstack([swarm.weights[swarm.by_law], later.weights[~fresh]]),
        measured=np.vstack([swarm.measured[swarm.by_law], later.measured[~fresh]]),
        merged={},
    )
    return [
        *lines,
        f"## The {len(both.seed)} runs whose mixture some law chose",
        "",
        "Minimisers of earlier laws and of this one: all good, so all close to each other.",
        "",
        *ranked(both, both.seed >= 0),
    ]


if __name__ == "__main__":
    main()
