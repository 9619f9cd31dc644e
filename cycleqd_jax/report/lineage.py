"""The ancestors of an individual as a text tree, as JSON and as an SVG drawing."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from cycleqd_jax.files import without_nan
from cycleqd_jax.report.folder import Record
from cycleqd_jax.report.style import THEMES, task_color

__all__ = ["lineage_json", "lineage_svg", "lineage_text"]

WIDTH, HEIGHT, GAP, ROW, MARGIN = 132, 58, 18, 104, 16


class _Place(NamedTuple):
    """One line of the tree: an individual below one of its children."""

    id: int
    share: float | None
    prefix: str
    again: bool


def lineage_json(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The records of :meth:`~cycleqd_jax.report.RunFolder.lineage` for JSON, without the scores of single problems.

    Numbers that are NaN become None.
    """
    return [{name: without_nan(value) for name, value in record.items() if name != "items"} for record in records]


def lineage_text(records: Sequence[Record], tasks: Sequence[str]) -> str:
    """A tree with one line for each parent: its share in the child, its generation, its scores, the weights of the experts.

    The parents of an individual that is an ancestor several times are listed once, where it is nearest to the first.

    Args:
        records: the result of :meth:`~cycleqd_jax.report.RunFolder.lineage`.
        tasks: the names of the tasks, in order.
    """
    by_id = {record["id"]: record for record in records}
    header = ["share", "generation", "active", *tasks, "average", "experts' weights", "individual"]
    rows = [header]
    for place in _places(records):
        one = by_id[place.id]
        name = f"{place.prefix}{place.id}" + (f" (expert {one['expert']})" if one["expert"] is not None else "")
        share = "" if place.share is None else f"{place.share:.3f}"
        if place.again:
            rows.append([share, *[""] * (len(header) - 2), f"{name} (see above or below)"])
            continue
        scores = ["–" if math.isnan(one[task]) else f"{one[task]:.3f}" for task in (*tasks, "average")]
        mixing = "" if one["mixing"] is None else " ".join(f"{weight:+.3f}" for weight in one["mixing"].values())
        generation = "–" if one["generation"] < 0 else str(one["generation"])
        rows.append([share, generation, one["active"] or "–", *scores, mixing, name])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header) - 1)]  # the tree is not padded
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows]
    failed = [f"individual {one['id']} is quarantined: {one['error']}" for one in records if one["error"] is not None]
    return "\n".join([*lines, *failed])


def _places(records: Sequence[Record]) -> Iterator[_Place]:
    """The lines of the tree from the first record down."""
    parents = {record["id"]: record["parents"] for record in records}
    share_of = {record["id"]: record["shares"] for record in records}
    root = records[0]["id"]
    home: dict[int, tuple[int, int]] = {root: (-1, 0)}  # where the parents of an individual are listed: child and position
    for record in records:  # sorted by depth, so the first place is the nearest
        for position, parent in enumerate(record["parents"]):
            home.setdefault(parent, (record["id"], position))
    stack = [(root, (-1, 0), "", "", None)]
    while stack:
        one, place, prefix, below, share = stack.pop()
        again = home[one] != place
        yield _Place(one, share, prefix, again)
        if again:
            continue
        last = len(parents[one]) - 1
        for position in range(last, -1, -1):
            branch, bar = ("└─ ", "   ") if position == last else ("├─ ", "│  ")
            part = None if share_of[one] is None else share_of[one][position]
            stack.append((parents[one][position], (one, position), below + branch, below + bar, part))


def lineage_svg(records: Sequence[Record], tasks: Sequence[str]) -> str:
    """A drawing of the ancestors: the individual at the top, older generations below it, the experts at the bottom.

    A box has the id and the average score. The bar in it shows the weights of the experts in the colours of their tasks. The
    width of a line shows the share of the parent.

    Args:
        records: the result of :meth:`~cycleqd_jax.report.RunFolder.lineage`.
        tasks: the names of the tasks, in order.
    """
    places = _layout(records)
    theme = THEMES["light"]
    width = max(x for x, _ in places.values()) + WIDTH + MARGIN
    height = max(y for _, y in places.values()) + HEIGHT + MARGIN + 24
    root = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width:.0f} {height:.0f}",
            "width": f"{width:.0f}",
            "height": f"{height:.0f}",
            "font-family": "sans-serif",
            "font-size": "12",
        },
    )
    _add(root, "title", text=f"The ancestors of individual {records[0]['id']}")
    _add(root, "rect", width="100%", height="100%", fill=theme["page"])
    for record in records:
        x, y = places[record["id"]]
        for parent, share in zip(record["parents"], record["shares"] or (0.5, 0.5), strict=False):
            px, py = places[parent]
            points = {"x1": x + WIDTH / 2, "y1": y + HEIGHT, "x2": px + WIDTH / 2, "y2": py}
            thick = {"stroke-width": f"{1 + 3 * min(abs(share), 1.0):.2f}"}
            line = _add(root, "line", stroke=theme["muted"], **{key: f"{value:.1f}" for key, value in points.items()}, **thick)
            _add(line, "title", text=f"{record['id']} from {parent}: {share:.3f}")
    for record in records:
        _draw(root, record, *places[record["id"]], tasks)
    for k, task in enumerate(tasks):
        _add(root, "rect", x=str(MARGIN + 130 * k), y=str(height - 24), width="12", height="12", fill=task_color(k))
        _add(root, "text", x=str(MARGIN + 130 * k + 18), y=str(height - 14), fill=theme["ink"], text=task)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _layout(records: Sequence[Record]) -> dict[int, tuple[float, float]]:
    """Left and upper edge of every box: one row for each generation, in the order of the children above."""
    rows: dict[int, list[Record]] = collections.defaultdict(list)
    for record in records:
        rows[record["generation"]].append(record)
    widest = max(map(len, rows.values()))
    above: dict[int, list[float]] = collections.defaultdict(list)  # where the children of an individual are
    places: dict[int, tuple[float, float]] = {}
    for level, generation in enumerate(sorted(rows, reverse=True)):
        row = sorted(rows[generation], key=lambda one: (sum(above[one["id"]]) / max(len(above[one["id"]]), 1), one["id"]))
        start = MARGIN + (widest - len(row)) * (WIDTH + GAP) / 2
        for column, one in enumerate(row):
            places[one["id"]] = (start + column * (WIDTH + GAP), MARGIN + level * ROW)
            for parent in one["parents"]:
                above[parent].append(places[one["id"]][0])
    return places


def _draw(root: ElementTree.Element, record: Record, x: float, y: float, tasks: Sequence[str]) -> None:
    theme = THEMES["light"]
    box = _add(root, "g", transform=f"translate({x:.1f} {y:.1f})")
    scores = ", ".join(f"{task} {record[task]:.3f}" for task in tasks)
    _add(box, "title", text=record["error"] or scores)
    outline = {"width": str(WIDTH), "height": str(HEIGHT), "rx": "6", "fill": theme["empty"], "stroke": theme["line"]}
    _add(box, "rect", **outline)
    name = f"expert {record['expert']}" if record["expert"] is not None else f"generation {record['generation']}"
    _add(box, "text", x="8", y="18", fill=theme["ink"], **{"font-weight": "bold"}, text=str(record["id"]))
    average = "–" if math.isnan(record["average"]) else f"{record['average']:.3f}"
    _add(box, "text", x=str(WIDTH - 8), y="18", fill=theme["ink"], **{"text-anchor": "end"}, text=average)
    _add(box, "text", x="8", y="34", fill=theme["muted"], text=name)
    weights = [abs(weight) for weight in (record["mixing"] or {}).values()]
    left, room = 8.0, WIDTH - 16
    for k, weight in enumerate(weights):
        size = room * weight / max(sum(weights), 1e-12)
        _add(box, "rect", x=f"{left:.1f}", y="42", width=f"{size:.1f}", height="8", fill=task_color(k))
        left += size


def _add(parent: ElementTree.Element, tag: str, *, text: str | None = None, **attributes: str) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag, attributes)
    element.text = (
        None if text is None else "".join(c if c.isprintable() else " " for c in text)
    )  # XML has no control characters
    return element
