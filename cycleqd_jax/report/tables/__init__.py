"""Tables: what they hold (``results``, ``costs``) and how they are written (``formats``)."""

from cycleqd_jax.report.tables.results import AVERAGE, SEARCHES, ResultsTable, method_label, results_table

__all__ = ["AVERAGE", "SEARCHES", "ResultsTable", "method_label", "results_table"]
