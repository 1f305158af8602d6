"""How tasks relate: every single-task model scored on every held-out set, then one matrix."""

from taskpgm.affinity.bootstrap import Intervals, intervals, resample_jsd, resample_pmi
from taskpgm.affinity.budget import Layout, Plan, layout, plan
from taskpgm.affinity.divergence import jensen_shannon, jsd_affinity, pmi
from taskpgm.affinity.scores import Scores, compute_scores, likelihoods

__all__ = [
    "Intervals",
    "Layout",
    "Plan",
    "Scores",
    "compute_scores",
    "intervals",
    "jensen_shannon",
    "jsd_affinity",
    "layout",
    "likelihoods",
    "plan",
    "pmi",
    "resample_jsd",
    "resample_pmi",
]
