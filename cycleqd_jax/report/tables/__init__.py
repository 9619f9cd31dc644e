"""Tables: what they hold (``results``, ``costs``, ``suite``) and how they are written (``formats``)."""

from cycleqd_jax.report.tables.results import AVERAGE, ResultsTable, results_table
from cycleqd_jax.report.tables.suite import SuiteTable, suite_table, write_suite

__all__ = ["AVERAGE", "ResultsTable", "SuiteTable", "results_table", "suite_table", "write_suite"]
