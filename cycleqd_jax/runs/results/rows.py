"""The rows of the results table that a search ends with."""

from __future__ import annotations

from typing import Literal

from cycleqd_jax.config import RunConfig

__all__ = ["FoundModel", "found_rows"]

FoundModel = Literal["best_elite", "aggregate", "soup", "selected"]
"""A model that a search ends with, as ``export.method`` names it."""


def found_rows(config: RunConfig, name: str | None = None) -> dict[str, FoundModel]:
    """The rows of the models that a search ends with, in the order of the table: row → model.

    Args:
        config: the config of the run.
        name: with what the rows begin; by default with the search method.
    """
    name = name or config.search.method
    rows: dict[str, FoundModel] = {name: "best_elite"}
    if config.search.method == "cycleqd":
        rows = {f"{name}_best_elite": "best_elite", name: "aggregate"}
    if config.selects:
        rows |= {f"{name}_soup": "soup", f"{name}_selected": "selected"}
    return rows
