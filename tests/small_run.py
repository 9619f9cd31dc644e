"""A run of the whole loop that takes seconds, and fixtures that share it between tests."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cycleqd_jax.cli import main

TASKS = ("mbpp", "dbbench", "os_interaction")


def small_config(folder: Path, **changes) -> dict:
    """A config of the whole loop that takes seconds: everything is real but the amount of training."""
    sizes = {"train_size": 8, "validation_size": 8, "test_size": 8, "finetune_size": 600, "max_new_tokens": 40}
    config = {
        "name": "small",
        "output": str(folder / "run"),
        "cache": str(folder / "cache"),
        "tasks": [{"name": name, **sizes} for name in TASKS],
        "model": {
            "tiny": {
                "vocab_size": 512,
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_layers": 2,
                "num_heads": 3,
                "num_kv_heads": 1,
                "problems": 3000,
            }
        },
        "pretrain": {"steps": 240, "batch_size": 32, "learning_rate": 4e-3},
        "finetune": {"steps": 48, "batch_size": 32, "learning_rate": 1e-3},
        "baselines": ["finetune_all"],
        "merges": ["ties", "dare_ties"],
        "search": {"generations": 4, "batch_size": 2},
        "export": {"elites": 3},
        "engine": {"slots": 24, "max_len": 160},
        "checkpoint": {"every": 2},
    }
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) and isinstance(config.get(key), dict) else value
    return config


def write_config(folder: Path, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(small_config(folder, **changes)))
    return path


def history(run: Path) -> list[dict]:
    """The journal without wall times and token counts.

    On a busy machine a shell command may reach its time limit, and then the conversation has other words.
    """
    lines = (run / "history.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "tokens")} for line in lines]


def kill_at(command: list[str], journal: Path, lines: int, env: dict[str, str], seconds: float = 200) -> None:
    """Runs a command of ``cycleqd`` until a journal has so many lines, and kills it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cycleqd_jax.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | env,
    )
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") >= lines:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the command ended before it could be killed"


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A folder with ``config.yaml``, ``cache/`` and a finished ``run/``, made once for all workers of a test run."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "finished"
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            assert main(["run", str(write_config(folder))]) == 0
            (folder / "done").touch()
    return folder


@pytest.fixture
def trained(finished, tmp_path) -> Path:
    """A folder of one's own whose cache has the trained models already."""
    shutil.copytree(finished / "cache", tmp_path / "cache")
    return tmp_path
