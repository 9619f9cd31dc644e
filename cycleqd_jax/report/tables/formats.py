"""Tables as text: GitHub-flavoured Markdown, LaTeX with booktabs, and aligned columns for terminals."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Cell", "Sheet", "latex", "markdown", "percent", "text"]


def percent(value: float) -> str:
    """A share as ``"52.4"``, or a dash if it is not finite."""
    return "–" if not math.isfinite(value) else f"{100 * value:.1f}"


class Cell(NamedTuple):
    """One cell.

    Attributes:
        text: as printed.
        marked: whether it is marked, as the best of its column.
    """

    text: str
    marked: bool = False


@dataclasses.dataclass(frozen=True)
class Sheet:
    """One table, ready to be written.

    Attributes:
        name: its title.
        head: the name of the first column, which has the names of the rows.
        columns: the names of the other columns.
        rows: the name and the cells of every row.
        unmarked: how many of the last columns never have a mark; in terminals they have no room for one.
    """

    name: str
    head: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    unmarked: int = 0


def markdown(sheets: Sequence[Sheet], caption: str) -> str:
    """Tables as GitHub-flavoured Markdown, with marked cells in bold.

    Args:
        sheets: the tables.
        caption: a paragraph below them.
    """
    parts = []
    for sheet in sheets:
        lines = [
            f"**{sheet.name}**",
            "",
            "| " + " | ".join(_markdown(name) for name in (sheet.head, *sheet.columns)) + " |",
            "|---" + "|---:" * len(sheet.columns) + "|",
        ]
        for name, cells in sheet.rows:
            shown = [f"**{cell.text}**" if cell.marked else cell.text for cell in cells]
            lines.append("| " + " | ".join([_markdown(name), *shown]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, caption]) + "\n"


def _markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def latex(sheets: Sequence[Sheet], caption: str) -> str:
    r"""Tables as LaTeX with the package booktabs, with marked cells in bold; each is a ``table`` of its own.

    Args:
        sheets: the tables.
        caption: the caption of each, after its name.
    """
    parts = [r"% needs \usepackage{booktabs}"]
    for sheet in sheets:
        head = " & ".join(_latex(name) for name in (sheet.head, *sheet.columns))
        lines = [
            r"\begin{table}",
            r"  \centering",
            f"  \\begin{{tabular}}{{l{'r' * len(sheet.columns)}}}",
            r"    \toprule",
            rf"    {head} \\",
            r"    \midrule",
        ]
        for name, cells in sheet.rows:
            shown = [rf"\textbf{{{_latex(cell.text)}}}" if cell.marked else _latex(cell.text) for cell in cells]
            lines.append(rf"    {' & '.join([_latex(name), *shown])} \\")
        lines += [
            r"    \bottomrule",
            r"  \end{tabular}",
            rf"  \caption{{{_latex(sheet.name)}. {_latex(caption)}}}",
            r"\end{table}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{special: f"\\{special}" for special in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after \\ a bracket begins an argument
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "–": "--",
    "σ": r"$\sigma$",
    "λ": r"$\lambda$",
    "\n": " ",
}


def _latex(text: str) -> str:
    """Text with LaTeX's special characters escaped, and with minus signs before numbers."""
    return re.sub(r".", lambda match: _LATEX.get(match[0], match[0]), re.sub(r"(?<!\w)-(?=\d)", "−", text), flags=re.DOTALL)


def text(sheets: Sequence[Sheet], caption: str, *, color: bool = False) -> str:
    """Tables for terminals, with a star at marked cells. Columns that may have marks are equally wide in all tables.

    Args:
        sheets: the tables, with the same columns that may have marks.
        caption: a line below them.
        color: whether to print marked cells in bold (ANSI) too.
    """
    first = max((len(name) for sheet in sheets for name in (sheet.head, *(name for name, _ in sheet.rows))), default=0)
    lines = []
    for sheet in sheets:
        starred = len(sheet.columns) - sheet.unmarked
        widths = [max(4, *(width for one in sheets for width in _widths(one, c))) for c in range(starred)]
        widths += [max(_widths(sheet, c)) for c in range(starred, len(sheet.columns))]
        room = [" "] * starred + [""] * sheet.unmarked
        head = "  ".join(f"{column:>{width}}{star}" for column, width, star in zip(sheet.columns, widths, room, strict=True))
        lines += [
            f"{sheet.name:<{first}}  {head}".rstrip(),
            "─" * (first + sum(2 + width + len(star) for width, star in zip(widths, room, strict=True))),
        ]
        for name, cells in sheet.rows:
            shown = []
            for cell, width, star in zip(cells, widths, room, strict=True):
                value = f"{cell.text:>{width}}" + ("*" if cell.marked else star)
                shown.append(f"\x1b[1m{value}\x1b[0m" if color and cell.marked else value)
            lines.append(f"{name:<{first}}  {'  '.join(shown)}".rstrip())
        lines.append("")
    return "\n".join([*lines, caption]) + "\n"


def _widths(sheet: Sheet, column: int) -> list[int]:
    """The width of a column's name and of each of its cells."""
    return [len(sheet.columns[column]), *(len(cells[column].text) for _, cells in sheet.rows)]
