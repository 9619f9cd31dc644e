"""Weights & Biases and MLflow in their offline modes: every individual once, also after a resume, in one tracked run."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
import warnings

import pytest

from cycleqd_jax.runs import Run
from cycleqd_jax.runs.logs import trackers
from cycleqd_jax.runs.logs.loggers import log_search
from cycleqd_jax.search import Journal
from cycleqd_jax.types import InputError

from ..searched import TASKS, config_of, searched, space_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of the clients


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """The individuals of a search."""
    config = config_of(generations=2)
    journal = searched(tmp_path_factory.mktemp("searched"), config, space_of(config))[0]
    return [journal[i] for i in journal.ids()]


@pytest.fixture
def search(tmp_path, lines, monkeypatch):
    """``search(logger, n)``: a search that ends, or is interrupted, after ``n`` individuals; returns the run folder."""
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "run"
    folder.mkdir()

    def run(logger, count, log=print):
        config = dataclasses.replace(config_of(), output=str(folder), loggers=(logger,))
        journal = Journal(folder / "history.jsonl")
        with contextlib.suppress(KeyboardInterrupt), log_search(config, journal, lambda *args: None, log) as progress:
            for one in lines[:count]:
                if journal.get(one.id) is None:
                    journal.append(one)
                progress("evolve", one.id + 1, len(lines), {})
            if count < len(lines):
                raise KeyboardInterrupt
        return folder / logger

    return run


def logged(folder):
    return [int(line) for line in (folder / "logged.txt").read_text().split()]


@pytest.mark.exhaustive
def test_mlflow(search, lines):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow = pytest.importorskip("mlflow", reason="the package mlflow-skinny is not installed")
    folder = search("mlflow", 4)
    identity = (folder / "id.txt").read_text().strip()
    (folder / "logged.txt").open("a").write("5")  # a crash may leave a part of a line
    search("mlflow", len(lines))
    assert (folder / "id.txt").read_text().strip() == identity
    assert logged(folder) == [one.id for one in lines]
    client = mlflow.MlflowClient(tracking_uri=(folder / "store").absolute().as_uri())
    found = client.get_run(identity)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "x")
    assert found.data.params["tasks"] == ", ".join(TASKS)
    assert len(client.search_runs([found.info.experiment_id])) == 1
    for task in TASKS:
        history = [(one.step, one.value) for one in client.get_metric_history(identity, f"scores/{task}")]
        assert sorted(history) == [(one.id, one.scores[task]) for one in lines if one.scores is not None]
    assert sorted(one.step for one in client.get_metric_history(identity, "generation")) == [one.id for one in lines]


def test_a_server_that_does_not_answer_is_one_sentence(search, monkeypatch):
    pytest.importorskip("mlflow", reason="the package mlflow-skinny is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with pytest.raises(InputError, match=r"expected MLflow to answer, got .* from nonsense://nowhere; correct MLFLOW_TRACKING"):
        search("mlflow", 2)


def test_an_outage_of_mlflow_does_not_stop_the_search(search, lines, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the package mlflow-skinny is not installed")
    monkeypatch.setattr(trackers, "RETRY_S", 0.0)
    send, calls, warned = mlflow.MlflowClient.log_batch, [], []

    def fails_for_a_while(client, run, metrics):
        calls.append(len(metrics))
        if 3 <= len(calls) <= 5:
            raise mlflow.exceptions.MlflowException("no route to host\nat once")
        return send(client, run, metrics=metrics)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", fails_for_a_while)
    folder = search("mlflow", len(lines), warned.append)
    assert logged(folder) == [one.id for one in lines]
    assert len(warned) == 3
    assert warned[0].startswith("warning: expected MLflow to answer, got MlflowException (no route to host) from file:")
    assert warned[0].endswith("; the figures are kept, and sent when it answers; the next attempt follows in 0 s")
    client = mlflow.MlflowClient(tracking_uri=(folder / "store").absolute().as_uri())
    found = client.get_metric_history((folder / "id.txt").read_text().strip(), "generation")
    assert sorted(one.step for one in found) == [one.id for one in lines]


def test_figures_that_were_not_sent_are_sent_by_the_next_start(search, lines, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the package mlflow-skinny is not installed")
    warned = []

    def fails(client, run, metrics):
        raise mlflow.exceptions.MlflowException("no route to host")

    with monkeypatch.context() as outage:
        outage.setattr(mlflow.MlflowClient, "log_batch", fails)
        folder = search("mlflow", 4, warned.append)
    assert len(warned) == 2  # the first request, and the last one; between them no attempt was due
    assert warned[1].endswith("; the figures of 4 individuals were not sent; the next start of the search sends them")
    assert logged(folder) == []
    search("mlflow", len(lines), warned.append)
    assert len(warned) == 2
    assert logged(folder) == [one.id for one in lines]


def test_weights_and_biases_that_does_not_start_is_one_sentence(search, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="the package wandb is not installed")

    def fails(**options):
        raise wandb.errors.CommError("no answer")

    monkeypatch.setattr(wandb, "init", fails)
    message = r"to start, got CommError \(no answer\) from the mode offline; correct WANDB_MODE"
    with pytest.raises(InputError, match=message):
        search("wandb", 2)


@pytest.mark.exhaustive
def test_weights_and_biases(search, lines):
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    folder = search("wandb", 4)
    identity = (folder / "id.txt").read_text().strip()
    search("wandb", len(lines))
    assert (folder / "id.txt").read_text().strip() == identity
    assert logged(folder) == [one.id for one in lines]
    parts = sorted((folder / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    assert len(parts) == 2  # of one run
    steps, deadline = [], time.monotonic() + 30
    while len(steps) < len(lines) and time.monotonic() < deadline:  # the client's process may still write
        steps = [step for part in parts for step in individuals_in(part)]
        time.sleep(0.1)
    assert steps == [one.id for one in lines]


def individuals_in(part):
    """The individuals in the records of an offline run: a LevelDB log, whose blocks have 32 KiB and whose headers 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, found, place, whole = part.read_bytes(), [], 7, b""  # after the header of the file
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            found += [int(item.value_json) for item in record.history.item if "individual" in (item.key, *item.nested_key)]
            whole = b""
    return found


@pytest.mark.parametrize(("logger", "package"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_missing_package_is_named_before_the_run(monkeypatch, tmp_path, logger, package):
    config = dataclasses.replace(config_of(), output=str(tmp_path / "run"), loggers=(logger,))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"expected the package {package} .*; run pip install 'cycleqd_jax\[{logger}\]'"):
        Run(config).open()
    assert not (tmp_path / "run").exists()


def test_an_individual_that_was_taken_back_is_logged_again(tmp_path):
    """Too many failures in a row are taken out of the journal; the children are evaluated again, and then have scores."""
    memory = trackers._Memory(tmp_path, [0, 1, 2])
    memory.add([0, 1, 2])
    assert trackers._Memory(tmp_path, [0, 1, 2]).steps == {0, 1, 2}
    assert trackers._Memory(tmp_path, [0]).steps == {0}
    assert logged(tmp_path) == [0]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("logged.txt", b"0\nx1\n", "expected an individual in each line of"),
        ("logged.txt", b"0\n\xff\n", "expected an individual in each line of"),
        ("id.txt", b"\n", "expected the id of the tracked run in"),
        ("id.txt", b"\xff\xfe", "expected the id of the tracked run in"),
    ],
)
def test_damaged_files_of_a_tracker_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{words} .*{name}, got .*; remove {tmp_path} to track the search in a new run"):
        trackers._Memory(tmp_path, [0, 1])
