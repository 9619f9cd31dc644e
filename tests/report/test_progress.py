import io
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time

import pytest

from cycleqd_jax.report import ProgressBar
from cycleqd_jax.types import Progress


class Stream(io.StringIO):
    encoding = "utf-8"

    def __init__(self, tty):
        super().__init__()
        self.tty = tty

    def isatty(self):
        return self.tty


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Stream(True)


def run(bar, clock, stage, total, seconds, figures=None, start=0):
    for done in range(start, total + 1):
        bar(stage, done, total, figures or {})
        clock.now += seconds


def screen(text, columns=None):
    """What a terminal shows in the end; fails on a line that would wrap."""
    lines, line = [], ""
    for part in re.split(r"(\r\x1b\[K|\n)", re.sub(r"\x1b\[[0-9;]*m", "", text)):
        if part == "\r\x1b[K":
            line = ""
        elif part == "\n":
            lines.append(line)
            line = ""
        else:
            assert "\r" not in part
            line += part
            assert columns is None or len(line) < columns
    return [*lines, line]


def test_terminal_redraws_one_line_per_stage(terminal):
    clock = Clock()
    bar: Progress = ProgressBar(terminal, clock)
    run(bar, clock, "experts", 4, 1.0)
    run(bar, clock, "evolve", 10, 2.0, {"best mbpp": 0.81234, "elites": 37})
    shown = screen(terminal.getvalue(), 100)
    assert len(shown) == 3
    assert shown[0].startswith("experts 100% ████")
    assert "4/4 · took 4s" in shown[0]
    assert shown[1].endswith("10/10 · took 20s · best mbpp 0.812 · elites 37")
    assert shown[2] == ""
    assert "12s left" in terminal.getvalue()
    assert "\x1b[36m" in terminal.getvalue()


def test_no_color(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    clock = Clock()
    run(ProgressBar(terminal, clock), clock, "evolve", 5, 1.0)
    assert not re.search(r"\x1b\[[0-9;]*m", terminal.getvalue())
    assert "\r" in terminal.getvalue()


@pytest.mark.parametrize("columns", [1, 8, 20, 30, 45, 60, 80, 200])
def test_lines_never_wrap(terminal, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    clock = Clock()
    run(ProgressBar(terminal, clock), clock, "evolve", 20, 1.0, {"best average": 0.5, "best mbpp": 0.8, "quarantined": 3})
    shown = screen(terminal.getvalue(), columns if columns > 1 else 2)
    assert columns < 30 or shown[0].startswith("evolve 100%")
    assert columns < 200 or "quarantined 3" in shown[0]


def test_redraws_are_rare_but_the_end_is_shown(terminal):
    clock = Clock()
    run(ProgressBar(terminal, clock), clock, "evolve", 10_000, 0.0001)
    assert terminal.getvalue().count("\r") < 15
    assert "10000/10000" in screen(terminal.getvalue())[0]


def test_resumed_stage_times_only_its_own_steps(terminal):
    clock = Clock()
    bar = ProgressBar(terminal, clock)
    bar("evolve", 900, 1000, {})
    assert "? left" in screen(terminal.getvalue())[-1]
    clock.now += 10
    bar("evolve", 910, 1000, {})
    assert "1m30s left" in screen(terminal.getvalue())[-1]


def test_stage_inside_another_leaves_no_line(terminal):
    clock = Clock()
    bar = ProgressBar(terminal, clock)
    bar("evolve", 0, 3, {})
    for generation in range(3):
        run(bar, clock, "evaluate", 4, 0.5)
        bar("evolve", generation + 1, 3, {})
        clock.now += 1
    assert len(screen(terminal.getvalue(), 100)) == 2
    assert "evolve 1/3 › evaluate" in terminal.getvalue()


def test_log_puts_lines_above_the_bar(terminal):
    clock = Clock()
    bar = ProgressBar(terminal, clock)
    bar("evolve", 1, 3, {})
    bar.log("a note\nof two lines")
    bar("evolve", 2, 3, {})
    shown = screen(terminal.getvalue())
    assert shown[:2] == ["a note", "of two lines"]
    assert len(shown) == 3
    assert shown[2].startswith("evolve  66%")
    plain = Stream(False)
    ProgressBar(plain, clock).log("a note")
    assert plain.getvalue() == "a note\n"


def test_unknown_total_and_odd_figures(terminal):
    clock = Clock()
    bar = ProgressBar(terminal, clock)
    for done in range(3):
        bar("download", done, 0, {"loss": float("nan"), "lr": 2e-5, "big": 1e9})
        clock.now += 1
    assert screen(terminal.getvalue())[-1] == "download 2 · 2s · loss - · lr 2e-05 · big 1000000000"


@pytest.mark.exhaustive
def test_plain_lines_without_a_terminal():
    stream, clock = Stream(False), Clock()
    run(ProgressBar(stream, clock), clock, "evolve", 36_000, 0.1, {"best": 0.5})
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    assert lines[0] == "evolve: 0/36000 (0%), best 0.500"
    assert lines[-1] == "evolve: 36000/36000 (100%), took 1h00m, best 0.500"
    assert "left" in lines[1]
    assert 10 < len(lines) < 70


def test_plain_nested_stages_do_not_flood():
    stream, clock = Stream(False), Clock()
    bar = ProgressBar(stream, clock)
    bar("evolve", 0, 100, {})
    for generation in range(100):
        run(bar, clock, "evaluate", 4, 0.1)
        bar("evolve", generation + 1, 100, {})
    assert all(line.startswith("evolve") for line in stream.getvalue().splitlines())
    assert len(stream.getvalue().splitlines()) < 15


def test_dumb_terminal_and_ascii(terminal, monkeypatch):
    clock = Clock()
    terminal.encoding = "ascii"
    run(ProgressBar(terminal, clock), clock, "evolve", 5, 1.0)
    assert terminal.getvalue().isascii()
    assert "####" in terminal.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    dumb = Stream(True)
    run(ProgressBar(dumb, clock), clock, "evolve", 5, 1.0)
    assert "\r" not in dumb.getvalue()


def test_an_exception_leaves_a_fresh_line(terminal):
    def interrupted():
        with ProgressBar(terminal, Clock()) as bar:
            bar("evolve", 1, 5, {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.getvalue().endswith("\n")
    assert "?25l" not in terminal.getvalue()  # the cursor was never hidden


def test_interrupt_on_a_real_terminal_leaves_it_sane(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "import signal, time\nfrom cycleqd_jax.report.progress import ProgressBar\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background is started with it ignored
        "with ProgressBar() as bar:\n    for i in range(10_000):\n"
        "        bar('evolve', i, 10_000, {})\n        time.sleep(0.02)\n"
    )
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen([sys.executable, str(script)], stderr=slave, env={**os.environ, "TERM": "xterm"})
    seen = b""
    deadline = time.monotonic() + 60
    while b"left" not in seen and time.monotonic() < deadline:
        seen += os.read(master, 4096)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0
    os.set_blocking(master, False)
    while True:
        try:
            chunk = os.read(master, 65536)
        except BlockingIOError:
            break
        if not chunk:
            break
        seen += chunk
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)
    assert re.search(rb"\r\n(Traceback|\^C)", seen)
    assert b"KeyboardInterrupt" in seen
