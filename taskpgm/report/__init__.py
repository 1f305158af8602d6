"""The page and the table that a person sees at the end, from a workdir's artefacts alone."""

from taskpgm.report.page import results_table, write_page

__all__ = ["results_table", "write_page"]
