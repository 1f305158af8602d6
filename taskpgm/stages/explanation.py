"""Why a mixture is what it is, as the record that weights.json holds."""

import numpy as np

from taskpgm import mixture
from taskpgm.records import ExplanationRecord
from taskpgm.stages.mixture_inputs import Inputs


def explain(
    kind: str,
    inputs: Inputs,
    weights: np.ndarray,
    solution: mixture.Solution | mixture.Selection | None,
) -> ExplanationRecord:
    """What method 11 asks of a mixture, tasks in the order of the matrix.

    Intervals (method 10) are those of the exact mixture, so no other is given any.
    """
    drawn = None
    exact = isinstance(solution, mixture.Solution) and solution.method == "exact"
    if exact and kind in inputs.resamples:
        drawn = inputs.resampled(kind)
    told = mixture.explain(
        inputs.affinity(kind),
        inputs.energy(kind),
        weights,
        cap=inputs.cap,
        bounds=inputs.bounds,
        resampled=drawn,
    )
    prices = None
    if told.family_cost is not None:
        families = dict.fromkeys(inputs.families)
        prices = dict(zip(families, told.family_cost.tolist(), strict=True))
    return ExplanationRecord(
        representativeness=told.representativeness.tolist(),
        redundancy=told.redundancy.tolist(),
        reduced_cost=told.reduced_cost.tolist(),
        energy_unary=told.unary_term,
        energy_pairwise=told.pairwise_term,
        low=None if told.interval is None else told.interval[0].tolist(),
        high=None if told.interval is None else told.interval[1].tolist(),
        kept_share=None if told.kept is None else told.kept.tolist(),
        family_cost=prices,
    )
