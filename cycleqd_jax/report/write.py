"""Everything that a run folder has data for, written into it."""

from __future__ import annotations

from pathlib import Path

from cycleqd_jax.files import write_bytes
from cycleqd_jax.report.history import load_grid, load_history
from cycleqd_jax.report.html import Page, render_page
from cycleqd_jax.report.metrics import compute_metrics
from cycleqd_jax.report.plots import plot_archives, plot_archives_over_generations, plot_curves, plot_results, render
from cycleqd_jax.report.read import load_config, load_results, load_transcripts
from cycleqd_jax.report.tables import results_table
from cycleqd_jax.types import InputError

__all__ = ["write_report"]


def _write(path: Path, content: bytes) -> Path:
    write_bytes(path, content)
    return path


def write_report(run_folder: Path) -> list[Path]:
    """Writes ``figures/*.png|svg``, ``tables/results.md|csv|txt`` and ``report.html`` of a run.

    What the folder has no data for is left out, so it can be called while the search is under way.

    Args:
        run_folder: a run folder; see the package's design for what it holds.

    Returns:
        The files that were written, ``report.html`` last.

    Raises:
        InputError: the folder has neither a journal nor results, or one of its files is damaged.
    """
    folder = Path(run_folder)
    history, results, config = load_history(folder), load_results(folder), load_config(folder)
    if history is not None and not history.individuals:
        history = None
    if history is None and not (results and results["methods"]):
        raise InputError(
            f"expected history.jsonl with grid.json, or tables/results.json, in {folder}, got neither; "
            "run the search first or name another folder"
        )
    metrics = compute_metrics(history) if history else None
    table = results_table(folder) if results and results["methods"] else None

    plots = {}
    if table is not None and table.splits:
        plots["results"] = lambda theme: plot_results(table, theme=theme)
    if history is not None and metrics is not None and history.experts:
        plots["archives"] = lambda theme: plot_archives(history, theme=theme)
        if history.last_generation >= 0:
            plots["archives_over_generations"] = lambda theme: plot_archives_over_generations(history, theme=theme)
            plots["curves"] = lambda theme: plot_curves(history, metrics, theme=theme)
    written, inline = [], {}
    for name, plot in plots.items():
        figure = plot("light")
        svg = render(figure, "svg")
        written.append(_write(folder / "figures" / f"{name}.png", render(figure, "png")))
        written.append(_write(folder / "figures" / f"{name}.svg", svg))
        if name != "archives":  # the page draws these itself
            inline[name] = {"light": svg, "dark": render(plot("dark"), "svg", "dark")}
    if table is not None:
        for suffix, text in (("md", table.markdown()), ("csv", table.csv()), ("txt", table.text())):
            written.append(_write(folder / "tables" / f"results.{suffix}", text.encode("utf-8", "replace")))

    notes = []
    if history is None and (folder / "history.jsonl").exists():
        missing = "grid.json is missing" if load_grid(folder) is None else "history.jsonl has no complete line"
        notes.append(f"The search is not shown: {missing}.")
    if history is not None and history.torn:
        notes.append("The last line of history.jsonl is unfinished and was left out: the run was stopped or is still writing.")
    if table is None:
        notes.append("There are no results on both splits yet; the run has not been evaluated.")
    seed = results.get("seed") if results else None
    page = Page(
        title=folder.resolve().name,
        seed=int(seed) if isinstance(seed, (int, float)) else None,
        history=history,
        metrics=metrics,
        table=table,
        figures=inline,
        transcripts=load_transcripts(folder),
        config=config,
        notes=notes,
    )
    written.append(_write(folder / "report.html", render_page(page).encode()))
    return written
