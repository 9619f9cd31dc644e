"""One self-contained ``report.html``, which fetches nothing.

Text written by models is treated as hostile: the template engine escapes every value, the script sets text only, and a
content security policy allows no script but the page's own (by its hash).
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.resources
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from cycleqd_jax.report.costs import Costs
from cycleqd_jax.report.history import History
from cycleqd_jax.report.labels import SEARCHES, method_label
from cycleqd_jax.report.maps import CELL, archive_maps
from cycleqd_jax.report.metrics import Metrics
from cycleqd_jax.report.read import Config, Picture, Transcript
from cycleqd_jax.report.style import EXPERT, ramp, task_color
from cycleqd_jax.report.tables import ResultsTable
from cycleqd_jax.report.tables.costs import cost_caption, cost_sheets
from cycleqd_jax.report.tables.formats import percent
from cycleqd_jax.report.tables.suite import SuiteTable
from cycleqd_jax.statistics import mean_interval

__all__ = ["Page", "data_url", "render_page"]

_MOST_CHARACTERS = 4000  # per message
_EACH = 2  # transcripts per method, task and outcome (passed or failed)
_MOST_TRANSCRIPTS = 60
_MOST_ERRORS = 50
_MOST_WORKERS = 100


@dataclasses.dataclass(frozen=True)
class Page:
    """The content of the page. Parts that are None or empty are left out.

    Attributes:
        title: name of the run.
        seed: seed of the run.
        history: the journal.
        metrics: the metrics of the journal.
        table: the results.
        selection: the content of ``tables/selection.json``.
        costs: tokens, FLOPs and seconds.
        suites: the results on tasks that are not those of the run.
        workers: the records of the workers on a cluster, of all starts of the run.
        figures: name → theme → SVG.
        transcripts: episodes of the evaluation.
        pictures: test images with the masks of several models.
        config: configuration and versions.
        notes: sentences about missing or damaged parts of the run folder.
    """

    title: str
    seed: int | None
    history: History | None
    metrics: Metrics | None
    table: ResultsTable | None
    selection: Mapping[str, Any] | None
    costs: Costs | None
    suites: Sequence[SuiteTable]
    workers: Sequence[Mapping[str, Any]]
    figures: Mapping[str, Mapping[str, bytes]]
    transcripts: Iterable[Transcript]
    pictures: Sequence[Picture]
    config: Config | None
    notes: Sequence[str]


def data_url(content: bytes, kind: str = "svg+xml") -> str:
    """An SVG as the source of an image, where its scripts cannot run and its ids and styles cannot clash with the page.

    Args:
        content: the content of the file.
        kind: the kind of the image, ``"svg+xml"`` or ``"png"``.
    """
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _payload(history: History, metrics: Metrics, panels: list[dict[str, Any]]) -> dict[str, Any]:
    """The data of the script: the insertions to replay, and every individual that was ever an elite.

    CycleQD's parents are elites, so every lineage stays within this set. Parents that other methods chose may be outside of it,
    and are left out.
    """
    rows = dict.fromkeys([*history.experts, *(insertion.row for insertion in history.insertions)])
    individuals, shown = {}, {history.individuals[row].id for row in rows}
    for row in rows:
        one, mix = history.individuals[row], history.mixture[row]
        individuals[one.id] = {
            "generation": one.generation,
            "expert": one.expert,
            "active": one.active,
            "parents": [parent for parent in one.parents if parent in shown],
            "scores": [round(score, 6) for score in history.scores[row].tolist()],
            "mix": [round(float(value), 4) for value in mix] if np.isfinite(mix).all() else None,
        }
    return {
        "tasks": history.grid.tasks,
        "experts": history.expert_names,
        "colors": [task_color(k) for k in range(len(history.expert_names))],
        "last": history.last_generation,
        "capacity": history.grid.capacity,
        "events": [
            [int(history.clock[i.row]), i.task, list(i.cell), history.individuals[i.row].id] for i in history.insertions
        ],
        "individuals": individuals,
        "panels": [{key: panel[key] for key in ("archive", "pair", "low", "high")} for panel in panels],
        "ramp": ramp(),
        "average": [round(float(value), 4) if np.isfinite(value) else None for value in metrics.best_average],
    }


def _table(table: ResultsTable) -> list[dict[str, Any]]:
    splits = []
    for split in table.splits:
        mean, best, details = table.mean(split), table.best(split), table.details(split)
        rows = []
        for m, method in enumerate(table.methods):
            cells = [
                {
                    "text": table.cell(split, m, c),
                    "best": bool(best[m, c]),
                    "share": 0.0 if np.isnan(mean[m, c]) else round(100 * float(np.clip(mean[m, c], 0, 1)), 1),
                }
                for c in range(len(table.columns))
            ]
            cells += [{"text": column[m], "best": False, "share": 0.0} for column in details.values()]
            rows.append({"name": method_label(method), "cells": cells, "ours": method in SEARCHES})
        splits.append({"name": split, "columns": [*table.columns, *details], "rows": rows})
    return splits


def _selection(found: Mapping[str, Any] | None, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of the table of candidates: kind, individuals, scores on the validation problems with the interval, choice."""
    rows = []
    for one in found["candidates"] if found else []:
        cells = ["–"] * (len(tasks) + 2)
        if one["scores"] is not None:
            interval = mean_interval([np.asarray(one["items"][task], np.float64) for task in tasks])
            cells = [percent(one["scores"][task]) for task in tasks]
            cells += [percent(interval.mean), f"[{percent(interval.low)}, {percent(interval.high)}]"]
        ids = " + ".join(f"#{identity}" for identity in one["ids"])
        chosen = found is not None and found["chosen"] == {"kind": one["kind"], "ids": one["ids"]}
        rows.append({"kind": one["kind"], "ids": ids, "cells": cells, "chosen": chosen})
    return rows


def _tiles(page: Page) -> list[tuple[str, str, str]]:
    """The headline numbers as (value, label, remark)."""
    tiles = []
    if page.table is not None and page.table.splits:
        split, average = page.table.splits[0], page.table.mean(page.table.splits[0])[:, -1]
        named = dict(zip(page.table.methods, average.tolist(), strict=True))
        experts = [value for name, value in named.items() if name.startswith("expert/") and np.isfinite(value)]
        for name in [name for name in named if name in SEARCHES and np.isfinite(named[name])]:
            remark = f"best expert {percent(max(experts))}" if experts else ""
            tiles.append((percent(named[name]), f"{method_label(name)}, {split} average (%)", remark))
    if page.history is not None and page.metrics is not None and len(page.history.individuals):
        h, m = page.history, page.metrics
        if np.isfinite(m.best_average[-1]):
            tiles.append(
                (percent(m.best_average[-1]), "best individual, average (%)", f"#{m.best_average_id[-1]}, during the search")
            )
        tiles.append((f"{h.last_generation + 1}", "generations", f"{m.evaluated[-1]} individuals evaluated"))
        elites = sum(len(archive.cells) for archive in h.archives())
        tiles.append(
            (f"{elites}", f"elites in {len(h.grid.tasks)} archives", f"{100 * m.coverage[-1].mean():.0f}% of the cells")
        )
        tiles.append((f"{m.quarantined[-1]}", "quarantined", "evaluation failed, no score"))
        if m.seconds:
            tiles.append(
                (_duration(sum(float(s.sum()) for s in m.seconds.values())), "compute time", "summed over individuals")
            )
    return tiles


def _choose(transcripts: Iterable[Transcript]) -> list[Transcript]:
    """A few transcripts of every method and task, passed and failed; those of the search come first."""
    taken: dict[tuple[str, str, bool], int] = {}
    chosen = []
    for one in transcripts:
        if not one.messages:  # an image has no conversation
            continue
        kind = (one.method, one.task, one.score >= 0.5)
        if taken.get(kind, 0) < _EACH:
            taken[kind] = taken.get(kind, 0) + 1
            chosen.append(one)
    chosen.sort(key=lambda one: (one.method not in SEARCHES, one.method, one.task, one.index))
    return chosen[:_MOST_TRANSCRIPTS]


def _shorten(text: str) -> str:
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:_MOST_CHARACTERS]}\n… {len(text) - _MOST_CHARACTERS} more characters"


def _worker(one: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a worker."""
    seconds = {"loaded": one["start_s"], "busy": one["busy_s"]}
    return {
        "name": f"{one['start']}.{one['id']}",
        "cells": [
            one["host"] or "–",
            one["device"] or "–",
            one["state"],
            *("–" if value is None else _duration(value) for value in seconds.values()),
            str(one["evaluated"]),
            "–" if one["per_hour"] is None else f"{one['per_hour']:.1f}",
            str(one["lost"]),
            one["error"] or "",
        ],
    }


def _timing(metrics: Metrics) -> list[dict[str, Any]]:
    totals = {stage: float(seconds.sum()) for stage, seconds in metrics.seconds.items()}
    whole = sum(totals.values()) or 1.0
    each = max(int(metrics.evaluated[-1]), 1)
    return [
        {"stage": stage, "total": _duration(total), "share": 100 * total / whole, "each": f"{1000 * total / each:.1f} ms"}
        for stage, total in sorted(totals.items(), key=lambda item: -item[1])
    ]


def render_page(page: Page) -> str:
    """Renders the page as HTML that can be encoded as UTF-8."""
    files = importlib.resources.files("cycleqd_jax.report") / "page"
    style = (files / "page.css").read_text(encoding="utf-8")
    script = (files / "page.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shorten"] = _shorten
    template = environment.from_string((files / "page.html.j2").read_text(encoding="utf-8"))
    searched = page.history is not None and page.metrics is not None and bool(page.history.experts)
    panels = archive_maps(page.history) if searched and page.history else []
    tasks = [*page.selection["problems"]] if page.selection else []
    errors = [one for one in page.history.individuals if one.error is not None] if page.history else []
    html = template.render(
        page=page,
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        tiles=_tiles(page),
        splits=_table(page.table) if page.table else [],
        tasks=tasks,
        candidates=_selection(page.selection, tasks),
        panels=panels,
        payload=_payload(page.history, page.metrics, panels) if panels and page.history and page.metrics else None,
        legend=[(task, task_color(k)) for k, task in enumerate(page.history.grid.tasks)] if page.history else [],
        ramp=ramp(9),
        expert_color=EXPERT,
        cell=CELL,
        figures={name: {theme: data_url(svg) for theme, svg in themes.items()} for name, themes in page.figures.items()},
        errors=errors[:_MOST_ERRORS],
        errors_left=max(len(errors) - _MOST_ERRORS, 0),
        suites=page.suites,
        costs=cost_sheets(page.costs) if page.costs else [],
        cost_caption=cost_caption(page.costs) if page.costs else "",
        workers=[_worker(one) for one in page.workers[-_MOST_WORKERS:]],
        workers_left=max(len(page.workers) - _MOST_WORKERS, 0),
        timing=_timing(page.metrics) if page.metrics and page.metrics.seconds else [],
        transcripts=_choose(page.transcripts),
        pictures=[(one, data_url(one.png, "png")) for one in page.pictures],
        method_label=method_label,
    )
    # Model output may contain lone surrogates and NULs, which are invalid in HTML.
    return html.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd")
