"""The other ways to choose a mixture: small pure functions, one idea a file."""

from taskpgm.mixture.baselines.chameleon import chameleon
from taskpgm.mixture.baselines.doremi import doremi_average, doremi_update, excess_loss
from taskpgm.mixture.baselines.mixmin import mixmin
from taskpgm.mixture.baselines.permuted import permuted_affinity
from taskpgm.mixture.baselines.pure_diversity import pure_diversity
from taskpgm.mixture.baselines.random_instances import random_instances
from taskpgm.mixture.baselines.regmix import dirichlet_mixtures, regmix
from taskpgm.mixture.baselines.size_proportional import size_proportional
from taskpgm.mixture.baselines.smart import (
    Greedy,
    cosine_similarity,
    facility_location,
    graph_cut,
    smart_counts,
)
from taskpgm.mixture.baselines.softmax_rows import softmax_rows
from taskpgm.mixture.baselines.uniform import uniform

__all__ = [
    "Greedy",
    "chameleon",
    "cosine_similarity",
    "dirichlet_mixtures",
    "doremi_average",
    "doremi_update",
    "excess_loss",
    "facility_location",
    "graph_cut",
    "mixmin",
    "permuted_affinity",
    "pure_diversity",
    "random_instances",
    "regmix",
    "size_proportional",
    "smart_counts",
    "softmax_rows",
    "uniform",
]
