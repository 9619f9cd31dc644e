"""What a run did: figures, tables and the HTML page, made from its folder alone; and progress bars.

- :func:`open_run`: a run folder as data, ready for ``pandas.DataFrame``;
- :func:`write_report`: writes figures, tables and ``report.html`` into a run folder;
- :func:`results_table`: the results of one run, or of several runs as mean ± standard deviation;
- :func:`suite_table`, :func:`write_suite`: the results of a run on tasks that are not its own;
- :class:`ComparisonTable`: the results of several methods, over seeds;
- :func:`draw_comparison`: writes the tables and figures of a comparison;
- :class:`ProgressBar`: shows long stages in terminals, notebooks and logs.
"""

from cycleqd_jax.report.comparison import ComparisonTable
from cycleqd_jax.report.comparison_files import draw_comparison
from cycleqd_jax.report.folder import RunFolder, open_run
from cycleqd_jax.report.progress import ProgressBar
from cycleqd_jax.report.tables import ResultsTable, SuiteTable, results_table, suite_table, write_suite
from cycleqd_jax.report.write import write_report

__all__ = [
    "ComparisonTable",
    "ProgressBar",
    "ResultsTable",
    "RunFolder",
    "SuiteTable",
    "draw_comparison",
    "open_run",
    "results_table",
    "suite_table",
    "write_report",
    "write_suite",
]
