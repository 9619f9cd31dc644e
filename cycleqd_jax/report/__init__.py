"""What a run did, read from its folder alone: metrics, figures, tables, the HTML page; and progress bars.

- :func:`write_report`: everything a run folder has data for, written into it;
- :func:`results_table`: the table of one run, or of several as mean ± standard deviation over seeds;
- :class:`ProgressBar`: a ``types.Progress`` for terminals and logs.
"""

from cycleqd_jax.report.progress import ProgressBar
from cycleqd_jax.report.tables import ResultsTable, results_table
from cycleqd_jax.report.write import write_report

__all__ = ["ProgressBar", "ResultsTable", "results_table", "write_report"]
