"""Tables as text: what is escaped, marked and aligned."""

import re

import pytest

from cycleqd_jax.report.tables.formats import Cell, Sheet, latex, markdown, text

SPECIAL = "a_b & 5 % of #1 {x} ~ ^ $ \\ <|> [y]"
SHEETS = [
    Sheet(
        "test",
        "method",
        [SPECIAL, "interval"],
        [
            (SPECIAL, [Cell("52.4 ± 0.8", marked=True), Cell("-0.8 [-9.2, 11.7]")]),
            ("[b]\nc", [Cell("–"), Cell("0.1-0.2")]),
        ],
        unmarked=1,
    ),
    Sheet("train", "method", [SPECIAL], [("b", [Cell("1.0")])]),
]


def tex_rows(source: str) -> list[list[str]]:
    """The cells of every row of LaTeX tables, as TeX prints them."""
    found = []
    for line in source.splitlines():
        if line.startswith("    ") and line.endswith("\\\\"):
            cells = re.split(r"(?<!\\) & ", line.strip().removesuffix(" \\\\"))
            found.append([printed(cell) for cell in cells])
    return found


def printed(cell: str) -> str:
    """Undoes LaTeX's escapes one by one, and refuses a special character without one."""
    names = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<", "textgreater": ">"}
    names |= {"textbar": "|"}
    cell = re.sub(r"\\textbf\{(.*)\}$", r"\1", cell)
    tokens = re.compile(r"\\(?P<name>[a-z]+)\{\}|\\(?P<sign>[&%$#_{}])|\{\[\}|\$\\pm\$|\$-\$|--|(?P<plain>[^\\&%$#_{}~^<>|\[])")
    out, at = [], 0
    while at < len(cell):
        match = tokens.match(cell, at)
        assert match, cell[at:]
        fixed = {"{[}": "[", "$\\pm$": "±", "$-$": "-", "--": "–"}
        out.append(names[match["name"]] if match["name"] else match["sign"] or match["plain"] or fixed[match[0]])
        at = match.end()
    return "".join(out)


def test_latex_prints_every_cell():
    source = latex(SHEETS, "In % of all_")
    rows = [row for sheet in SHEETS for row in [(sheet.head, [Cell(name) for name in sheet.columns]), *sheet.rows]]
    wanted = [[name, *(cell.text for cell in cells)] for name, cells in rows]
    assert tex_rows(source) == [[cell.replace("\n", " ") for cell in row] for row in wanted]
    assert r"\textbf{52.4 $\pm$ 0.8}" in source
    assert "{[}$-$9.2" in source
    assert "0.1-0.2" in source  # no minus sign
    assert r"\caption{test. In \% of all\_}" in source
    assert source.count(r"\begin{table}") == source.count(r"\end{tabular}") == source.count(r"\midrule") == 2
    assert r"\begin{tabular}{lrr}" in source


def test_markdown_escapes_bars_and_newlines():
    lines = markdown(SHEETS, "Caption.").splitlines()
    assert lines[0] == "**test**"
    assert "| [b] c | – | 0.1-0.2 |" in lines
    assert "<\\|>" in lines[2]
    assert "**52.4 ± 0.8**" in lines[4]
    assert lines[-1] == "Caption."


@pytest.mark.parametrize("color", [False, True])
def test_text_is_aligned(color):
    lines = [re.sub(r"\x1b\[\d+m", "", line) for line in text(SHEETS, "Caption.", color=color).splitlines()]
    head, rule, marked = lines[0], lines[1], lines[2]
    assert set(rule) == {"─"}
    assert len(rule) == len(head)
    assert marked[: len(head)].rstrip().endswith("11.7]")
    assert "52.4 ± 0.8*" in marked
    assert ("\x1b" in text(SHEETS, "", color=color)) == color
