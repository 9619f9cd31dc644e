"""Run folders that something has damaged: the search recovers, or refuses with what to do, and is never silently wrong."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.individual import Individual
from cycleqd_jax.search import Checkpoints, Journal, checkpoint, checkpoint_steps, read_checkpoint
from cycleqd_jax.search.checkpoint import DamagedCheckpointError
from cycleqd_jax.search.loop import _restore
from cycleqd_jax.types import InputError


def child(identity):
    return Individual(identity, 0, None, "a", (0, 1), (0.1, 1 / 3), (1, 2), scores={"a": 0.25, "é": 1 / 3}, error="é")


# ------------------------------------------------------------------------------------------------------------ journal


def test_a_journal_cut_at_every_byte_of_its_last_record(tmp_path):
    path = tmp_path / "history.jsonl"
    journal = Journal(path)
    for i in range(3):
        journal.append(child(i))
    whole = path.read_bytes()
    start = len(whole[:-1].rpartition(b"\n")[0]) + 1
    for end in range(start, len(whole) + 1):
        path.write_bytes(whole[:end])
        again = Journal(path)
        assert (again.ids(), again.torn) == ([0, 1, *([2] if end == len(whole) else [])], start < end < len(whole))
        assert path.read_bytes() == whole[: start if end < len(whole) else end]
        if end < len(whole):
            again.append(child(2))
        assert path.read_bytes() == whole


@pytest.mark.exhaustive
@pytest.mark.parametrize("step", [97, pytest.param(5, marks=pytest.mark.exhaustive)])
def test_a_search_whose_journal_was_cut_ends_the_same(new_run, assert_identical, step):
    whole = new_run("whole")
    state = whole.evolve(every=2)
    written = (whole.folder / "history.jsonl").read_bytes()
    start = len(written[:-1].rpartition(b"\n")[0]) + 1
    for end in range(start, len(written), step):
        run = new_run(f"cut at {end}")
        (run.folder / "history.jsonl").write_bytes(written[:end])
        rest = new_run.Evaluator()
        assert_identical(run.evolve(rest), state)
        assert run.lines() == whole.lines()
        assert rest.calls == 1


def test_a_journal_that_is_shorter_than_its_checkpoint_is_refused(new_run):
    run = new_run()
    run.evolve(every=2)
    path = run.folder / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        InputError, match=r"expected at least 11 individuals for the checkpoint of generation 4, got 10 in .*; "
    ):
        run.evolve(every=2)


@pytest.mark.exhaustive
def test_a_journal_that_lacks_a_line_which_a_checkpoint_covers_is_refused(new_run):
    """The newer lines suffice for the number of individuals, and no search would evaluate the missing one again."""
    run = new_run()
    run.evolve(every=2, generations=3)
    shutil.rmtree(run.folder / "checkpoints" / "3")
    path = run.folder / "history.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4] + lines[5:]))
    rest = new_run.Evaluator()
    words = r"expected every individual before 7 for the checkpoint of generation 2, got none of \[4\] in .*; restore"
    with pytest.raises(InputError, match=words):
        run.evolve(rest, every=2)
    assert rest.calls == 0
    shutil.rmtree(run.folder / "checkpoints")  # what the message says
    run.evolve(rest, every=2, generations=3)
    assert rest.calls == 1
    assert path.read_bytes().count(b"\n") == len(lines)


@pytest.mark.parametrize("limit", range(1, 200, 23))
def test_a_full_disk_leaves_a_journal_that_continues(tmp_path, limit):
    """The operating system writes a part of a line, as on a full disk, and refuses the rest."""
    journal = Journal(tmp_path / "history.jsonl")
    journal.append(child(0))
    before = journal.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + min(limit, len(before) - 1), hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            journal.append(child(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.get(1) is None
    assert journal.path.read_bytes().startswith(before)
    assert Journal(journal.path).ids() == [0]
    for i in (1, 2):
        journal.append(child(i))
    assert Journal(journal.path).ids() == [0, 1, 2]


@pytest.mark.parametrize("at", [0, 5, 10])
def test_a_search_on_a_full_disk_stops_and_continues(new_run, assert_identical, monkeypatch, at):
    whole, run = new_run("whole"), new_run("full")
    state = whole.evolve()
    calls, fsync = [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    evaluated = new_run.Evaluator()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run.evolve(evaluated)
    kept = len(run.lines())
    rest = new_run.Evaluator()
    assert_identical(run.evolve(rest), state)
    assert run.lines() == whole.lines()
    assert rest.calls == len(whole.lines()) - kept
    assert kept >= evaluated.calls - 1


# -------------------------------------------------------------------------------------------------------- checkpoints


KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with two checkpoints, and the states in them."""
    folder = tmp_path_factory.mktemp("stored")
    first = {"x": jax.random.normal(jax.random.key(1), (64, 8)), "n": jnp.arange(5)}
    second = jax.tree.map(lambda leaf: leaf * 2, first)
    checkpoints = Checkpoints(folder / "c")
    checkpoints.save(1, first, KEY)
    checkpoints.save(2, second, KEY)
    checkpoints.close()
    return folder / "c", first, second


def restored(folder, like):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(like, KEY)
    finally:
        checkpoints.close()


def damages(content):
    """Contents of a damaged file; None is a file that is gone."""
    yield None
    if content:
        yield content[: len(content) // 2]
    for at in sorted({0, len(content) // 3, len(content) // 2, len(content) - 1} if content else set()):
        yield content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


@pytest.mark.exhaustive
def test_a_damaged_checkpoint_is_refused_or_makes_no_difference(stored, tmp_path, assert_identical):
    folder, first, second = stored
    outcomes = []
    files = sorted(path.relative_to(folder) for path in (folder / "2").rglob("*") if path.is_file())
    for name in files:
        for content in damages((folder / name).read_bytes()):
            copy = tmp_path / "c"
            shutil.copytree(folder, copy)
            if content is None:
                (copy / name).unlink()
            else:
                (copy / name).write_bytes(content)
            try:
                step, state = restored(copy, first)
                outcomes.append("")
            except InputError as error:
                outcomes.append(str(error))
                shutil.rmtree(copy / "2")  # what the message says
                step, state = restored(copy, first)
            assert step == (1 if outcomes[-1] else 2)
            assert_identical(state, first if outcomes[-1] else second)
            shutil.rmtree(copy)
    assert len(files) > 8
    messages = [text for text in outcomes if text]
    assert len(messages) > 10
    assert all(
        "checkpoint before it or from the journal" in text or "leaves and shapes of this run" in text for text in messages
    )


def assert_both_refuse(folder, like, words):
    """Both ways to read the checkpoint of step 2 refuse it."""
    for read in (lambda: restored(folder, like), lambda: read_checkpoint(folder, 2)):
        with pytest.raises(DamagedCheckpointError, match=words):
            read()


def test_flipped_bytes_in_the_arrays_are_found_before_orbax_reads_them(stored, tmp_path):
    """The file format has no checksum of the arrays: only the digest tells."""
    folder, first, _ = stored
    name = max((path for path in (folder / "2" / "search").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = name.read_bytes()
    for at in range(len(content) // 4, 3 * len(content) // 4, 251):
        copy = tmp_path / "c"
        shutil.copytree(folder, copy)
        (copy / name.relative_to(folder)).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert_both_refuse(copy, first, "expected the files of a checkpoint with digest")
        shutil.rmtree(copy)


def test_a_damaged_digest_of_the_files(stored, tmp_path):
    folder, first, _ = stored
    for content in ("", "[]", "{}", '{"schema": 1, "digest": 3}', '{"schema": 1, "digest": "0"}'):
        copy = tmp_path / "c"
        shutil.copytree(folder, copy)
        (copy / "2" / "files.json").write_text(content)
        assert_both_refuse(copy, first, "remove it, and the run continues")
        shutil.rmtree(copy)


def test_arrays_that_differ_from_their_digest_without_a_digest_of_the_files(stored, tmp_path):
    """As after a kill between the checkpoint and the digest of its files."""
    folder, first, second = stored
    copy = tmp_path / "c"
    shutil.copytree(folder, copy)
    (copy / "2" / "files.json").unlink()
    np.testing.assert_array_equal(read_checkpoint(copy, 2).state["x"], second["x"])
    meta = copy / "2" / "meta" / "metadata"
    tree = json.loads(meta.read_text())
    meta.write_text(json.dumps({**tree, "digest": "0" * 64}))
    assert_both_refuse(copy, first, "expected the arrays of a checkpoint with digest")


def test_a_checkpoint_of_a_version_without_digests_is_read(stored, tmp_path, assert_identical):
    folder, first, second = stored
    copy = tmp_path / "c"
    shutil.copytree(folder, copy)
    meta = copy / "2" / "meta" / "metadata"
    text = meta.read_text()
    start = text.index(', "digest"')
    meta.write_text(text[:start] + text[text.index('"', start + len(', "digest": "')) + 1 :])
    assert "digest" not in meta.read_text()
    (copy / "2" / "files.json").unlink()
    assert_identical(restored(copy, first)[1], second)
    np.testing.assert_array_equal(read_checkpoint(copy, 2).state["x"], second["x"])


@pytest.mark.parametrize("gone", ["search", "meta"])
def test_half_of_a_checkpoint_is_gone(stored, tmp_path, gone):
    folder, first, _ = stored
    shutil.copytree(folder, tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "2" / gone)
    with pytest.raises(InputError, match=r"^expected a readable checkpoint, got .* in .*/2; remove it, and the run continues"):
        restored(tmp_path / "c", first)


@pytest.mark.exhaustive
@pytest.mark.parametrize("gone", [1, 2])
def test_a_search_goes_on_without_its_damaged_checkpoints(new_run, assert_identical, gone):
    whole, run = new_run("whole"), new_run("damaged")
    state = whole.evolve(every=1)
    run.evolve(every=1, generations=3)
    places = sorted((run.folder / "checkpoints").iterdir(), key=lambda path: path.name)
    assert [path.name for path in places] == ["2", "3"]
    for place in places[2 - gone :]:
        (place / "meta" / "metadata").write_text("{")
    with pytest.raises(InputError, match="expected the files of a checkpoint with digest"):
        run.evolve(every=1)
    lines, rest = [], new_run.Evaluator()
    assert_identical(run.evolve(rest, every=1, log=lines.append), state)
    assert run.lines() == whole.lines()
    assert rest.calls == 2
    assert [line.split(" is damaged")[0] for line in lines] == [
        f"warning: the checkpoint of generation {step}" for step in (3, 2)[:gone]
    ]
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir())[-1] == "4"


@pytest.mark.parametrize("refused", ["_files_digest", "_read_meta"])
@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "files"), OSError(errno.EIO, "disk"), PermissionError(errno.EACCES, "no"), MemoryError()]
)
def test_a_checkpoint_that_can_not_be_read_for_now_is_kept(stored, tmp_path, monkeypatch, assert_identical, refused, error):
    folder, first, second = stored
    copy = shutil.copytree(folder, tmp_path / "c")

    def refuse(place):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, refused, refuse)
        checkpoints, lines = Checkpoints(copy), []
        with pytest.raises(InputError, match=r"^expected to read a checkpoint, got .* in .*/2; correct the cause, and run"):
            _restore(checkpoints, first, KEY, lines.append)
        checkpoints.close()
    assert (checkpoint_steps(copy), lines) == ([1, 2], [])
    assert_identical(restored(copy, first)[1], second)


def test_partial_checkpoints_of_killed_writes_are_removed(stored, tmp_path):
    copy = shutil.copytree(stored[0], tmp_path / "c")
    for name in ("3.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-17"):
        shutil.copytree(copy / "2", copy / name)
    Checkpoints(copy).close()
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2"]


# -------------------------------------------------------------------------------------------------------------- clock


@pytest.mark.exhaustive
def test_a_clock_that_jumps_changes_nothing(new_run, assert_identical, monkeypatch):
    whole, run = new_run("whole"), new_run("jumps")
    state = whole.evolve(every=1)
    rng, now, now_ns = np.random.default_rng(0), time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: now() + float(rng.normal()) * 1e6)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + int(rng.normal() * 1e15))
    with pytest.raises(new_run.Killed):
        run.evolve(new_run.Evaluator(dies_at=8), every=1)
    assert_identical(run.evolve(every=1), state)
    assert run.lines() == whole.lines()
    steps = sorted(int(path.name) for path in (run.folder / "checkpoints").iterdir() if path.name.isdigit())
    assert steps == [3, 4]
