"""SIGTERM: a stage keeps what is finished, and ends with the exit code that means that it can be continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from cycleqd_jax import cli
from cycleqd_jax.cli.parser import RESUMABLE
from cycleqd_jax.cli.signals import STOPPED, Stopped, stopped_by_sigterm
from cycleqd_jax.sandbox import InfraError

from .conftest import history, write_config

main = sys.modules[f"{cli.__name__}.main"]


@pytest.fixture
def dispatch(monkeypatch):
    return lambda function: monkeypatch.setattr(main, "_dispatch", function)


@pytest.mark.parametrize("command", RESUMABLE)
def test_a_stage_can_be_continued(dispatch, capsys, command):
    dispatch(lambda *args: signal.raise_signal(signal.SIGTERM))
    more = ["--methods", "cmaes", "--seeds", "0"] if command == "compare" else []
    assert cli.main([command, "config.yaml", *more]) == STOPPED == 75
    assert capsys.readouterr().err == "\ncycleqd: stopped by SIGTERM; run the same command to continue.\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sandboxes_that_got_the_signal_too(dispatch, capsys):
    def fail(*args):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            raise InfraError("the box has died")

    dispatch(fail)
    assert cli.main(["evolve", "config.yaml"]) == STOPPED
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_a_second_signal_does_not_interrupt_what_the_first_started(dispatch):
    saved = []

    def stage(*args):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGTERM)
            saved.append("checkpoint")
            raise

    dispatch(stage)
    assert cli.main(["run", "config.yaml"]) == STOPPED
    assert saved == ["checkpoint"]


def test_a_stage_that_ends_anyway(dispatch):
    def stage(*args):
        try:
            signal.raise_signal(signal.SIGTERM)
        except Stopped:
            return 0

    dispatch(stage)
    assert cli.main(["run", "config.yaml"]) == 0


def test_ctrl_c_keeps_its_code(dispatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    dispatch(interrupted)
    assert cli.main(["run", "config.yaml"]) == 130
    assert "interrupted; run the same command to continue" in capsys.readouterr().err


def test_other_commands_and_threads_keep_the_default(dispatch):
    handlers = []
    dispatch(lambda *args: handlers.append(signal.getsignal(signal.SIGTERM)) or 0)
    assert cli.main(["inspect", "m"]) == 0

    def in_thread():
        with stopped_by_sigterm() as flag:
            handlers.append(signal.getsignal(signal.SIGTERM))
        handlers.append(flag.received)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL, signal.SIG_DFL, False]


@pytest.mark.e2e
def test_a_run_is_stopped_and_continued(finished, trained, compiled):
    config = write_config(trained, checkpoint={"every": 100})
    command = [sys.executable, "-m", "cycleqd_jax.cli", "evolve", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | compiled, text=True)
    journal, deadline = trained / "run" / "history.jsonl", time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") >= 6:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.002)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == STOPPED, output
    assert "stopped by SIGTERM; run the same command to continue" in output
    steps = [int(path.name) for path in (trained / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert steps
    assert max(steps) == (len(history(trained / "run")) - 3) // 2
    assert cli.main(["evolve", str(config)]) == 0
    assert history(trained / "run") == history(finished / "run")
    assert cli.main(["verify", str(trained / "run")]) == 0
