"""What the mixtures of `compare` are computed from: affinities, transfer, predicted loss, sizes."""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from taskpgm import affinity, mixture
from taskpgm.mixture import baselines
from taskpgm.stages.ratio import AUTO, TRANSFER, read_ratio

# What stages have left beside the affinities.
LIKELIHOODS, EMBEDDINGS = "likelihoods", "embeddings"
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
      share: G, how much the model of a task (row) helps each task (column), [n, n], or None.
      predicted: predicts the loss of a mixture; None without losses.
      arguments: the row's own.
      evidence: what stages have found beside the affinities, read when a row asks: LIKELIHOODS
        (log_likelihood [n, m], tokens [m], task [m]), EMBEDDINGS (embeddings [n, d]), and under
        the name of a row what its own runs have found.
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
    arguments: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Callable[[], Mapping[str, np.ndarray]]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.names)

    @functools.cached_property
    def importance(self) -> Float[np.ndarray, "n"]:
        """How much each task matters; sums to 1 (`config.mixture.importance`)."""
        return read_importance(self.config["importance"], self.names, self.families)

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
    def transfer(self) -> Float[np.ndarray, "n n"]:
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
        keys = {key: self.config[key] for key in ("psd", "floor")}
        alike = self.config["importance"] == "tasks"
        return {**keys, "judged": judged, "importance": None if alike else self.importance}

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
        """The exact mixtures of an affinity for all ratios up to RATIO_MAX, without caps."""
        return mixture.ratio_path(self.affinity(kind), ratio_max=RATIO_MAX, **self.parts(kind))

    def energy(self, kind: str) -> mixture.Energy:
        """The energy of one affinity (method 4)."""
        S, r = self.affinity(kind), self.ratio(kind)
        return mixture.energy_from_affinity(S, r, **self.parts(kind))


def read_importance(value: str, names: list[str], families: list[str]) -> Float[np.ndarray, "n"]:
    """How much each task's loss counts; sums to 1.

    `tasks`: all tasks alike. `families`: all families alike, and within a family all tasks. Else a
    JSON file of {task or family: weight}: a family's weight is divided equally among its tasks, and
    tasks without a weight count 0.

    Raises:
      ValueError: names the file, and what is wrong with it.
    """
    n = len(names)
    if value == "tasks":
        return np.full(n, 1.0 / n)
    if value == "families":
        if not all(families):
            raise ValueError("mixture.importance=families: the tasks have no families here")
        return baselines.uniform_families(families)
    try:
        given = {str(k): float(v) for k, v in json.loads(Path(value).read_text("utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"mixture.importance={value}: tasks, families, or a JSON file of "
            f"{{task or family: weight}} ({error})"
        ) from error
    unknown = [name for name in given if name not in names and name not in families]
    if unknown:
        raise ValueError(f"{value}: {unknown[0]!r} is neither a task nor a family here")
    counts = {family: families.count(family) for family in families}
    w = np.array(
        [
            given.get(name, 0.0) + given.get(family, 0.0) / counts[family]
            for name, family in zip(names, families, strict=True)
        ]
    )
    if not np.isfinite(w).all() or w.min() < 0 or w.sum() <= 0:
        raise ValueError(f"{value}: weights are finite, none below 0, and not all 0")
    return w / w.sum()
