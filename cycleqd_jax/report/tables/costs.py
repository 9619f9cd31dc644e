"""The tables of costs: tokens, FLOPs and seconds of every row by stage, GPU-hours, and the search by generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cycleqd_jax.report.costs import PAPER_GPU_HOURS, STAGES, Cost, Costs
from cycleqd_jax.report.labels import method_label
from cycleqd_jax.report.metrics import milestones
from cycleqd_jax.report.tables import formats
from cycleqd_jax.report.tables.formats import Cell, Sheet

__all__ = ["cost_caption", "cost_sheets", "costs_markdown", "hours_caption", "total_cells", "totals"]

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def totals(unit: str) -> tuple[str, ...]:
    """The columns of a row's totals.

    Args:
        unit: see :class:`~cycleqd_jax.report.costs.Costs`.
    """
    return unit, "FLOPs", "seconds", "GPU-hours, extrapolated"


def costs_markdown(costs: Costs) -> str:
    """All tables as GitHub-flavoured Markdown."""
    return formats.markdown(cost_sheets(costs), cost_caption(costs))


def cost_sheets(costs: Costs) -> list[Sheet]:
    """The tables: GPU-hours, tokens, FLOPs and seconds of every row, and the generations between two milestones."""
    sheets = [
        _hours(costs),
        _by_stage(costs.unit.capitalize(), costs, lambda cost: _number(cost.tokens)),
        _by_stage("FLOPs", costs, lambda cost: _number(cost.flops)),
        _by_stage("Seconds", costs, lambda cost: _seconds(cost.seconds)),
    ]
    return [*sheets, _spans(costs)] if costs.generations else sheets


def cost_caption(costs: Costs) -> str:
    """What the numbers are."""
    counted = (
        "A token counts when it goes through the model's layers; tokens that are in the cache already do not count."
        if costs.unit == "tokens"
        else "An image counts when its mask is predicted or trained on; images that the encoder embeds count in FLOPs only."
    )
    return (
        f"{hours_caption(costs.gpu, costs.unit)} {counted} Stages: train is the training of every model that a row needs; "
        "express and evaluate are the search; select is the evaluation of candidates for the final model; measure is the "
        "evaluation of the row itself, which totals and GPU-hours leave out. Seconds of individuals evaluated at the same time "
        "are added up. Decompositions of task vectors are not included; tables/basis.json has their seconds."
    )


def hours_caption(gpu: Mapping[str, Any] | None, unit: str = "tokens") -> str:
    """Explains GPU-hours, and gives the hours that the paper states.

    Args:
        gpu: as in :class:`~cycleqd_jax.report.costs.Costs`.
        unit: as there. The paper's hours are those of language models.
    """
    hours = "GPU-hours are unknown."
    if gpu is not None:
        shares = gpu["utilisation"]
        hours = (
            f"GPU-hours are extrapolated, not measured: FLOPs / (peak × utilisation), with {_number(gpu['peak'])}FLOP/s "
            f"({gpu['name']}) and a utilisation of {100 * shares['evaluate']:g} % in evaluations and "
            f"{100 * shares['train']:g} % elsewhere."
        )
    if unit != "tokens":
        return f"{hours} They count the models, problems and generations of these results."
    return (
        f"{hours} They count the models, problems and generations of these results. The paper states "
        f"{PAPER_GPU_HOURS['cycleqd']:g} H100-hours for CycleQD and {PAPER_GPU_HOURS['finetune_all']:g} for fine-tuning on all "
        "data, with experts of 8 billion parameters and 1200 generations: only results of that size compare with them."
    )


def _hours(costs: Costs) -> Sheet:
    rows = []
    for method in costs.methods:
        total = costs.total(method)
        rows.append((method_label(method), total_cells(total.tokens, total.flops, total.seconds, costs.gpu_hours(method))))
    return Sheet("Costs", "method", totals(costs.unit), rows, unmarked=len(totals(costs.unit)))


def total_cells(tokens: float | None, flops: float | None, seconds: float | None, hours: float | None) -> list[Cell]:
    """The cells of a row's totals, in the columns :func:`totals`; None is unknown."""
    cells = [_number(tokens), _number(flops), _seconds(seconds), "–" if hours is None else f"{hours:.3g}"]
    return [Cell(text) for text in cells]


def _by_stage(name: str, costs: Costs, shown: Callable[[Cost], str]) -> Sheet:
    rows = [
        (method_label(method), [Cell(shown(stages[stage]) if stage in stages else "") for stage in STAGES])
        for method, stages in costs.methods.items()
    ]
    return Sheet(name, "method", STAGES, rows, unmarked=len(STAGES))


def _spans(costs: Costs) -> Sheet:
    """A row for the experts, and one for the generations up to each milestone."""
    marks = milestones(max(costs.generations))
    rows, after = [], -2
    for mark in marks:
        within = [found for generation, found in costs.generations.items() if after < generation <= mark]
        express, evaluate = (Cost.total(stages[stage] for _, stages in within) for stage in ("express", "evaluate"))
        flops = Cost.total([express, evaluate]).flops
        cells = [str(sum(count for count, _ in within)), _number(evaluate.tokens), _number(flops)]
        cells += [_seconds(express.seconds), _seconds(evaluate.seconds)]
        name = f"{after + 1} to {mark}" if after + 1 < mark else str(mark)
        rows.append(("experts" if mark < 0 else name, [Cell(text) for text in cells]))
        after = mark
    columns = ["individuals", costs.unit, "FLOPs", "express, seconds", "evaluate, seconds"]
    return Sheet("Search by generation", "generations", columns, rows, unmarked=len(columns))


def _number(value: float | None) -> str:
    """A count with a prefix: ``"12.3 G"``; a dash if it is unknown."""
    if value is None:
        return "–"
    power = 0
    while value >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_PREFIXES[power]}".rstrip()


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
