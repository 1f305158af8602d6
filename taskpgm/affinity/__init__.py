"""How tasks relate: every single-task model scored on every held-out set, then one matrix."""

from taskpgm.affinity.bootstrap import Intervals, intervals, resample_jsd, resample_pmi
from taskpgm.affinity.compute import TaskToScore, compute_scores
from taskpgm.affinity.curves import own_losses
from taskpgm.affinity.jsd import choose_kernel
from taskpgm.affinity.layout import Layout, Plan, layout, plan
from taskpgm.affinity.matrices import jensen_shannon, jsd_affinity, pmi
from taskpgm.affinity.pairwise import MAX_BINS
from taskpgm.affinity.scores import Scores, likelihoods, losses
from taskpgm.affinity.targets import (
    jsd_relevance,
    pmi_relevance,
    resample_jsd_relevance,
    resample_pmi_relevance,
)
from taskpgm.affinity.transfer import (
    Transfer,
    mean_losses,
    measure_transfer,
    resample_losses,
    transfer,
    transfer_affinity,
)

__all__ = [
    "MAX_BINS",
    "TaskToScore",
    "Intervals",
    "Layout",
    "Plan",
    "Scores",
    "Transfer",
    "choose_kernel",
    "compute_scores",
    "intervals",
    "jensen_shannon",
    "jsd_affinity",
    "jsd_relevance",
    "layout",
    "likelihoods",
    "losses",
    "mean_losses",
    "measure_transfer",
    "own_losses",
    "plan",
    "pmi",
    "pmi_relevance",
    "resample_jsd",
    "resample_jsd_relevance",
    "resample_losses",
    "resample_pmi",
    "resample_pmi_relevance",
    "transfer",
    "transfer_affinity",
]
