"""Ways to predict the loss of a trained mixture from the scores of single-task models.

Each takes a swarm and gives a predicted loss for every run and task, [R, n]; only ranks count.
None has seen a trained mixture.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from swarm import Swarm
from taskpgm.affinity import mean_losses
from taskpgm.mixture import PredictedLoss
from taskpgm.mixture.worth import FLOOR, GUARD, LEAST, POWER

Predictor = Callable[[Swarm], np.ndarray]


def losses(swarm: Swarm) -> np.ndarray:
    """L_ik, nats per token over all tokens of a task, as the trained mixtures were measured."""
    return mean_losses(swarm.log_likelihood, swarm.task, swarm.tokens)


def law_of(swarm: Swarm) -> PredictedLoss:
    """The law as the package has it."""
    return PredictedLoss.from_losses(
        losses(swarm), swarm.base, budget=swarm.budget, sizes=swarm.sizes, seen=swarm.seen
    )


def predicted_loss(swarm: Swarm) -> np.ndarray:
    return law_of(swarm).per_task(swarm.weights)


def medians(swarm: Swarm) -> np.ndarray:
    """Median loss of the other tasks' models on each task, [n]."""
    loss = losses(swarm)
    return np.nanmedian(np.where(np.eye(swarm.n, dtype=bool), np.nan, loss), axis=0)


def references(swarm: Swarm) -> dict[str, np.ndarray]:
    """What a task's gain may be measured against: losses, [n]."""
    median = medians(swarm)
    best = np.minimum(median, swarm.base)
    return {"base": swarm.base, "median": median, "best": best}


def distance_from_uniform(swarm: Swarm) -> np.ndarray:
    apart = ((swarm.weights - 1 / swarm.n) ** 2).sum(1)
    return np.repeat(apart[:, None], swarm.n, 1)


def own_share(swarm: Swarm) -> np.ndarray:
    """Minus the logarithm of a task's own weight."""
    return -np.log(swarm.weights + 1e-3)


def effective_share(swarm: Swarm, reference: str) -> np.ndarray:
    """e_k = sum_i p_i max(G_ik, 0)."""
    gain = references(swarm)[reference] - losses(swarm)
    own = np.maximum(np.diagonal(gain), 1e-6)
    return swarm.weights @ np.maximum(gain / own, 0)


def log_effective_share(swarm: Swarm, reference: str = "base") -> np.ndarray:
    return -np.log(effective_share(swarm, reference) + 1e-3)


def power_law(
    swarm: Swarm, reference: str = "base", alpha: float = 0.5, eps: float = 0.003
) -> np.ndarray:
    """L_kk + (b_k - L_kk) ((eps + e_k) / (eps + 1/n))^-alpha."""
    own, b = np.diagonal(losses(swarm)), references(swarm)[reference]
    e = effective_share(swarm, reference)
    return own + np.maximum(b - own, 0) * ((eps + e) / (eps + 1 / swarm.n)) ** -alpha


def two_parts(swarm: Swarm, alpha: float = 0.5, eps: float = 0.003) -> np.ndarray:
    """Form (base less median), learnt from anything, and skill (median less own), by transfer."""
    loss, median = losses(swarm), medians(swarm)
    form = np.maximum(swarm.base - median, 0)
    brought = (swarm.base - loss) / np.maximum(swarm.base - median, 1e-6)
    share = swarm.weights @ np.clip(brought, 0, 1)
    return power_law(swarm, "median", alpha, eps) + form / (1 + share / eps)


def ensemble(swarm: Swarm) -> np.ndarray:
    """MixMin: -mean (1/|y|) log sum_i p_i p_i(y|x) of each task (arXiv 2502.10510)."""
    out = np.empty((len(swarm.weights), swarm.n))
    for k in range(swarm.n):
        mine = swarm.task == k
        scores = swarm.log_likelihood[:, mine]
        top = scores.max(0)
        mixed = np.log(np.maximum(swarm.weights @ np.exp(scores - top), 1e-300)) + top
        out[:, k] = -(mixed / swarm.tokens[mine]).mean(1)
    return out


def open_law(
    swarm: Swarm,
    reference: str = "best",
    floor: float = FLOOR,
    least: float = LEAST,
    pace: float = 1.0,
    epochs: float | None = 1.0,
    unit: str = "runs",
    harm: float = 1.0,
    guard: float = GUARD,
    negative: float = 0.0,
    power: float | None = POWER,
) -> np.ndarray:
    """The package's law with its choices laid open, for ablations.

    Args:
      reference: what transfer is measured against.
      floor, least, pace, guard: as in `taskpgm.mixture.worth`.
      epochs: scale on which repeats stop teaching; None: they teach as well as new examples.
      unit: "examples" of single-task runs, or "runs": a run counts the same whatever its length.
      harm: how much counts of what training on others costs; 0: nothing.
      negative: how much of what a harmful model unlearns counts.
      power: of the learning curve, (1 + x / power)^-power; None: exp(-x).
    """
    loss, b = losses(swarm), references(swarm)[reference]
    f = floor * np.minimum(loss.min(0), b)
    h = np.clip((loss - f) / (b - f), least, None)
    h = -np.log(h) if power is None else power * (h ** (-1 / power) - 1)
    h = np.where(h > 0, h, negative * h)
    seen = np.full(swarm.n, swarm.budget / 4) if swarm.seen is None else swarm.seen
    if unit == "runs":
        seen = np.full(swarm.n, np.median(seen))
    drawn = swarm.weights * swarm.budget
    if epochs is not None:
        drawn, seen = (s * (1 - np.exp(-x / s)) for x, s in _scaled(drawn, seen, swarm, epochs))
    x = pace * drawn @ (h / seen[:, None])
    left = np.exp(-x) if power is None else (1 + x / power) ** -power
    pushed = harm * np.maximum(medians(swarm) - b, 0)
    return f + (b - f) * left + pushed * np.exp(-guard * x)


def _scaled(drawn, seen, swarm, epochs):
    scale = epochs * swarm.sizes
    return (drawn, scale), (seen, scale)


PREDICTORS: Mapping[str, Predictor] = {
    "distance from uniform": distance_from_uniform,
    "own share, -log p_k": own_share,
    "ensemble (MixMin)": ensemble,
    "-log e_k, base": log_effective_share,
    "-log e_k, median": partial(log_effective_share, reference="median"),
    "power law, base": power_law,
    "power law, median": partial(power_law, reference="median"),
    "power law, two parts": two_parts,
    "power law, best reference": partial(power_law, reference="best"),
    "**PredictedLoss**": predicted_loss,
}
