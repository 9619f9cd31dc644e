"""The logs of a search for other programs: every individual once, also after a resume."""

from __future__ import annotations

import collections
import dataclasses
import errno
import resource
import sys
import threading

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from cycleqd_jax.runs import Run
from cycleqd_jax.runs.logs.loggers import TensorBoard, log_search
from cycleqd_jax.runs.searchers import make_searcher
from cycleqd_jax.search import Journal, evolve
from cycleqd_jax.types import InputError

from ..searched import TASKS, FromGenome, config_of, space_of


def scalars(folder):
    """Tag → (step, value) in all event files of a folder."""
    found = collections.defaultdict(list)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            for value in event.summary.value:
                found[value.tag].append((event.step, value.simple_value))
            data = data[16 + size :]
    return found


@pytest.fixture
def search(tmp_path):
    config = dataclasses.replace(config_of("cycleqd"), output=str(tmp_path), loggers=("tensorboard",))
    space = space_of(config)
    experts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[space.expert(k) for k in range(3)])

    def run(generations):
        journal, seen = Journal(tmp_path / "history.jsonl"), []
        with log_search(config, journal, lambda *args: seen.append(args), print) as progress:
            evolve(
                make_searcher(config, space),
                experts,
                FromGenome(),
                tasks=TASKS,
                key=jax.random.key(config.seed),
                generations=generations,
                batch_size=config.search.batch_size,
                journal=journal,
                progress=progress,
            )
        assert [done for _, done, _, _ in seen] == [i + 1 for i in journal.ids()]
        return journal, scalars(tmp_path / "tensorboard")

    return run


def test_every_individual_is_logged_once(search):
    search(2)
    journal, found = search(4)
    alive = [i for i in journal.ids() if journal[i].scores is not None]
    assert [step for step, _ in found["generation"]] == journal.ids()
    averages = {i: sum(journal[i].scores.values()) / 3 for i in alive}
    assert [step for step, _ in found["scores/average"]] == alive
    assert [value for _, value in found["scores/average"]] == pytest.approx(list(averages.values()))
    assert found["scores/best"][-1][1] == pytest.approx(max(averages.values()))
    assert found["quarantined"][-1] == (journal.ids()[-1], len(journal) - len(alive))
    for task in TASKS:
        assert found[f"scores/{task}"] == [(i, pytest.approx(journal[i].scores[task])) for i in alive]


def test_without_loggers_the_progress_is_the_callers(tmp_path):
    config, journal = config_of("cycleqd"), Journal(tmp_path / "history.jsonl")

    def progress(stage, done, total, figures):
        pass

    with log_search(config, journal, progress, print) as found:
        assert found is progress
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_before_the_run(monkeypatch, tmp_path):
    config = dataclasses.replace(config_of("cycleqd"), output=str(tmp_path / "run"), loggers=("tensorboard",))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"expected the package tensorboardX .*; run pip install 'cycleqd_jax\[tensorboard\]'"):
        Run(config).open()
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_an_error_and_does_not_block(tmp_path):
    board, found = TensorBoard(tmp_path / "tensorboard"), []

    def write():
        try:
            for step in range(200):
                board.log(step, {"a": 1.0, "b": 2.0})
                board.flush()
        except OSError as error:
            found.append((error.errno, error.filename, step))
        board.close()

    writing = threading.Thread(target=write, daemon=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        writing.start()
        writing.join(60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not writing.is_alive()
    ((number, place, step),) = found
    assert (number, place) == (errno.EFBIG, str(tmp_path / "tensorboard"))
    assert 5 < step < 30
