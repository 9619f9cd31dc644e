"""Progress bars in notebooks, with stand-ins for IPython and ipywidgets."""

import sys
import types

import pytest

from cycleqd_jax.report import ProgressBar
from cycleqd_jax.report.notebook import in_notebook


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Widget:
    """Keeps what it is given, and counts changes of its value."""

    changes = 0

    def __init__(self, **traits):
        self.__dict__.update({"value": None, "bar_style": "", **traits})

    def __setattr__(self, name, value):
        self.__dict__[name] = value
        if name == "value":
            Widget.changes += 1


@pytest.fixture
def kernel(monkeypatch):
    """A Jupyter kernel without ipywidgets; the list holds what is displayed."""
    shown = []
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: types.SimpleNamespace(config={"IPKernelApp": {}})
    display.display = shown.append
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # importing it is an ImportError
    return shown


@pytest.fixture
def widgets(kernel, monkeypatch):
    """The kernel with ipywidgets."""
    module = types.ModuleType("ipywidgets")
    for name in ("Label", "FloatProgress", "HBox", "VBox"):
        setattr(module, name, type(name, (Widget,), {}))
    monkeypatch.setitem(sys.modules, "ipywidgets", module)
    monkeypatch.setattr(Widget, "changes", 0)
    return kernel


def rows(column):
    """Name, value, style and text of every bar."""
    found = []
    for box in column.children:
        label, bar, text = box.children
        found.append((label.value, bar.value, bar.bar_style, text.value))
    return found


def test_a_stage_is_a_bar(widgets):
    clock = Clock()
    bar = ProgressBar(clock=clock)
    assert widgets == []
    for done in range(5):
        bar("evolve", done, 4, {"best": 0.5})
        clock.now += 1.0
        if done == 1:
            assert rows(widgets[0]) == [("evolve", 0.25, "", "1/4 · 3s left · best 0.500")]
    bar("evaluate", 1, 0, {})
    assert rows(widgets[0]) == [("evolve", 1.0, "success", "4/4 · took 4s · best 0.500"), ("evaluate", 0.0, "info", "1 · 0s")]
    assert len(widgets) == 1


def test_nested_bars_are_reused_and_go_with_the_outer_stage(widgets):
    clock = Clock()
    bar = ProgressBar(clock=clock)
    bar("evolve", 0, 3, {})
    for generation in range(3):
        for done in range(5):
            bar("evaluate", done, 4, {})
            clock.now += 0.5
        assert [name for name, *_ in rows(widgets[0])] == ["evolve", "evaluate"]
        bar("evolve", generation + 1, 3, {})
    assert [(name, style) for name, _, style, _ in rows(widgets[0])] == [("evolve", "success")]


def test_changes_are_rare_but_the_end_is_shown(widgets):
    clock = Clock()
    bar = ProgressBar(clock=clock)
    for done in range(10_001):
        bar("evolve", done, 10_000, {})
        clock.now += 0.0001
    assert Widget.changes < 40
    assert rows(widgets[0])[0][1:3] == (1.0, "success")


def test_an_exception_marks_the_unfinished_bar(widgets):
    def interrupted(bar):
        with bar:
            bar("evolve", 1, 4, {})
            raise KeyboardInterrupt

    bar = ProgressBar(clock=Clock())
    with pytest.raises(KeyboardInterrupt):
        interrupted(bar)
    assert rows(widgets[0])[0][1:3] == (0.25, "warning")
    bar("evolve", 1, 4, {})  # used again: below, in a new column
    assert len(widgets) == 2


def test_lines_are_written_to_standard_output(widgets, capsys):
    ProgressBar().log("a note")
    assert capsys.readouterr() == ("a note\n", "")


def test_without_ipywidgets_there_are_plain_lines(kernel, capsys):
    bar = ProgressBar(clock=Clock())
    bar("evolve", 0, 2, {})
    bar("evolve", 2, 2, {})
    assert capsys.readouterr() == ("evolve: 0/2 (0%)\nevolve: 2/2 (100%), took 0s\n", "")
    assert kernel == []


@pytest.mark.parametrize("shell", [None, types.SimpleNamespace(config={"TerminalIPythonApp": {}})])
def test_ipython_on_a_terminal_is_no_notebook(kernel, monkeypatch, shell):
    assert in_notebook()
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: shell)
    assert not in_notebook()


def test_a_process_without_ipython_is_no_notebook(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
