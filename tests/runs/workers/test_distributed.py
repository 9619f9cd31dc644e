"""Models that are divided between real processes: the results of one process, and what happens where a process ends."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import pytest
import yaml

from cycleqd_jax.cli import main
from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.tokenizer import train_tiny_tokenizer

from ..conftest import history

SECONDS = 40
"""After the end of one process all others must have ended: 10 s without a sign of life, and the time of a busy machine."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Started:
    """The processes of a distributed run on this machine, with their output."""

    def __init__(self, commands: Sequence[Sequence[str]], devices: int, env: dict[str, str]):
        flag = f"--xla_force_host_platform_device_count={devices}"
        options = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(len(commands))]
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "cycleqd_jax.cli", *command, "--distributed", *options, "--process", str(i)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | env | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
            )
            for i, command in enumerate(commands)
        ]
        self.output = [""] * len(commands)
        self._readers = [threading.Thread(target=self._read, args=(i,)) for i in range(len(commands))]
        for reader in self._readers:
            reader.start()

    def _read(self, i: int) -> None:
        stdout = self.processes[i].stdout
        assert stdout is not None
        for line in stdout:
            self.output[i] += line

    def ended(self, seconds: float) -> list[int]:
        """The exit codes, after these seconds at most."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(max(deadline - time.monotonic(), 0.1)) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
            for reader in self._readers:
                reader.join(30)
            for process in self.processes:
                assert process.stdout is not None
                process.stdout.close()

    def wait_for(self, journal: Path, lines: int, seconds: float = 900) -> None:
        """Waits until a journal has so many lines."""
        deadline = time.monotonic() + seconds
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= lines):
            assert time.monotonic() < deadline, self.output
            assert all(process.poll() is None for process in self.processes), self.output
            time.sleep(0.01)


@pytest.fixture
def start(compiled):
    """``start(commands, devices=1)`` starts a process for each command."""
    with contextlib.ExitStack() as stack:

        def begin(commands: Sequence[Sequence[str]], devices: int = 1) -> Started:
            started = Started(commands, devices, compiled)
            for process in started.processes:
                stack.callback(process.kill)
            return started

        yield begin


def digest_of(run: Path, capsys) -> str:
    capsys.readouterr()
    assert main(["verify", str(run), "--digest"]) == 0
    return capsys.readouterr().out.strip()


def write_models(folder: Path) -> dict:
    """A base and two experts that two devices can share, and a config for them. Their replies are random, but differ."""
    texts = [f"say {word} {i} def return SELECT ls" for word in ("one", "two") for i in range(9)]
    tokenizer = train_tiny_tokenizer(texts, 300)
    config = llama.LlamaConfig(tokenizer.vocab_size, 32, 64, 2, 4, 2, 8, max_position_embeddings=512)
    base = llama.init_params(config, jax.random.key(0))
    for k, name in enumerate(("base", "mbpp", "dbbench")):
        change = llama.init_params(config, jax.random.key(10 + k))
        params = jax.tree.map(lambda a, b, k=k: a + (0.3 * b if k else 0.0), base, change)
        hf.save(folder / "models" / name, config, params, tokenizer=tokenizer)
    sizes = {"train_size": 4, "validation_size": 4, "test_size": 4, "max_new_tokens": 16}
    return {
        "name": "shared",
        "output": str(folder / "run"),
        "cache": str(folder / "cache"),
        "tasks": [{"name": name, **sizes} for name in ("mbpp", "dbbench")],
        "model": {
            "base": str(folder / "models" / "base"),
            "experts": {name: str(folder / "models" / name) for name in ("mbpp", "dbbench")},
        },
        "engine": {"slots": 8, "max_len": 500, "overflow": "truncate"},
        "search": {"generations": 3, "batch_size": 2},
        "export": {"elites": 2},
        "checkpoint": {"every": 1},
        "merges": ["ties"],
        "mesh": {"fsdp": 2, "tensor": 2},
    }


@pytest.fixture(scope="session")
def reference(tmp_path_factory, compiled) -> tuple[Path, str]:
    """The folder of a run ``one`` of one process with four simulated devices, and its config."""
    folder = tmp_path_factory.mktemp("reference")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(write_models(folder)))
    command = [sys.executable, "-m", "cycleqd_jax.cli", "run", str(config), f"output={folder / 'one'}"]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    subprocess.run(command, check=True, capture_output=True, env=os.environ | compiled | flags)
    return folder, str(config)


def replies(run: Path) -> dict[str, bytes]:
    """The token ids of all replies, by individual."""
    return {file.name: gzip.decompress(file.read_bytes()) for file in (run / "replies").iterdir()}


@pytest.mark.e2e
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])  # four on two cores take minutes
def test_processes_find_what_one_finds(reference, start, capsys, count):
    folder, config = reference
    run, one = folder / f"of {count}", folder / "one"
    started = start([["run", config, f"output={run}"]] * count, devices=4 // count)
    assert started.ended(1800) == [0] * count, started.output
    assert history(run) == history(one)
    assert replies(run) == replies(one)
    assert len(set(replies(one).values())) > 4, "replies so alike that no test here could fail"
    assert digest_of(run, capsys) == digest_of(one, capsys)
    for name in ("grid.json", "tables/results.json", "tables/items.json", "model/model.safetensors"):
        assert (run / name).read_bytes() == (one / name).read_bytes(), name
    assert "another process" not in "".join(started.output)


@pytest.mark.e2e
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    ("count", "killed"),
    [(2, 0), (2, 1), pytest.param(4, 0, marks=pytest.mark.slow), pytest.param(4, 2, marks=pytest.mark.slow)],
)
def test_the_end_of_one_process_ends_all_and_the_run_continues(reference, start, capsys, count, killed):
    folder, config = reference
    run = folder / f"killed {killed} of {count}"
    command = ["evolve", config, f"output={run}"]
    started = start([command] * count, devices=4 // count)
    started.wait_for(run / "history.jsonl", 3)
    started.processes[killed].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    codes = started.ended(SECONDS)
    with capsys.disabled():
        print(f"all {count} processes ended {time.monotonic() - begin:.1f} s after the end of process {killed}")
    assert codes.pop(killed) == -signal.SIGKILL
    assert codes == [75] * (count - 1), started.output
    for i in set(range(count)) - {killed}:
        assert "another process of this run has ended, so this one has ended too" in started.output[i]
    assert 3 <= len(history(run)) < len(history(folder / "one"))
    started = start([command] * count, devices=4 // count)
    assert started.ended(1200) == [0] * count, started.output
    assert history(run) == history(folder / "one")
    assert digest_of(run, capsys) == digest_of(folder / "one", capsys)


@pytest.mark.e2e
@pytest.mark.timeout(1200)
def test_sigterm_to_any_process_ends_all_with_what_is_finished(reference, start):
    folder, config = reference
    run = folder / "terminated"
    started = start([["evolve", config, f"output={run}"]] * 2, devices=2)
    started.wait_for(run / "history.jsonl", 3)
    started.processes[1].send_signal(signal.SIGTERM)
    assert started.ended(120) == [75, 75], started.output
    assert "stopped by SIGTERM; run the same command to continue" in started.output[0]
    assert "process 0 of this run has ended with exit code 75" in started.output[1]


@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            [],
            ["seed=1"],
            "expected the config's seed 0, as in process 0, got 1 in process 1; start all processes",
        ),
        (["mesh.tensor=1"], ["mesh.tensor=1"], "expected mesh.fsdp × mesh.tensor of the 4 devices of 2 processes, got 2 × 1"),
        (["mesh.tensor=8"], ["mesh.tensor=8"], "expected a mesh population × fsdp × tensor of 4 devices, got 1 × 2 × 8"),
    ],
)
def test_processes_that_do_not_fit_are_refused(reference, start, tmp_path, first, second, message):
    """Another config in one process; and meshes of other devices than there are."""
    command = ["evolve", reference[1], f"output={tmp_path / 'run'}"]
    started = start([[*command, *first], [*command, *second]], devices=2)
    assert started.ended(120) == [2, 2], started.output
    assert all(message in output for output in started.output), started.output
    assert not (tmp_path / "run").exists()


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_the_error_of_one_process_is_that_of_all(reference, start, tmp_path):
    """The file of one process is missing. None may end with 75, with which a job is queued again."""
    command = ["evolve", reference[1], f"output={tmp_path / 'run'}"]
    started = start([command, command, command, ["evolve", "/nowhere.yaml", command[2]]])
    assert started.ended(120) == [2, 2, 2, 2], started.output
    assert all("/nowhere.yaml" in output for output in started.output), started.output
    assert "process 3 of this run has failed: " in started.output[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
@pytest.mark.timeout(120)
def test_a_coordinator_that_is_not_there(tmp_path, start):
    command = ["evolve", str(tmp_path / "config.yaml"), "--wait", "3", "--distributed", "--processes", "2", "--process", "1"]
    command = [sys.executable, "-m", "cycleqd_jax.cli", *command, "--coordinator", f"127.0.0.1:{free_port()}"]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stderr
    assert "expected all processes of the run within 3 s at 127.0.0.1:" in done.stderr
    assert "Check failure stack trace" not in done.stderr
    assert time.monotonic() - began < 60
