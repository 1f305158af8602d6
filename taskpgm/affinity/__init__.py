"""How tasks relate: every single-task model scored on every held-out set, then one matrix."""

from taskpgm.affinity.divergence import jensen_shannon, jsd_affinity, pmi

__all__ = ["jensen_shannon", "jsd_affinity", "pmi"]
