"""The page and the table that a person sees at the end, from a workdir's artefacts alone."""

from taskpgm.report.order import Clustering, cluster
from taskpgm.report.page import results_table, write_page

__all__ = ["Clustering", "cluster", "results_table", "write_page"]
