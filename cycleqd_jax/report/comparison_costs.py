"""The costs of a comparison: those of every row, as means over the seeds."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cycleqd_jax.files import write_bytes, write_json
from cycleqd_jax.report.comparison import ComparisonTable
from cycleqd_jax.report.costs import load_costs
from cycleqd_jax.report.method_runs import MethodRuns
from cycleqd_jax.report.read import load_results
from cycleqd_jax.report.tables import formats
from cycleqd_jax.report.tables.costs import hours_caption, total_cells, totals
from cycleqd_jax.report.tables.formats import Sheet

__all__ = ["write_comparison_costs"]


@dataclasses.dataclass(frozen=True)
class _Totals:
    """The totals of a row, of one run or as means over the seeds; None is unknown."""

    tokens: float | None
    flops: float | None
    seconds: float | None
    gpu_hours: float | None


def write_comparison_costs(folder: Path, table: ComparisonTable, methods: Sequence[MethodRuns]) -> list[Path]:
    """Writes ``tables/costs.md`` and ``tables/costs.json``: total tokens, FLOPs, seconds and GPU-hours of every row.

    They are means over the seeds, of the totals that ``tables/costs.md`` of a run has. Rows that do not depend on a search are
    those of the first method that has them. A mean is unknown where the figure of a seed is.

    Args:
        folder: the folder of the comparison.
        table: its table.
        methods: its methods, each with a run for the same seeds.

    Returns:
        The written files.

    Raises:
        InputError: a file of a run is damaged.
    """
    found: dict[str, list[_Totals]] = {}
    gpu: Mapping[str, Any] | None = None
    unit = "tokens"
    for method in methods:
        own: dict[str, list[_Totals]] = {}
        for run, history in method.histories.items():
            costs, results = load_costs(run, history), load_results(run)
            if costs is None or results is None:
                continue
            gpu, unit = gpu or costs.gpu, costs.unit
            for name in costs.methods:
                total, row = costs.total(name), method.row(name) if name in results["found"] else name
                one = _Totals(total.tokens, total.flops, total.seconds, costs.gpu_hours(name))
                own.setdefault(row, []).append(one)
        found = {**own, **found}
    means = {row: _mean(found.get(row, []), table.runs) for row in table.methods}
    names = {row: table.label(m) for m, row in enumerate(table.methods)}
    written = [folder / "tables" / "costs.md", folder / "tables" / "costs.json"]
    rows = [(names[row], total_cells(*dataclasses.astuple(mean))) for row, mean in means.items()]
    sheet = Sheet("Costs", "method", totals(unit), rows, unmarked=len(totals(unit)))
    write_bytes(written[0], f"# {table.title}: costs\n\n{formats.markdown([sheet], _caption(table, gpu, unit))}".encode())
    records = {row: {"label": names[row], **dataclasses.asdict(mean)} for row, mean in means.items()}
    write_json(written[1], {"seeds": list(table.seeds), "unit": unit, "gpu": gpu, "rows": records})
    return written


def _mean(totals: Sequence[_Totals], runs: int) -> _Totals:
    """The mean of every figure; unknown where that of a run is."""

    def of(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if len(known) == runs else None

    fields = [field.name for field in dataclasses.fields(_Totals)]
    return _Totals(*(of([getattr(one, name) for one in totals]) for name in fields))


def _caption(table: ComparisonTable, gpu: Mapping[str, Any] | None, unit: str) -> str:
    """What the numbers are."""
    over = f"Means over the seeds {', '.join(map(str, table.seeds))}. " if table.runs > 1 else ""
    return (
        f"{over}{hours_caption(gpu, unit)} Every row counts the training of all models that it needs, its search, and the "
        "evaluation of candidates for its final model; the evaluation of the row itself is left out. Seconds of individuals "
        "evaluated at the same time are added up. `cycleqd report` writes the stages of a run into its tables/costs.md."
    )
