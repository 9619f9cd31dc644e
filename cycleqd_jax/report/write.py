"""Writes every figure, table and page that a run folder has data for."""

from __future__ import annotations

from pathlib import Path

from cycleqd_jax.files import write_bytes, write_json
from cycleqd_jax.report.costs import load_costs
from cycleqd_jax.report.history import load_grid, load_history
from cycleqd_jax.report.labels import method_label
from cycleqd_jax.report.metrics import compute_metrics
from cycleqd_jax.report.read import load_config, load_pictures, load_results, load_selection, load_transcripts, load_workers
from cycleqd_jax.report.tables import results_table
from cycleqd_jax.report.tables.costs import costs_markdown
from cycleqd_jax.report.tables.suite import SuiteTable, suite_names, suite_table
from cycleqd_jax.types import InputError

__all__ = ["write_report"]


def _write(path: Path, content: bytes) -> Path:
    write_bytes(path, content)
    return path


def _suites(folder: Path, notes: list[str]) -> list[SuiteTable]:
    """The suites that were measured; a damaged file is a note."""
    found = []
    for name in suite_names(folder):
        try:
            found.append(suite_table(folder, name))
        except InputError as error:
            notes.append(f"{error}.")
    return found


def write_report(run_folder: Path) -> list[Path]:
    """Writes ``figures/*.png|svg``, ``tables/results.md|tex|csv|txt``, ``tables/costs.json|md`` and ``report.html`` of a run.

    Parts without data are left out, so this can be called while the search is running.

    Args:
        run_folder: the output folder of a run.

    Returns:
        The written files, ``report.html`` last.

    Raises:
        InputError: if the folder has neither a journal nor results, or if one of its files is damaged.
    """
    # Matplotlib and Jinja take a second to import; readers of run folders do not need them.
    from cycleqd_jax.report.html import Page, render_page
    from cycleqd_jax.report.plots import plot_archives, plot_archives_over_generations, plot_curves, plot_results, render

    folder = Path(run_folder)
    history, results, config = load_history(folder), load_results(folder), load_config(folder)
    if history is not None and not history.individuals:
        history = None
    if history is None and not (results and results["methods"]):
        raise InputError(
            f"expected history.jsonl with grid.json, or tables/results.json, in {folder}, got neither; "
            "run the search first or give another folder"
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
        if name != "archives":  # the page draws the archives itself
            inline[name] = {"light": svg, "dark": render(plot("dark"), "svg", "dark")}
    if table is not None:
        forms = {"md": table.markdown(), "tex": table.latex(), "csv": table.csv(), "txt": table.text()}
        for suffix, text in forms.items():
            written.append(_write(folder / "tables" / f"results.{suffix}", text.encode("utf-8", "replace")))
    costs = load_costs(folder, history)
    if costs is not None:
        written.append(folder / "tables" / "costs.json")
        write_json(written[-1], costs.record())
        written.append(_write(folder / "tables" / "costs.md", costs_markdown(costs).encode("utf-8", "replace")))

    notes = []
    if history is None and (folder / "history.jsonl").exists():
        missing = "grid.json is missing" if load_grid(folder) is None else "history.jsonl has no complete line"
        notes.append(f"The search is not shown because {missing}.")
    if history is not None and history.torn:
        notes.append("The last line of history.jsonl is incomplete and is left out: the run was killed or is still writing.")
    if history is not None and history.grid.method != "cycleqd":
        notes.append(
            f"The search method is {method_label(history.grid.method)}, which does not use these archives: they show where "
            "Algorithm 1 of CycleQD would insert its individuals."
        )
    if table is None:
        notes.append("There is no results table yet, because the run has not been evaluated.")
    seed = results.get("seed") if results else None
    page = Page(
        title=folder.resolve().name,
        seed=None if seed is None else int(seed),
        history=history,
        metrics=metrics,
        table=table,
        selection=load_selection(folder),
        costs=costs,
        suites=_suites(folder, notes),
        workers=load_workers(folder),
        figures=inline,
        transcripts=load_transcripts(folder),
        pictures=load_pictures(folder),
        config=config,
        notes=notes,
    )
    written.append(_write(folder / "report.html", render_page(page).encode()))
    return written
