"""A swarm: mixtures that were trained, the scores of single-task models, and how they are compared.

A folder holds `runs.jsonl` (a line a run: name, seed, p, counts, held-out loss of every task, rows)
and `scores.npz` (log_likelihood [n, m] sums over tokens, tokens [m], task [m], names, families,
sizes, base_loss [n]; optionally `seen`, the examples that each single-task model was trained on).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau, spearmanr

# Single-task runs of the two stored swarms: epochs of rows, least and most steps, rows a step.
SINGLE = {"embedded_swarm": (3.0, 20, 60, 4), "real_swarm": (0.0, 6, 6, 4)}


@dataclass(frozen=True)
class Swarm:
    """Scores of n single-task models, and R runs on mixtures of their tasks."""

    names: list[str]
    family: np.ndarray  # number of each task's family, [n]
    sizes: np.ndarray  # training examples, [n]
    seen: np.ndarray | None  # examples that each single-task model was trained on, [n]
    log_likelihood: np.ndarray  # sums over tokens, nats, [n, m]
    tokens: np.ndarray  # [m]
    task: np.ndarray  # [m]
    base: np.ndarray  # the base model's loss, nats per token, [n]
    mixture: np.ndarray  # name of each run's mixture, [R]
    seed: np.ndarray  # [R]
    weights: np.ndarray  # drawn examples over the budget, [R, n]
    budget: int
    measured: np.ndarray  # held-out loss after training, nats per token, [R, n]
    # Loss of merged adapters, by scale, [R, n]; none where merged.py has not been run.
    merged: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.names)

    @property
    def by_law(self) -> np.ndarray:
        """Whether a run's mixture is the minimiser of some law, [R]."""
        return np.char.startswith(self.mixture, "law")

    def over(self, what: str) -> np.ndarray:
        """Weights of the mean over "tasks" or over "families", [n]."""
        if what == "tasks":
            return np.full(self.n, 1 / self.n)
        count = np.bincount(self.family)
        return 1 / (count[self.family] * len(count))


def load(folder: Path) -> Swarm:
    """Reads a swarm's folder.

    Raises:
      SystemExit: the folder or one of its files is missing.
    """
    for name in ("runs.jsonl", "scores.npz"):
        if not (folder / name).is_file():
            raise SystemExit(f"{folder / name} is not there: give a swarm's folder (see --help)")
    scores = np.load(folder / "scores.npz")
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    counts = np.array([run["counts"] for run in runs])
    budget = int(counts.sum(1).max())
    sizes = scores["sizes"].astype(float)
    row = np.mean([budget / run["rows"] for run in runs])  # examples that a packed row holds
    families = scores["families"].tolist()
    seen = scores["seen"] if "seen" in scores else None
    if seen is None and folder.name in SINGLE:
        epochs, least, most, batch = SINGLE[folder.name]
        seen = np.clip(epochs * sizes / row / batch, least, most) * batch * row
    return Swarm(
        scores["names"].tolist(),
        np.array([sorted(set(families)).index(f) for f in families]),
        sizes,
        seen,
        scores["log_likelihood"],
        scores["tokens"],
        scores["task"],
        scores["base_loss"],
        np.array([run["name"] for run in runs]),
        np.array([run["seed"] for run in runs]),
        counts / counts.sum(1, keepdims=True),
        budget,
        np.array([run["loss"] for run in runs]),
        merged_losses(folder, len(runs)),
    )


def merged_losses(folder: Path, count: int) -> dict[str, np.ndarray]:
    """`Swarm.merged` of a folder with so many runs.

    Raises:
      SystemExit: merged.npz is of other runs.
    """
    path = folder / "merged.npz"
    found = dict(np.load(path)) if path.is_file() else {}
    if any(len(loss) != count for loss in found.values()):
        raise SystemExit(f"{path} is not of the {count} runs beside it: run merged.py again")
    return found


def later_runs(file: Path, swarm: Swarm) -> Swarm:
    """Runs on the suite of a swarm that were made afterwards."""
    runs = [json.loads(line) for line in file.read_text().splitlines()]
    counts = np.array([run["counts"] for run in runs])
    return replace(
        swarm,
        mixture=np.array([run["name"] for run in runs]),
        seed=np.array([run["seed"] for run in runs]),
        weights=counts / counts.sum(1, keepdims=True),
        measured=np.array([run["loss"] for run in runs]),
        merged={},
    )


def halves(swarm: Swarm) -> tuple[np.ndarray, np.ndarray]:
    """The runs whose mixture no law chose, in two halves; the seeds of a mixture stay together."""
    chosen = [x for x in dict.fromkeys(swarm.mixture[~swarm.by_law].tolist())]
    random = [x for x in chosen if x.startswith("dir")]
    named = [x for x in chosen if x not in random]
    first = np.isin(swarm.mixture, named[::2] + random[::2])
    return first & ~swarm.by_law, ~first & ~swarm.by_law


@dataclass(frozen=True)
class Agreement:
    """Rank correlations of predicted and measured loss over runs, with 95% intervals."""

    spearman: tuple[float, float, float]  # mean over tasks: estimate, low, high
    spearman_families: tuple[float, float, float]
    kendall: float
    kendall_families: float
    per_task: float  # Spearman for each task's own loss, the mean over tasks


def agreement(
    swarm: Swarm, predicted: np.ndarray, runs: np.ndarray, resamples: int = 500
) -> Agreement:
    """Of predictions [R, n] for the `runs` of a mask; mixtures are resampled with their seeds."""
    means = []
    for what in ("tasks", "families"):
        w = swarm.over(what)
        means.append((predicted[runs] @ w, swarm.measured[runs] @ w))
    mixture = swarm.mixture[runs]
    members = [np.flatnonzero(mixture == name) for name in np.unique(mixture)]
    rng = np.random.default_rng(0)
    drawn = [
        np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        for _ in range(resamples)
    ]
    found = []
    for a, b in means:
        samples = [rank(a[some], b[some]) for some in drawn]
        found.append((rank(a, b), *np.nanquantile(samples, [0.025, 0.975])))
    per_task = [rank(predicted[runs, k], swarm.measured[runs, k]) for k in range(swarm.n)]
    tau = [float(kendalltau(a, b).statistic) for a, b in means]
    return Agreement(found[0], found[1], tau[0], tau[1], float(np.nanmean(per_task)))


def rank(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman correlation; NaN where one side is constant."""
    if np.ptp(a) < 1e-12 or np.ptp(b) < 1e-12:
        return np.nan
    return float(spearmanr(a, b).statistic)


def ceiling(swarm: Swarm, runs: np.ndarray, what: str, draws: int = 2000) -> dict[str, float]:
    """What a predictor that knew every mixture's true loss would reach, given the noise of seeds.

    The noise is the spread over the seeds of a mixture. A mixture's true loss is taken to be its
    mean, shrunk towards the median by the noise that is left in it; measured losses are then drawn
    anew. Too few mixtures with several seeds make both rough.
    """
    y, mixture = (swarm.measured @ swarm.over(what))[runs], swarm.mixture[runs]
    groups = [np.flatnonzero(mixture == name) for name in np.unique(mixture)]
    repeated = [g for g in groups if len(g) > 1]
    within = sum(((y[g] - y[g].mean()) ** 2).sum() for g in repeated)
    noise = np.sqrt(within / sum(len(g) - 1 for g in repeated))
    # Quartiles, not the variance: a few bad mixtures would pass for signal everywhere.
    spread = (np.quantile(y, 0.75) - np.quantile(y, 0.25)) / 1.349
    signal = max(spread**2 - noise**2, 0.0)
    centre, truth = np.median(y), np.empty_like(y)
    for g in groups:
        kept = signal / (signal + noise**2 / len(g))
        truth[g] = centre + kept * (y[g].mean() - centre)
    rng = np.random.default_rng(0)
    reached = [rank(truth, truth + noise * rng.normal(size=len(y))) for _ in range(draws)]
    low, high = np.quantile(reached, [0.05, 0.95])
    return {
        "noise": noise,
        "spread": spread,
        "mean": float(np.mean(reached)),
        "low": low,
        "high": high,
    }
