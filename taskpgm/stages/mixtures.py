"""The mixtures that can be compared, by name: `config.compare` picks rows of the table MIXTURES.

Each row is a function of Inputs and returns a Solution of the energy it minimises, or plain weights
where it minimises none.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from taskpgm import mixture
from taskpgm.mixture import baselines


@dataclass(frozen=True)
class Inputs:
    """All that a mixture can be made from.

    Attributes:
      affinities: S by kind ("pmi", "jsd"), each [n, n].
      resamples: S of resampled held-out sets by kind, each [b, n, n]; none with a matrix's file.
      sizes: training examples per task [n], or None for a matrix from a file.
      cap: the largest weight each task can have, budget and sizes being what they are [n], or None.
      config: the section `mixture`.
      seed: for the random ones.
    """

    affinities: Mapping[str, np.ndarray]
    resamples: Mapping[str, np.ndarray]
    sizes: np.ndarray | None
    cap: np.ndarray | None
    config: Mapping
    seed: int

    @property
    def n(self) -> int:
        return len(next(iter(self.affinities.values())))

    def affinity(self, kind: str) -> np.ndarray:
        """S of a kind, [n, n].

        Raises:
          ValueError: that affinity was not computed.
        """
        if kind not in self.affinities:
            raise ValueError(f"no {kind} affinity here, only {', '.join(self.affinities)}")
        return self.affinities[kind]

    def energy(self, kind: str) -> mixture.Energy:
        """The energy of one affinity (method 4)."""
        section = self.config
        return mixture.energy_from_affinity(
            self.affinity(kind), section["ratio"], psd=section["psd"], floor=section["floor"]
        )


@dataclass(frozen=True)
class Mixture:
    """A row of the table: which affinity it reads (None: none), and how it is made."""

    affinity: str | None
    make: Callable[[Inputs], "mixture.Solution | np.ndarray"]


def taskpgm(kind: str) -> Mixture:
    """The minimiser of the energy, by the method that the config names."""
    return Mixture(kind, lambda x: SOLVERS[x.config["method"]](x.energy(kind), x.cap))


# How an energy is minimised. The closed form knows no caps (method 5); allocation respects them.
SOLVERS = {
    "exact": lambda energy, cap: mixture.solve_exact(energy, cap),
    "closed_form": lambda energy, cap: mixture.solve_closed_form(energy),
}


def closed_form(kind: str) -> Mixture:
    """The paper's own mixture, beside the exact one."""
    return Mixture(kind, lambda x: mixture.solve_closed_form(x.energy(kind)))


def plain(kind: str, weights: Callable[[np.ndarray, Inputs], np.ndarray]) -> Mixture:
    """A baseline that reads an affinity but minimises no energy of it."""
    return Mixture(None, lambda x: weights(x.affinity(kind), x))


def permuted(kind: str) -> Mixture:
    """A control: the exact mixture of an affinity whose tasks have changed places."""

    def make(x: Inputs) -> np.ndarray:
        S = baselines.permuted_affinity(x.affinity(kind), seed=x.seed)
        energy = replace(x, affinities={kind: S}).energy(kind)
        return SOLVERS[x.config["method"]](energy, x.cap).weights

    return Mixture(None, make)


def random_instances(x: Inputs) -> np.ndarray:
    """Examples drawn from the union of all tasks, whichever task they are of."""
    counts = baselines.random_instances(sizes_of(x), x.config["budget"], seed=x.seed)
    return counts / counts.sum()


def sizes_of(x: Inputs) -> np.ndarray:
    if x.sizes is None:
        raise ValueError("size-proportional needs affinity.sizes: set it, or drop it from compare")
    return x.sizes


MIXTURES: dict[str, Mixture] = {
    "uniform": Mixture(None, lambda x: baselines.uniform(x.n)),
    "size-proportional": Mixture(None, lambda x: baselines.size_proportional(sizes_of(x))),
    "taskpgm-pmi": taskpgm("pmi"),
    "taskpgm-jsd": taskpgm("jsd"),
    "closed-form-pmi": closed_form("pmi"),
    "closed-form-jsd": closed_form("jsd"),
    "softmax-pmi": plain("pmi", lambda S, x: baselines.softmax_rows(S)),
    "softmax-jsd": plain("jsd", lambda S, x: baselines.softmax_rows(S)),
    "permuted-pmi": permuted("pmi"),
    "permuted-jsd": permuted("jsd"),
    "random-instances": Mixture(None, random_instances),
}


def caps(size: np.ndarray, budget: int, max_epochs: float) -> np.ndarray:
    """The largest weight of each task: floor(max_epochs N_i) examples of the budget (method 6).

    Raises:
      ValueError: the budget is larger than the data allow.
    """
    most = np.floor(max_epochs * size)
    if most.sum() < budget:
        raise ValueError(
            f"mixture.budget={budget} is larger than the data allow: {int(size.sum())} training "
            f"examples, each at most mixture.max_epochs={max_epochs:g} times, make "
            f"{int(most.sum())}: lower the budget or raise max_epochs"
        )
    return most / budget


def check(config: Mapping, size: np.ndarray | None) -> None:
    """Refuses, before anything is trained, what no mixture could be made of.

    Raises:
      ValueError: an unknown mixture or method, or a budget larger than the data allow.
    """
    if not config.compare:
        raise ValueError(f"compare is empty; there are {', '.join(MIXTURES)}")
    for name in config.compare:
        known("compare", name, MIXTURES)
    known("mixture.method", config.mixture.method, SOLVERS)
    if size is not None:
        caps(size, config.mixture.budget, config.mixture.max_epochs)


def known(key: str, name: str, table: Mapping) -> None:
    """Raises ValueError when `name` is no row of the table; names those that are."""
    if name not in table:
        near = difflib.get_close_matches(name, table, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{key}: {name!r} is none of {', '.join(table)}{hint}")


def make(name: str, inputs: Inputs) -> "mixture.Solution | np.ndarray":
    """The mixture of that name, a row of MIXTURES."""
    return MIXTURES[name].make(inputs)
