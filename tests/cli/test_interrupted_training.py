"""SIGTERM in a training: the same command continues it, and ends with the same model."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest

from cycleqd_jax.cli import main

from .conftest import write_config

pytestmark = pytest.mark.e2e


def test_a_training_continues_after_sigterm(finished, tmp_path, compiled, capsys):
    config = str(write_config(tmp_path))
    # A checkpoint after every dispatch shows when the training has begun.
    command = [sys.executable, "-m", "cycleqd_jax.cli", "finetune", config, "checkpoint.training_minutes=1e-6"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | compiled)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "cache" / "unfinished").glob("base-*/[0-9]*")):
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=100)[0].decode()
    assert process.returncode == 75, output
    assert "run the same command to continue" in output
    base = next((finished / "cache" / "models").glob("base-*"))
    assert not (tmp_path / "cache" / "models" / base.name).exists()
    (kept,) = (tmp_path / "cache" / "unfinished").iterdir()
    assert kept.name == base.name
    (step,) = (int(path.name) for path in kept.iterdir() if path.name.isdigit())
    assert 0 < step < 240
    capsys.readouterr()
    assert main(["finetune", config]) == 0
    assert "pretrain" in capsys.readouterr().err
    assert not list((tmp_path / "cache" / "unfinished").iterdir())

    def weights(folder):
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}

    models = sorted((finished / "cache" / "models").iterdir())
    assert len(models) >= 5
    for model in models:
        assert weights(tmp_path / "cache" / "models" / model.name) == weights(model) != {}
