"""What a worker on another machine checks before it evaluates, and what the run records of it."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import types

import pytest

from cycleqd_jax.compilation import device_kind
from cycleqd_jax.config import load_config
from cycleqd_jax.evaluation.ray import Program, WorkerRecord
from cycleqd_jax.files import write_json
from cycleqd_jax.report.read import load_workers
from cycleqd_jax.runs.folder.run_folder import versions
from cycleqd_jax.runs.run import Run
from cycleqd_jax.runs.workers import remote
from cycleqd_jax.runs.workers.remote import RemoteWorkers, WorkerProgram, software
from cycleqd_jax.types import InputError


@pytest.fixture
def config(tmp_path):
    output, cache = str(tmp_path / "run"), str(tmp_path / "cache")
    options = {"address": "auto", "workers": 3}
    tasks = [{"name": "mbpp"}, {"name": "dbbench"}]
    return load_config({"name": "x", "output": output, "cache": cache, "tasks": tasks, "ray": options})


@pytest.fixture
def kept_folder():
    before = os.getcwd()
    yield before
    os.chdir(before)


def refused(program) -> str:
    assert isinstance(program, Program)
    with pytest.raises(InputError) as found:
        program.start(print)
    return str(found.value)


def test_another_version_is_refused_before_anything_is_read(config):
    program = WorkerProgram(config, "/nowhere", {**versions(), "jax": "0.0.1"}, {}, None)
    message = refused(program)
    assert message.startswith(f"expected version of jax 0.0.1, as in the run, got {versions()['jax']} in the worker on ")
    assert message.endswith("; install the versions of the run")


def test_other_sources_of_the_package_are_refused(config):
    found = software()
    assert found == software()
    message = refused(WorkerProgram(config, "/nowhere", {**found, "sources of cycleqd_jax": "0123"}, {}, None))
    assert message.startswith("expected version of sources of cycleqd_jax 0123, as in the run, got ")


def test_a_run_that_began_without_workers_goes_on_with_its_devices(config):
    config.folder.mkdir()
    workers = RemoteWorkers.__new__(RemoteWorkers)  # without models and a cluster
    workers._context, workers._earlier = types.SimpleNamespace(config=config, folder=config.folder), []
    assert workers._known_device() is None
    (config.folder / "history.jsonl").write_text("{}\n")
    assert workers._known_device() == device_kind()


def test_a_run_whose_search_is_over_needs_no_cluster(config):
    assert not Run(config)._has_searched()
    (config.folder / "tables").mkdir(parents=True)
    (config.folder / "tables" / "results.json").touch()
    for more, over in ((0, True), (1, False)):  # further generations
        there = {"search": {"generations": config.search.generations - more}}
        (config.folder / "config.yaml").write_text(json.dumps({**there, "schema": 1}))
        assert Run(config)._has_searched() is over


def test_a_folder_that_the_machine_lacks_is_named(config):
    message = refused(WorkerProgram(config, "/nowhere", versions(), {}, None))
    assert message.startswith("expected the folder /nowhere of the run on every node, got No such file or directory in the ")


@pytest.mark.exhaustive
def test_other_problems_are_refused(config, kept_folder):
    message = refused(WorkerProgram(config, kept_folder, versions(), {"mbpp/test": "0123"}, None))
    assert message.startswith("expected digest of mbpp/test 0123, as in the run, got ")
    assert message.endswith("; give all nodes the same files")


class Idle:
    size = 1

    def __call__(self, genomes, stop, relatives=(), stages=()):
        raise AssertionError


@pytest.fixture
def made(monkeypatch):
    """What a worker makes, without models; the checksum of its basis is 0123."""
    found = []

    class Models:
        basis_checksum = "0123"

        def __init__(self, context):
            pass

        def worker(self, split):
            return Idle()

        def ensure_space(self):
            found.append("space")

        def ensure_evaluator(self):
            found.append("evaluator")

    monkeypatch.setattr(remote, "open_context", lambda *given, **options: types.SimpleNamespace(context=None))
    monkeypatch.setattr(remote, "Placement", Models)
    return found


@pytest.mark.parametrize("expected", ["4567", None])
def test_another_basis_is_refused_before_the_evaluator_is_made(config, kept_folder, made, expected):
    message = refused(WorkerProgram(config, kept_folder, software(), {}, expected))
    assert message.startswith(f"expected checksum of basis {expected}, as in the run, got 0123 in the worker on ")
    assert message.endswith("; give all nodes the same cache")
    assert made == ["space"]


def test_the_settings_of_a_process_stay_while_it_evaluates(config, kept_folder, made, monkeypatch):
    """The compilation cache was left as soon as the models were loaded: nothing referred to its context any more."""
    states = []

    @contextlib.contextmanager
    def setting():
        states.append("entered")
        try:
            yield
        finally:
            states.append("left")

    def opened(config, stack, **options):
        stack.enter_context(setting())
        return types.SimpleNamespace(context=None)

    monkeypatch.setattr(remote, "open_context", opened)
    hosted = WorkerProgram(config, kept_folder, software(), {}, "0123").start(print)
    assert made == ["space", "evaluator"]
    gc.collect()
    assert states == ["entered"]
    hosted.settings.close()
    assert states == ["entered", "left"]


def test_the_kind_of_a_cpu_has_its_instruction_set():
    assert device_kind().startswith("cpu ")
    assert len(device_kind()) == 4 + 8


def test_workers_of_a_start_that_was_killed_have_ended(config):
    """Otherwise they would count for the pace of a start without a cluster."""
    config.folder.mkdir()
    states = ("busy", "idle", "refused", "waiting")
    workers = [{"start": 0, **WorkerRecord(i, state).to_json()} for i, state in enumerate(states)]
    write_json(config.folder / "workers.json", {"schema": 1, "workers": workers})
    with contextlib.ExitStack() as stack:
        Run(config)._lock(stack)
    assert [one["state"] for one in load_workers(config.folder)] == ["ended", "ended", "refused", "ended"]


def test_records_of_all_starts_are_kept(config):
    config.folder.mkdir()
    for start in range(2):
        workers = RemoteWorkers.__new__(RemoteWorkers)  # without models and a cluster
        workers._context = types.SimpleNamespace(config=config, folder=config.folder)
        workers._earlier = load_workers(config.folder)
        workers._record([WorkerRecord(0, "ended", "a", 7, "cpu x", 2.0, 5, 10.0, 1, None), WorkerRecord(1)])
        found = json.loads((config.folder / "workers.json").read_text())
        assert found["schema"] == 1
        assert [(one["start"], one["id"]) for one in found["workers"]] == [(s, i) for s in range(start + 1) for i in (0, 1)]
        assert found["workers"][0]["per_hour"] == 1800.0
        assert workers._known_device() == (None if start == 0 else "cpu x")  # of the starts before this one
