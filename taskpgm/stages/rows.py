"""The table of mixtures that can be compared: one line a row.

Each row is a function of `Inputs` that returns a Solution (if it minimises something), a Selection
of tasks, or weights. To add one, write the function (in a file of `mixture/baselines/`) and a line
of ROWS.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from taskpgm import mixture
from taskpgm.mixture import baselines
from taskpgm.stages import doremi, less, regmix, skill_it
from taskpgm.stages.arguments import choice, file, number, ratio, whole
from taskpgm.stages.context import Context
from taskpgm.stages.mixture_inputs import EMBEDDINGS, LIKELIHOODS, RUNS, Inputs
from taskpgm.stages.proxy_runs import ProxyRuns
from taskpgm.stages.ratio import TRANSFER

Weighted = mixture.Solution | mixture.Selection | Float[np.ndarray, "n"]

# What rows rest on, and what it took is charged to each of them.
ADAPTERS, SCORES = "adapters", "scores"
SCORED = (ADAPTERS, SCORES)


@dataclass(frozen=True)
class MixtureRow:
    """A way to choose a mixture.

    Attributes:
      make: computes the mixture from the inputs.
      affinity: the kind of affinity whose energy it minimises, which then explains it; or None.
      arguments: by name, the parser of the text after `=`; its ValueError says what is allowed.
      needs: arguments that must be given.
      uses: what has to be made before it can be chosen.
      losses: whether an affinity alone is too little: it needs the losses of single-task models.
      runs: what it trains in order to choose, by its arguments; None: nothing.
      lasts_as_long: whether these are as long as runs on mixtures, unless `steps` is given.
      check: refuses, before anything is spent, arguments that cannot work here.
    """

    make: Callable[[Inputs], Weighted]
    affinity: str | None = None
    arguments: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    losses: bool = False
    runs: Callable[[Context, Mapping[str, Any]], ProxyRuns] | None = None
    lasts_as_long: bool = False
    check: Callable[[Mapping[str, Any]], None] = lambda arguments: None


METHODS = ("exact", "closed_form")
PSD = ("simplex", "shift", "clip")
RATIO = {"r": ratio, "psd": choice(*PSD), "floor": number(0, strict=True)}


def energy_row(
    make: Callable[[Inputs], Weighted], kind: str, *rest: Any, **more: Any
) -> MixtureRow:
    """A row that minimises the energy of an affinity."""
    return MixtureRow(make, kind, *rest, uses=SCORED, losses=kind == TRANSFER, **more)


def taskpgm(kind: str) -> MixtureRow:
    """The minimiser of the energy, by the method that the config names."""
    make = lambda x: x.solve(x.energy(kind))  # noqa: E731
    return energy_row(make, kind, RATIO | {"method": choice(*METHODS), "kl": number(0)})


def closed_form(kind: str) -> MixtureRow:
    """The paper's closed form, to compare with the exact mixture."""
    return energy_row(lambda x: mixture.solve_closed_form(x.energy(kind)), kind, RATIO)


def select(kind: str) -> MixtureRow:
    """The exact mixture over the k tasks that greedy selection takes (method 8)."""
    make = lambda x: mixture.select_greedy(  # noqa: E731
        x.energy(kind), x.arguments["k"], x.cap, bounds=x.bounds
    )
    return energy_row(make, kind, RATIO | {"k": whole}, needs=("k",))


def predicted(x: Inputs) -> mixture.Solution:
    """The mixture of least predicted loss, pulled towards the prior (method 12)."""
    return x.law.minimise(x.importance, x.cap, bounds=x.bounds, prior=x.prior, **x.arguments)


def softmax(kind: str) -> MixtureRow:
    """A control: softmax of the affinity's row sums, sharpened by beta."""
    make = lambda x: baselines.softmax_rows(x.affinity(kind), **x.arguments)  # noqa: E731
    return MixtureRow(make, None, {"beta": number(0)}, uses=SCORED)


def pure_diversity(kind: str) -> MixtureRow:
    """A control: the energy without its unary term, in closed form."""
    make = lambda x: baselines.pure_diversity(  # noqa: E731
        x.affinity(kind), psd=x.config["psd"], floor=x.config["floor"]
    )
    return MixtureRow(make, None, {key: RATIO[key] for key in ("psd", "floor")}, uses=SCORED)


def permuted(kind: str) -> MixtureRow:
    """A control: the exact mixture of an affinity whose tasks are permuted at random."""

    def make(x: Inputs) -> np.ndarray:
        S = baselines.permuted_affinity(x.affinity(kind), seed=x.seed)
        energy = replace(x, affinities={kind: S}).energy(kind)
        return np.asarray(x.solve(energy).weights)

    return MixtureRow(make, None, RATIO, uses=SCORED)


def clustered(kind: str) -> MixtureRow:
    """The authors' clustered variant: k-means of task embeddings, then their energy in each."""

    def make(x: Inputs) -> np.ndarray:
        settings = {"clusters": min(10, x.n), **x.arguments}
        embeddings = x.found(EMBEDDINGS)["embeddings"]
        return baselines.clustered(x.affinity(kind), embeddings, seed=x.seed, **settings)

    arguments = {"clusters": whole, "beta": number(0), "lam": number(0, strict=True)}
    return MixtureRow(make, None, arguments, uses=(*SCORED, EMBEDDINGS))


def graph_laplacian(kind: str) -> MixtureRow:
    """The authors' graph-Laplacian variant; r = n / 2 is their beta = 10, lambda = 20."""

    def make(x: Inputs) -> np.ndarray:
        r, epsilon = x.arguments.get("r", 0.5 * x.n), x.arguments.get("epsilon", 1e-4)
        return baselines.graph_laplacian(x.affinity(kind), r, epsilon=epsilon)

    return MixtureRow(make, None, {"r": number(0), "epsilon": number(0, strict=True)}, uses=SCORED)


def mixmin(x: Inputs) -> np.ndarray:
    """MixMin on the held-out examples, as much as each task matters."""
    told = x.found(LIKELIHOODS)
    task = told["task"]
    examples = np.bincount(task, minlength=x.n)
    return baselines.mixmin(
        told["log_likelihood"],
        told["tokens"],
        importance=x.importance[task] / examples[task],
        **x.arguments,
    )


def smart(x: Inputs) -> np.ndarray:
    """SMART over the embeddings of the base; k tasks, all where it is not given."""
    function = x.arguments.get("function", "facility-location").replace("-", " ")
    embeddings = x.found(EMBEDDINGS)["embeddings"]
    return baselines.smart(embeddings, x.arguments.get("k", x.n), function=function)


def chameleon(x: Inputs) -> np.ndarray:
    """Chameleon over the embeddings of the base."""
    return baselines.chameleon(x.found(EMBEDDINGS)["embeddings"], **x.arguments)


def from_influence(x: Inputs) -> np.ndarray:
    """LESS on the targets; without any that matters, on the held-out rows of all tasks that do."""
    found, matters = x.found(RUNS), x.importance > 0
    judged = matters & (np.arange(len(matters)) >= x.n)
    influences = found["influence"][:, judged if judged.any() else matters]
    settings = {key: value for key, value in x.arguments.items() if key not in less.OWN}
    return baselines.less(influences, found["task"], sizes_of(x), **settings)


def size_proportional(x: Inputs) -> np.ndarray:
    """Weights by size, capped (`cap` examples) and flattened (`temperature`)."""
    return baselines.size_proportional(sizes_of(x), **x.arguments)


def random_instances(x: Inputs) -> np.ndarray:
    """Examples drawn at random from the union of all tasks."""
    counts = baselines.random_instances(sizes_of(x), x.config["budget"], seed=x.seed)
    return counts / counts.sum()


def uniform_families(x: Inputs) -> np.ndarray:
    """Equal weights for all families, and for all tasks within a family."""
    if not all(x.families):
        raise ValueError("uniform-families: the tasks have no families here; drop it from compare")
    return baselines.uniform_families(x.families)


def given_weights(x: Inputs) -> np.ndarray:
    """Weights from a JSON object {task: weight}; tasks that are not in it have weight 0."""
    path = x.arguments["file"]
    try:
        given = {str(k): float(v) for k, v in json.loads(Path(path).read_text("utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a JSON object of tasks and weights ({error})") from error
    unknown = [name for name in given if name not in x.names]
    if unknown:
        raise ValueError(f"{path}: {unknown[0]!r} is no task here")
    weights = np.array([given.get(name, 0.0) for name in x.names])
    if not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() <= 0:
        raise ValueError(f"{path}: weights are finite, none below 0, and not all 0")
    return weights / weights.sum()


def sizes_of(x: Inputs) -> np.ndarray:
    if x.sizes is None:
        raise ValueError("size-proportional needs affinity.sizes: set it, or drop it from compare")
    return x.sizes


ROWS: dict[str, MixtureRow] = {
    "uniform": MixtureRow(lambda x: baselines.uniform(x.n)),
    "uniform-families": MixtureRow(uniform_families),
    "size-proportional": MixtureRow(
        size_proportional,
        arguments={"cap": number(0, strict=True), "temperature": number(0, strict=True)},
    ),
    "random-instances": MixtureRow(random_instances),
    "weights": MixtureRow(given_weights, arguments={"file": file}, needs=("file",)),
}
ROWS |= {
    f"taskpgm-{TRANSFER}": taskpgm(TRANSFER),
    f"select-{TRANSFER}": select(TRANSFER),
    "taskpgm-predicted": MixtureRow(
        predicted, arguments={"strength": number(0)}, uses=SCORED, losses=True
    ),
    "mixmin": MixtureRow(
        mixmin,
        arguments={"rate": number(0, strict=True), "steps": whole},
        uses=SCORED,
        losses=True,
    ),
    "regmix": MixtureRow(
        regmix.chosen,
        arguments={
            **{key: whole for key in ("runs", "steps", "simulated", "best")},
            "regressor": choice("lightgbm", "ridge"),
            "units": choice(*regmix.UNITS),
        },
        runs=regmix.runs,
        check=regmix.check,
    ),
    "doremi": MixtureRow(
        lambda x: x.found(RUNS)["weights"] / x.found(RUNS)["weights"].sum(),
        arguments={"steps": whole, "rate": number(0, strict=True), "smoothing": number(0, most=1)},
        runs=doremi.runs,
        lasts_as_long=True,
    ),
    "skill-it": MixtureRow(
        lambda x: x.found(RUNS)["weights"].mean(0),
        arguments={
            **{key: whole for key in ("rounds", "window", "steps")},
            "rate": number(0, strict=True),
        },
        uses=SCORED,
        losses=True,
        runs=skill_it.runs,
        lasts_as_long=True,
    ),
    "less": MixtureRow(
        from_influence,
        arguments={
            **{key: number(0, strict=True, most=1) for key in ("top", "warmup")},
            **{key: whole for key in ("epochs", "dim", "rows")},
        },
        runs=less.runs,
    ),
    "smart": MixtureRow(
        smart,
        arguments={"k": whole, "function": choice("facility-location", "graph-cut")},
        uses=(EMBEDDINGS,),
    ),
    "chameleon": MixtureRow(
        chameleon,
        arguments={"ridge": number(0, strict=True), "temperature": number(0, strict=True)},
        uses=(EMBEDDINGS,),
    ),
}
for _kind in ("pmi", "jsd"):
    ROWS |= {
        f"taskpgm-{_kind}": taskpgm(_kind),
        f"closed-form-{_kind}": closed_form(_kind),
        f"select-{_kind}": select(_kind),
        f"pure-diversity-{_kind}": pure_diversity(_kind),
        f"softmax-{_kind}": softmax(_kind),
        f"permuted-{_kind}": permuted(_kind),
        f"clustered-{_kind}": clustered(_kind),
        f"graph-laplacian-{_kind}": graph_laplacian(_kind),
    }
