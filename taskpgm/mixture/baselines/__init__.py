"""The other ways to choose a mixture.

Each baseline is a pure function: what it knows of the tasks first, then settings by keyword with
the source's own as defaults; it returns weights, float64 [n] with sum 1.

| baseline | what it knows |
|---|---|
| `uniform` | the number of tasks |
| `uniform_families` | a family for each task |
| `size_proportional`, `random_instances` | training examples of each task |
| `softmax_rows`, `pure_diversity`, `permuted`, `graph_laplacian` | an affinity |
| `clustered` | an affinity and task embeddings |
| `smart`, `chameleon` | task embeddings |
| `mixmin` | log-likelihoods of target examples under the single-task models |
| `doremi` | excess losses of a proxy model along its training |
| `regmix` | losses of small runs on random mixtures |
| `less` | influence of training rows on targets, by gradients along a warm-up |
| `skill_it` | who helps whom, and the losses of a small model along its training |
"""

from taskpgm.mixture.baselines.authors import clustered, graph_laplacian
from taskpgm.mixture.baselines.chameleon import chameleon
from taskpgm.mixture.baselines.controls import (
    permuted,
    permuted_affinity,
    pure_diversity,
    softmax_rows,
)
from taskpgm.mixture.baselines.doremi import doremi, doremi_update, excess_loss
from taskpgm.mixture.baselines.less import influence, less
from taskpgm.mixture.baselines.mixmin import mixmin
from taskpgm.mixture.baselines.regmix import check_regressor, dirichlet_mixtures, regmix
from taskpgm.mixture.baselines.sizes import (
    random_instances,
    size_proportional,
    uniform,
    uniform_families,
)
from taskpgm.mixture.baselines.skill_it import skill_it
from taskpgm.mixture.baselines.smart import (
    Greedy,
    cosine_similarity,
    facility_location,
    graph_cut,
    smart,
)

__all__ = [
    "Greedy",
    "chameleon",
    "check_regressor",
    "clustered",
    "cosine_similarity",
    "dirichlet_mixtures",
    "doremi",
    "doremi_update",
    "excess_loss",
    "facility_location",
    "graph_cut",
    "graph_laplacian",
    "influence",
    "less",
    "mixmin",
    "permuted",
    "permuted_affinity",
    "pure_diversity",
    "random_instances",
    "regmix",
    "size_proportional",
    "skill_it",
    "smart",
    "softmax_rows",
    "uniform",
    "uniform_families",
]
