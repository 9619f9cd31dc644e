import base64
import hashlib
import html.parser
import itertools
import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from cycleqd_jax.individual import Individual
from cycleqd_jax.report import html as html_module
from cycleqd_jax.report import write_report
from cycleqd_jax.report.history import Grid, History, load_history
from cycleqd_jax.report.maps import archive_maps
from cycleqd_jax.report.metrics import milestones
from cycleqd_jax.report.plots import plot_archives, plot_archives_over_generations, render
from cycleqd_jax.types import InputError

TASKS = ("mbpp", "dbbench", "os_interaction", "vqa")
FIGURES = {"archives", "archives_over_generations", "curves", "results"}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'--><svg onload=alert(3)>{{ 7 * 7 }}\x00\ud800\u2028"


class Page(html.parser.HTMLParser):
    """All elements of a page, its text, and whether every element is closed."""

    VOID = frozenset({"meta", "img", "input", "source"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.open, self.scripts = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.text.append(data)


def read(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("k", [pytest.param(2, marks=pytest.mark.exhaustive), 3, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_everything_is_written(make_run, add_transcripts, k):
    folder = make_run(tasks=TASKS[:k], generations=12, bins=5)
    add_transcripts(folder, TASKS[:k])
    written = write_report(folder)
    expected = {f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    expected |= {"tables/results.md", "tables/results.tex", "tables/results.csv", "tables/results.txt", "report.html"}
    expected |= {"tables/costs.json", "tables/costs.md"}
    assert {str(path.relative_to(folder)) for path in written} == expected
    for path in written:
        content = path.read_bytes()
        assert content
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
        if path.suffix == ".svg":
            assert ElementTree.fromstring(content).tag.endswith("svg")
    assert not list(folder.rglob("*.partial"))

    page = read(folder)
    assert not page.open
    maps = [attrs for tag, attrs in page.elements if tag == "svg" and "data-panel" in attrs]
    assert len(maps) == k * max((k - 1) * (k - 2) // 2, 1)
    # the page needs no script to show the final archives
    history = load_history(folder)
    shown = sum("data-id" in attrs for _, attrs in page.elements)
    assert shown == sum((a.project(p) >= 0).sum() for a in history.archives() for p in a.pairs())
    payload = json.loads(page.scripts[0])
    assert len(payload["events"]) == len(history.insertions)
    assert all(str(parent) in payload["individuals"] for one in payload["individuals"].values() for parent in one["parents"])
    text = " ".join(page.text)
    assert "0.10.2" in text
    assert "assertion 2 failed" in text


@pytest.mark.exhaustive
def test_nothing_is_fetched_and_only_our_script_may_run(undrawn, make_run, add_transcripts):
    folder = make_run(generations=6, bins=4)
    add_transcripts(folder, TASKS[:3])
    write_report(folder)
    page = read(folder)
    for _, attrs in page.elements:
        for name in ("src", "srcset", "href", "action", "poster", "data"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/svg+xml;base64,", "#"))
    style = re.search(r"<style>(.*?)</style>", (folder / "report.html").read_text(), re.S)[1]
    assert "@import" not in style
    assert "url(" not in style
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert "innerHTML" not in page.scripts[1]


def test_hostile_text_stays_text(undrawn, make_run, add_transcripts):
    folder = make_run(name="a & <b>", tasks=("mbpp", "<i>db</i>"), generations=20, bins=4, quarantine=0.5)
    add_transcripts(folder, ("mbpp",), text=EVIL)
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for line in lines:
        line["error"] = EVIL if line["scores"] is None else None
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(f"name: {EVIL.encode('ascii', 'ignore').decode()}\nversions:\n  jax: <script>\n")
    results = json.loads((folder / "tables" / "results.json").read_text())
    results["methods"]["<script>alert(4)</script>"] = results["methods"]["base"]
    (folder / "tables" / "results.json").write_text(json.dumps(results))
    write_report(folder)
    page = read(folder)
    assert not page.open
    assert len(page.scripts) == 2
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert not any(tag == "img" and attrs["src"] == "x" for tag, attrs in page.elements)
    assert "i" not in {tag for tag, attrs in page.elements if not attrs}
    text = "".join(page.text)
    assert text.count("<script>alert(1)</script>") >= 3  # transcript, error, configuration: shown, not run
    assert "{{ 7 * 7 }}" in text
    assert "\x00" not in (folder / "report.html").read_text()


@pytest.mark.exhaustive
def test_long_messages_are_cut(undrawn, make_run, add_transcripts):
    folder = make_run(generations=2, bins=3)
    add_transcripts(folder, ("mbpp",), text="x" * 200_000)
    write_report(folder)
    assert "196000 more characters" in "".join(read(folder).text)
    assert "x" * 5000 not in (folder / "report.html").read_text()


def test_only_results(undrawn, make_run):
    folder = make_run(generations=2)
    for name in ("history.jsonl", "config.yaml"):
        (folder / name).unlink()
    names = {path.name for path in write_report(folder)}
    assert names == {"results.png", "results.svg", "results.md", "results.tex", "results.csv", "results.txt", "report.html"}


def test_only_the_journal_still_being_written(undrawn, make_run):
    folder = make_run(generations=6, bins=4)
    (folder / "tables" / "results.json").unlink()
    with (folder / "history.jsonl").open("a") as file:
        file.write('{"id": 9')
    names = {path.name for path in write_report(folder)}
    assert "archives.png" in names
    assert "results.md" not in names
    text = "".join(read(folder).text)
    assert "is incomplete and is left out" in text
    assert "has not been evaluated" in text


def test_experts_only_have_archives_and_no_curves(undrawn, make_run):
    folder = make_run(generations=0)
    names = {path.name for path in write_report(folder)}
    assert "archives.svg" in names
    assert "curves.svg" not in names


def test_journal_without_grid_gives_a_note(undrawn, make_run):
    folder = make_run(generations=3)
    (folder / "grid.json").unlink()
    write_report(folder)
    assert "grid.json is missing" in "".join(read(folder).text)


def test_everything_quarantined_still_reports(undrawn, make_run):
    folder = make_run(generations=3)
    lines = [json.loads(line) | {"scores": None, "error": "x"} for line in (folder / "history.jsonl").read_text().splitlines()]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = {path.name for path in write_report(folder)}
    assert "archives.png" not in names
    assert "6 individuals" in "".join(read(folder).text)


ORIGINS = {
    "random": ({"active": None, "parents": (-1, -1)}, "generation 3", "generation 3"),
    "qd": ({"active": None, "parents": (4, 5)}, "generation 3, parents #4 and #5", "generation 3, parents #4 and #5"),
    "cycleqd": (
        {"active": "b", "parents": (4, 5)},
        "generation 3, parents #4 and #5",
        "generation 3, b active, parents #4 and #5",
    ),
}


@pytest.mark.parametrize("method", ORIGINS)
def test_the_origin_of_a_child_has_what_there_is(method, tmp_path):
    facts, in_map, in_page = ORIGINS[method]
    child = Individual(7, 3, None, omega=None, key=(1, 2), scores={"a": 0.5, "b": 0.25}, **facts)
    grid = Grid.of_bounds(("a", "b"), 5, np.array([[0, 1.0]] * 2))
    (cell,) = [one for one in archive_maps(History(grid, (child,)))[0]["cells"] if one["title"]]
    assert cell["title"] == f"#7: a 50.0, b 25.0; {in_map}"
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not there, which runs the script of the page")
    script = (Path(html_module.__file__).parent / "page" / "page.js").read_text()
    function = re.search(r"function origin\(id\) \{.*?\n  \}", script, re.DOTALL).group()
    one = {"expert": None, "generation": 3, "active": child.active, "parents": [p for p in child.parents if p >= 0]}
    program = f"const data = {{individuals: [{json.dumps(one)}]}};\n{function}\nconsole.log(origin(0));"
    assert subprocess.run([node, "-e", program], capture_output=True, text=True, check=True).stdout.strip() == in_page


def test_empty_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="got neither"):
        write_report(tmp_path)


@pytest.mark.exhaustive
def test_figures_are_reproducible_and_frame_the_experts(make_run):
    history = load_history(make_run(generations=9, bins=5))
    first, second = (render(plot_archives(history), "svg") for _ in range(2))
    assert first == second
    frames = [
        patch
        for axes in plot_archives(history).axes
        for patch in axes.patches
        if patch.get_edgecolor() == pytest.approx((0xE3 / 255, 0x12 / 255, 0x2B / 255, 1.0))
    ]
    cells = sum(len(history.expert_cells(archive, (0, 1))) for archive in history.archives())
    assert len(frames) == cells > 0
    for archive, axes in zip(history.archives(), plot_archives(history).axes, strict=False):
        x, y = archive.axes
        assert axes.get_xlim() == pytest.approx(tuple(history.grid.bounds[x]))
        assert axes.get_ylim() == pytest.approx(tuple(history.grid.bounds[y]))


def best_of_pairs(history, generation):
    """Archive by archive the best quality for every pair of descriptor axes, from the insertions alone."""
    k, bins = len(history.grid.tasks), history.grid.bins
    maps = []
    for task in range(k):
        axes = history.grid.axes(task)
        for x, y in itertools.combinations(range(k - 1), 2) if k > 2 else [(0, None)]:
            best = np.full((bins if k > 2 else 1, bins), -1.0)
            for insertion in history.insertions:
                if insertion.task == task and history.clock[insertion.row] <= generation:
                    spot = (0 if y is None else insertion.cell[y], insertion.cell[x])
                    best[spot] = max(best[spot], history.scores[insertion.row, task])
            maps.append((task, axes[x], None if y is None else axes[y], best))
    return maps


def drawn_maps(figure):
    """The heat maps of a figure, as an array each; empty cells are -1."""
    found = [(axes, mesh) for axes in figure.axes for mesh in axes.collections if axes.get_label() != "<colorbar>"]
    return [(axes, np.ma.filled(mesh.get_array(), -1.0)) for axes, mesh in found]


@pytest.mark.exhaustive
@pytest.mark.parametrize("k", [2, 3, 4, pytest.param(5, marks=pytest.mark.exhaustive)])
def test_archives_of_any_number_of_tasks_are_shown_as_pairs_of_axes(make_run, k):
    history = load_history(make_run(tasks=(*TASKS, "ifeval")[:k], generations=10, bins=3))
    tasks = history.grid.tasks
    wanted = best_of_pairs(history, history.last_generation)
    assert len(wanted) == k * max(math.comb(k - 1, 2), 1)
    drawn = drawn_maps(plot_archives(history))
    panels = archive_maps(history)
    for (axes, values), panel, (task, x, y, best) in zip(drawn, panels, wanted, strict=True):
        np.testing.assert_allclose(values, best)
        assert axes.get_xlabel() == f"{tasks[x]} score"
        assert axes.get_ylabel() == ("" if y is None else f"{tasks[y]} score")
        assert (panel["task"], panel["horizontal"], panel["vertical"]) == (tasks[task], tasks[x], "" if y is None else tasks[y])
        filled = np.array([bool(cell["fill"]) for cell in panel["cells"]]).reshape(best.shape)
        np.testing.assert_array_equal(filled, best >= 0)

    marks = milestones(history.last_generation, most=5)
    small = drawn_maps(plot_archives_over_generations(history))
    assert len(small) == len(marks) * len(wanted)
    for column, mark in enumerate(marks):
        for row, (_, _, _, best) in enumerate(best_of_pairs(history, mark)):
            np.testing.assert_allclose(small[row * len(marks) + column][1], best)
