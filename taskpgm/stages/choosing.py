"""What the rows of `compare` rest on beside the affinities."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from taskpgm.stages.affinity_files import read_likelihoods
from taskpgm.stages.context import Context
from taskpgm.stages.embeddings import read_embeddings
from taskpgm.stages.mixture_inputs import EMBEDDINGS, LIKELIHOODS


def evidence(context: Context) -> dict[str, Callable[[], Mapping[str, np.ndarray]]]:
    """`Inputs.evidence` of a workdir."""
    found: dict[str, Callable[[], Mapping[str, np.ndarray]]] = {
        LIKELIHOODS: partial(read_likelihoods, context.folder)
    }
    if not context.config.affinity.matrix:
        found[EMBEDDINGS] = partial(read_embeddings, context.folder, context.names)
    return found
