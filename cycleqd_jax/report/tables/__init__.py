"""Tables: what they hold (``results``, ``costs``) and how they are written (``formats``)."""

from cycleqd_jax.report.tables.results import AVERAGE, ResultsTable, results_table

__all__ = ["AVERAGE", "ResultsTable", "results_table"]
