"""Errors of the disk end every command with one sentence, and stages with the exit code of a run that can be continued."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import jax
import pytest

from cycleqd_jax import cli
from cycleqd_jax.cli.parser import STAGES
from cycleqd_jax.disk_errors import one_disk_error
from cycleqd_jax.engine import load_model
from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.tokenizer import train_tiny_tokenizer
from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.types import FailuresError

main = sys.modules[f"{cli.__name__}.main"]
FAULTS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO]


def failing(error):
    def dispatch(*args):
        raise error

    return dispatch


def quoted(number):
    """An exception of a library that only quotes the operating system, and one that was raised from such an error."""
    plain = ValueError(f'RESOURCE_EXHAUSTED: Error writing "/data/x/_sharding": {os.strerror(number)} [os_error_code={number}]')
    caused = RuntimeError("can't write")
    caused.__cause__ = OSError(number, os.strerror(number), "/data/y")
    return plain, caused


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_can_be_continued(monkeypatch, capsys, stage, number):
    for error in (OSError(number, os.strerror(number), "runs/x/history.jsonl"), *quoted(number)):
        monkeypatch.setattr(main, "_dispatch", failing(error))
        assert cli.main([stage, "config.yaml"]) == 3
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(f"cycleqd: expected to read and write files, got {os.strerror(number)} in ")
        assert err.endswith("; free some space or correct the permissions and run the same command to continue\n")


@pytest.mark.parametrize("argv", [["report", "runs/x"], ["inspect", "m"], ["generate", "m", "x"], ["doctor"]])
def test_other_commands(monkeypatch, capsys, argv):
    monkeypatch.setattr(main, "_dispatch", failing(PermissionError(errno.EACCES, "Permission denied", "runs/x")))
    assert cli.main(argv) == 2
    assert capsys.readouterr().err.startswith(
        "cycleqd: expected to read and write files, got Permission denied in runs/x; free"
    )


@pytest.mark.parametrize("number", [errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG])
def test_a_path_that_is_no_place_for_a_file(monkeypatch, capsys, number):
    monkeypatch.setattr(main, "_dispatch", failing(OSError(number, os.strerror(number), "x/.report.html.1.tmp", None, "x/y")))
    assert cli.main(["report", "runs/x"]) == 2
    assert capsys.readouterr().err == (
        f"cycleqd: expected to read and write files, got {os.strerror(number)} in x/y; correct the path, or move what is there "
        "away, then run the same command again\n"
    )


@pytest.mark.parametrize(
    ("argv", "continues"), [(["run", "config.yaml"], True), (["verify-task", "mbpp", "--data", "x"], False)]
)
def test_a_broken_sandbox(monkeypatch, capsys, argv, continues):
    monkeypatch.setattr(main, "_dispatch", failing(InfraError("expected a sandbox, got none")))
    assert cli.main(argv) == 3
    advice = "Finished scores are kept; run the same command to continue.\n" if continues else ""
    assert capsys.readouterr().err == f"cycleqd: expected a sandbox, got none\n{advice}"


def test_a_working_directory_that_was_deleted(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert cli.main(["run", "config.yaml"]) == 2
    assert capsys.readouterr().err == (
        "cycleqd: expected a working directory, got one that was deleted; change to another one\n"
    )


def test_devices_that_are_not_there(monkeypatch, capsys):
    error = RuntimeError("Unable to initialize backend 'foo': it is not known")
    monkeypatch.setattr(main, "_dispatch", failing(error))
    assert cli.main(["evolve", "config.yaml"]) == 2
    assert capsys.readouterr().err == f"cycleqd: expected devices that JAX can use, got {error}; correct JAX_PLATFORMS\n"
    monkeypatch.undo()
    monkeypatch.setattr(jax, "devices", failing(error))
    assert cli.main(["doctor"]) == 0
    assert f"  none that JAX can use: {error}\n" in capsys.readouterr().out


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("No space"), ConnectionRefusedError("no"), ZeroDivisionError()])
def test_other_errors_keep_their_traceback(monkeypatch, error):
    monkeypatch.setattr(main, "_dispatch", failing(error))
    with pytest.raises(type(error)):
        cli.main(["evolve", "config.yaml"])


def test_a_full_standard_output(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(main, "_dispatch", lambda *args: print("facts") or 0)
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["inspect", "m"]) == 2
    assert "got No space left on device; free" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_a_model_that_does_not_fit_leaves_the_old_one(tmp_path, monkeypatch):
    tokenizer = train_tiny_tokenizer(["1 + 1"], 300)
    config = llama.LlamaConfig(tokenizer.vocab_size, 8, 8, 1, 2, 1, 4, max_position_embeddings=64)
    hf.save(tmp_path / "m", config, llama.init_params(config, jax.random.key(0)), tokenizer=tokenizer)
    before = {path: path.read_bytes() for path in (tmp_path / "m").iterdir()}

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hf, "write_shards", full)
    with pytest.raises(OSError, match="No space left"):
        load_model(tmp_path / "m").save(tmp_path / "m")
    assert {path: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


LIMITED = """
import resource, sys
import jax, jax.numpy as jnp
from cycleqd_jax.search import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {"x": jnp.arange(8.0)}, jax.random.key(0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
try:
    checkpoints.save(2, {"x": jax.random.normal(jax.random.key(0), (1 << 17,))}, jax.random.key(0))
    checkpoints.wait()
except OSError as error:
    print(error.strerror, error.filename)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
checkpoints.save(2, {"x": jnp.arange(8.0)}, jax.random.key(0))
checkpoints.wait()
print(checkpoints.latest())
"""


@pytest.mark.exhaustive
def test_a_checkpoint_that_does_not_fit_is_one_error(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "c")], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"File too large {tmp_path / 'c'}", "2"]


def test_late_errors_of_other_threads_are_dropped_after_a_disk_error(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: printed.append(str(error)))
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"), one_disk_error(tmp_path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def report(message):
        sys.excepthook(RuntimeError, RuntimeError(message), None)

    for message in ("Event loop is closed", "another"):
        thread = threading.Thread(target=report, args=(message,))
        thread.start()
        thread.join()
    report("Event loop is closed")
    assert printed == ["another", "Event loop is closed"]


def test_too_many_failures_can_be_continued(monkeypatch, capsys):
    monkeypatch.setattr(
        main, "_dispatch", failing(FailuresError("expected fewer failures, got 10 in a row; correct the cause"))
    )
    assert cli.main(["evolve", "config.yaml"]) == 3
    assert capsys.readouterr().err == "cycleqd: expected fewer failures, got 10 in a row; correct the cause\n"
