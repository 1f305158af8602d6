"""What the mixtures of `compare` are computed from: affinities, transfer, predicted loss, sizes."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from taskpgm import affinity, mixture
from taskpgm.stages.preferences import read_bounds, read_importance, read_prior
from taskpgm.stages.ratio import AUTO, TRANSFER, read_ratio

# What stages have left beside the affinities.
LIKELIHOODS, EMBEDDINGS, RUNS = "likelihoods", "embeddings", "runs"
RATIO_MAX = 16.0  # the largest ratio that "auto" considers; its mixture has only a few tasks


@dataclass(frozen=True)
class Inputs:
    """Everything that a mixture can be computed from.

    Attributes:
      names: of the tasks, in the order of the matrices.
      families: of each task; all "" if only a matrix was given.
      affinities: S by kind ("pmi", "jsd"), each [n, n].
      resamples: S of resampled held-out sets by kind, each [b, n, n]; empty for a given matrix.
      sizes: training examples per task [n], or None if unknown.
      cap: the largest weight of each task [n] (`compare.caps`), or None if sizes are unknown.
      config: the section `mixture`, with the row's own arguments applied.
      seed: for mixtures that draw at random.
      share: G, how much the model of a task (row) helps each task and target (column), [n, n + t],
        or None.
      predicted: predicts the loss of a mixture; None without losses.
      targets, target_families: of the tasks that are judged and not mixed.
      relevance: by kind, how relevant each task is to each target, [n, t]; none without targets.
      relevance_resamples: the same of the `resamples`, [b, n, t].
      arguments: the row's own.
      evidence: what stages have found beside the affinities, read when a row asks: LIKELIHOODS
        (log_likelihood [n, m], tokens [m], task [m]), EMBEDDINGS (embeddings [n, d]), and under
        RUNS what the row's own runs have found.
    """

    names: list[str]
    families: list[str]
    affinities: Mapping[str, np.ndarray]
    resamples: Mapping[str, np.ndarray]
    sizes: np.ndarray | None
    cap: np.ndarray | None
    config: Mapping[str, Any]
    seed: int
    share: np.ndarray | None = None
    predicted: mixture.PredictedLoss | None = None
    targets: list[str] = field(default_factory=list)
    target_families: list[str] = field(default_factory=list)
    relevance: Mapping[str, np.ndarray] = field(default_factory=dict)
    relevance_resamples: Mapping[str, np.ndarray] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Callable[[], Mapping[str, np.ndarray]]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.names)

    @functools.cached_property
    def importance(self) -> Float[np.ndarray, "k"]:
        """How much each task, and then each target, matters, with sum 1 (`mixture.importance`)."""
        names, families = [*self.names, *self.targets], [*self.families, *self.target_families]
        return read_importance(self.config["importance"], names, families, self.n)

    @functools.cached_property
    def bounds(self) -> mixture.Bounds | None:
        """Smallest and largest weights of tasks and families (`mixture.bounds`)."""
        return read_bounds(self.config["bounds"], self.names, self.families)

    @functools.cached_property
    def prior(self) -> Float[np.ndarray, "n"]:
        """The mixture that others are pulled to (`mixture.prior`)."""
        return read_prior(
            self.config["prior"], self.names, self.families, self.sizes, self.importance
        )

    def affinity(self, kind: str) -> Float[np.ndarray, "n n"]:
        """S of a kind.

        Raises:
          ValueError: that affinity was not computed.
        """
        if kind == TRANSFER:
            return affinity.transfer_affinity(self.transfer, self.importance)[0]
        if kind not in self.affinities:
            raise ValueError(f"no {kind} affinity here, only {', '.join(self.affinities)}")
        return self.affinities[kind]

    def found(self, what: str) -> Mapping[str, np.ndarray]:
        """What a stage has left.

        Raises:
          ValueError: there is none, or its file is damaged.
        """
        if what not in self.evidence:
            raise ValueError(f"no {what} here, only {', '.join(self.evidence) or 'affinities'}")
        return self.evidence[what]()

    @property
    def transfer(self) -> Float[np.ndarray, "n k"]:
        """G (method 12).

        Raises:
          ValueError: there are no losses to measure it from.
        """
        if self.share is None:
            raise ValueError(
                "transfer needs the losses of single-task models: an affinity alone does not "
                "have them; drop these rows from compare"
            )
        return self.share

    @property
    def law(self) -> mixture.PredictedLoss:
        """The predicted loss (method 12).

        Raises:
          ValueError: there are no losses to compute it from.
        """
        if self.predicted is None:
            raise ValueError(
                "the predicted loss needs the losses of single-task models, which an affinity "
                "alone does not have: give mixture.ratio a number, and leave taskpgm-predicted out"
            )
        return self.predicted

    def parts(self, kind: str) -> dict[str, Any]:
        """Arguments of an affinity's energy other than S and r."""
        # Scaled so that at r = 1 each task should get 1/n of what its own training gives it.
        judged = np.maximum(self.transfer, 0.0) / self.n if kind == TRANSFER else None
        if kind != TRANSFER and self.targets:
            judged = np.concatenate([self.affinity(kind), self.relevance[kind]], -1)
        keys = {key: self.config[key] for key in ("psd", "floor")}
        alike = self.config["importance"] == "tasks"
        return {**keys, "judged": judged, "importance": None if alike else self.importance}

    def resampled(self, kind: str) -> Float[np.ndarray, "b n"]:
        """The exact mixture of every resample of an affinity."""
        parts = self.parts(kind)
        if self.targets:
            both = self.resamples[kind], self.relevance_resamples[kind]
            parts["judged"] = np.concatenate(both, -1)
        return mixture.bootstrap_weights(
            self.resamples[kind], self.ratio(kind), self.cap, bounds=self.bounds, **parts
        ).weights

    def ratio(self, kind: str) -> float:
        """r of an affinity: the config's, or the one of least predicted loss on its path.

        Raises:
          ValueError: the ratio is "auto" and there is no predicted loss.
        """
        given = read_ratio(str(self.config["ratio"]))
        value = given.get(kind, given.get("", AUTO))
        if value == AUTO:
            return mixture.choose_ratio(self.path(kind), self.law, self.importance).ratio
        return float(value)

    def path(self, kind: str) -> mixture.Path:
        """The exact mixtures of an affinity for all ratios up to RATIO_MAX, within caps and
        bounds."""
        return mixture.ratio_path(
            self.affinity(kind),
            ratio_max=RATIO_MAX,
            cap=self.cap,
            bounds=self.bounds,
            **self.parts(kind),
        )

    def energy(self, kind: str) -> mixture.Energy:
        """The energy of one affinity (method 4)."""
        S, r = self.affinity(kind), self.ratio(kind)
        return mixture.energy_from_affinity(S, r, **self.parts(kind))

    def solve(self, energy: mixture.Energy) -> mixture.Solution:
        """The minimiser of an energy, by the method, the prior and the bounds of the config.

        The closed form knows no caps and no bounds (method 5).
        """
        if self.config["method"] == "closed_form":
            return mixture.solve_closed_form(energy)
        if self.config["kl"] > 0:
            kl = self.config["kl"]
            return mixture.solve_entropic(energy, self.prior, kl, self.cap, bounds=self.bounds)
        return mixture.solve_exact(energy, self.cap, bounds=self.bounds)

    def check(self) -> None:
        """Refuses what is wanted of a mixture and cannot be had.

        Raises:
          ValueError: names the key.
        """
        if self.config["method"] == "closed_form":
            for key in ("bounds", "kl"):
                if self.config[key]:
                    raise ValueError(
                        f"mixture.{key}={self.config[key]}: the closed form knows none: set "
                        "mixture.method=exact"
                    )
        try:
            # A task without prior gets no weight.
            cap = np.where(self.prior > 0, 1.0 if self.cap is None else self.cap, 0.0)
            mixture.check_selection(self.n, self.n, cap, self.bounds)
        except ValueError as error:
            told = {key: self.config[key] for key in ("bounds", "prior", "max_epochs", "budget")}
            keys = ", ".join(f"mixture.{key}={value!r}" for key, value in told.items() if value)
            raise ValueError(f"{keys}: together {error}") from error
