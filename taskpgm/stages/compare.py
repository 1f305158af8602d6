"""The table of mixtures that can be compared: `config.compare` names its rows, with arguments.

A name is `ROW` or `ROW:KEY=VALUE,KEY=VALUE`, as in `taskpgm-pmi:r=4`. Each row is a function of
`Inputs` that returns a Solution (if it minimises something), a Selection of tasks, or weights. To
add one, write the function (in a file of `mixture/baselines/`) and a line of ROWS.
"""

import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from taskpgm import mixture
from taskpgm.mixture import baselines
from taskpgm.stages.arguments import choice, file, number, ratio, whole
from taskpgm.stages.mixture_inputs import Inputs
from taskpgm.stages.ratio import AUTO, TRANSFER, read_ratio

Weighted = mixture.Solution | mixture.Selection | Float[np.ndarray, "n"]


@dataclass(frozen=True)
class MixtureRow:
    """A way to choose a mixture.

    Attributes:
      make: computes the mixture from the inputs.
      affinity: the kind of affinity whose energy it minimises, which then explains it; or None.
      arguments: by name, the parser of the text after `=`; its ValueError says what is allowed.
      needs: arguments that must be given.
    """

    make: Callable[[Inputs], Weighted]
    affinity: str | None = None
    arguments: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


# --- Rows ----------------------------------------------------------------------------------------
# How an energy is minimised. The closed form ignores caps (method 5); the allocation keeps them.
SOLVERS: dict[str, Callable[[mixture.Energy, np.ndarray | None], mixture.Solution]] = {
    "exact": lambda energy, cap: mixture.solve_exact(energy, cap),
    "closed_form": lambda energy, cap: mixture.solve_closed_form(energy),
}
NO_LOSSES = ("pmi", "jsd")  # values of affinity.kind whose matrices do not give losses
PSD = ("simplex", "shift", "clip")
# Arguments that replace keys of the section `mixture`, in this row only.
KEYS = {"r": "ratio", "psd": "psd", "floor": "floor", "method": "method"}
RATIO = {"r": ratio, "psd": choice(*PSD), "floor": number(0, strict=True)}


def taskpgm(kind: str) -> MixtureRow:
    """The minimiser of the energy, by the method that the config names."""
    make = lambda x: SOLVERS[x.config["method"]](x.energy(kind), x.cap)  # noqa: E731
    return MixtureRow(make, kind, RATIO | {"method": choice(*SOLVERS)})


def closed_form(kind: str) -> MixtureRow:
    """The paper's closed form, to compare with the exact mixture."""
    return MixtureRow(lambda x: mixture.solve_closed_form(x.energy(kind)), kind, RATIO)


def select(kind: str) -> MixtureRow:
    """The exact mixture over the k tasks that greedy selection takes (method 8)."""

    def make(x: Inputs) -> mixture.Selection:
        k = x.arguments["k"]
        if k > x.n:
            raise ValueError(f"select-{kind}:k={k} of {x.n} tasks: k is at most their number")
        return mixture.select_greedy(x.energy(kind), k)

    return MixtureRow(make, kind, RATIO | {"k": whole}, needs=("k",))


def predicted(x: Inputs) -> mixture.Solution:
    """The mixture of least predicted loss, regularised towards the importance (method 12)."""
    n = x.law.supply.shape[0]
    prior = x.importance if x.importance.min() > 0 else np.full(n, 1.0 / n)
    return x.law.minimise(x.importance, x.cap, prior=prior, **x.arguments)


def softmax(kind: str) -> MixtureRow:
    """A control: softmax of the affinity's row sums, sharpened by beta."""
    make = lambda x: baselines.softmax_rows(x.affinity(kind), **x.arguments)  # noqa: E731
    return MixtureRow(make, None, {"beta": number(0)})


def pure_diversity(kind: str) -> MixtureRow:
    """A control: the energy without its unary term, in closed form."""
    make = lambda x: baselines.pure_diversity(  # noqa: E731
        x.affinity(kind), psd=x.config["psd"], floor=x.config["floor"]
    )
    return MixtureRow(make, None, {key: RATIO[key] for key in ("psd", "floor")})


def permuted(kind: str) -> MixtureRow:
    """A control: the exact mixture of an affinity whose tasks are permuted at random."""

    def make(x: Inputs) -> np.ndarray:
        S = baselines.permuted_affinity(x.affinity(kind), seed=x.seed)
        energy = replace(x, affinities={kind: S}).energy(kind)
        return np.asarray(SOLVERS[x.config["method"]](energy, x.cap).weights)

    return MixtureRow(make, None, RATIO)


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
    "taskpgm-predicted": MixtureRow(predicted, arguments={"strength": number(0)}),
}
for _kind in ("pmi", "jsd"):
    ROWS |= {
        f"taskpgm-{_kind}": taskpgm(_kind),
        f"closed-form-{_kind}": closed_form(_kind),
        f"select-{_kind}": select(_kind),
        f"pure-diversity-{_kind}": pure_diversity(_kind),
        f"softmax-{_kind}": softmax(_kind),
        f"permuted-{_kind}": permuted(_kind),
    }


# --- Names ---------------------------------------------------------------------------------------
def parse(name: str, needs: bool = True) -> tuple[MixtureRow, dict[str, Any]]:
    """The row that a name like `taskpgm-pmi:r=4` refers to, and its parsed arguments.

    Args:
      needs: whether all that the row needs has to be there.

    Raises:
      ValueError: no such row or argument, or a bad value; lists what is allowed.
    """
    head, _, tail = name.partition(":")
    check_choice("compare", head, ROWS)
    row, arguments = ROWS[head], {}
    for part in tail.split(",") if tail else ():
        key, equals, text = part.partition("=")
        allowed = ", ".join(row.arguments) or "none"
        if not equals or key not in row.arguments:
            raise ValueError(f"compare: {name!r}: {part!r} is no argument; {head} has {allowed}")
        try:
            arguments[key] = row.arguments[key](text)
        except ValueError as error:
            raise ValueError(f"compare: {name!r}: {key}={text} has to be {error}") from error
    missing = [key for key in row.needs if key not in arguments]
    if missing and needs:
        raise ValueError(f"compare: {name!r} needs {missing[0]}, as in {head}:{missing[0]}=...")
    return row, arguments


def make(name: str, inputs: Inputs) -> tuple[MixtureRow, Inputs, Weighted]:
    """The row of that name, the inputs with the row's arguments applied, and the mixture."""
    row, arguments = parse(name)
    own = {KEYS[key]: value for key, value in arguments.items() if key in KEYS}
    others = {key: value for key, value in arguments.items() if key not in KEYS}
    inputs = replace(inputs, config={**inputs.config, **own}, arguments=others)
    return row, inputs, row.make(inputs)


def folder_name(name: str) -> str:
    """The folder of a mixture: its name, with `_` for characters that a path should not have."""
    return re.sub(r"[^\w.=:,+@-]", "_", name)


# --- Checks before anything is spent -------------------------------------------------------------
def caps(size: np.ndarray, budget: int, max_epochs: float) -> Float[np.ndarray, "n"]:
    """The largest weight of each task, floor(max_epochs N_i) / budget (method 6).

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


def check(config: Any, size: np.ndarray | None) -> None:
    """Refuses, before anything is trained, comparisons that cannot be made.

    Raises:
      ValueError: an unknown mixture or method, or a budget larger than the data allow.
    """
    if not config.compare:
        raise ValueError(f"compare is empty; there are {', '.join(ROWS)}")
    folders: dict[str, str] = {}
    for name in config.compare:
        row, arguments = parse(name)
        if config.affinity.matrix and config.affinity.kind in NO_LOSSES:
            check_without_losses(name, row, arguments, config.mixture.ratio)
        other = folders.setdefault(folder_name(name), name)
        if other != name:
            raise ValueError(f"compare: {name!r} and {other!r} would have one folder")
    check_choice("mixture.method", config.mixture.method, SOLVERS)
    if size is not None:
        caps(size, config.mixture.budget, config.mixture.max_epochs)


def check_without_losses(
    name: str, row: MixtureRow, arguments: Mapping[str, Any], ratio: str
) -> None:
    """Refuses a mixture that needs losses of single-task models if only an affinity is given."""
    if row.affinity == TRANSFER or row.make is predicted:
        raise ValueError(
            f"compare: {name!r} needs the losses of single-task models, and affinity.matrix holds "
            "an affinity alone: drop it"
        )
    given = read_ratio(str(arguments.get("r", ratio)))
    if row.affinity and given.get(row.affinity, given.get("", AUTO)) == AUTO:
        raise ValueError(
            f"mixture.ratio={ratio}: with affinity.matrix there are no losses to choose the ratio "
            f"of {name!r} by: give a number, as in --config.mixture.ratio=2"
        )


def check_choice(key: str, name: str, table: Mapping[str, Any]) -> None:
    """Raises ValueError, listing what there is, if `name` is not in the table."""
    if name not in table:
        near = difflib.get_close_matches(str(name), list(table), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{key}: {name!r} is none of {', '.join(table)}{hint}")
