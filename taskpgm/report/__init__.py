"""What a person sees at the end: the page and the table, made only from what is in the workdir."""

from taskpgm.report.page import results_table, write_page

__all__ = ["results_table", "write_page"]
