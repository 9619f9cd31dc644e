"""The journal: every line is written whole or not at all."""

from __future__ import annotations

import gc
import json
import math
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cycleqd_jax.individual import Individual
from cycleqd_jax.search import Journal
from cycleqd_jax.search import journal as module
from cycleqd_jax.types import InputError


def child(identity, **more):
    fields = {"parents": (0, 1), "omega": (0.1, 1 / 3), "key": (1, 2), "scores": {"a": 0.25, "b": 1 / 3}, **more}
    return Individual(identity, 0, None, "a", **fields)


def test_append_and_read_back(tmp_path):
    path = tmp_path / "history.jsonl"
    journal = Journal(path)
    assert len(journal) == 0
    assert journal.get(0) is None
    assert not path.exists()
    for i in range(3):
        journal.append(child(i))
    for journal in (journal, Journal(path)):
        assert len(journal) == 3
        assert journal.get(1) == child(1)  # the same before and after a restart
        assert journal.scores(2, ["b", "a"]) == [1 / 3, 0.25]
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_every_line_is_on_disk_at_once(tmp_path):
    journal = Journal(tmp_path / "history.jsonl")
    for i in range(3):
        journal.append(child(i))
        assert len(Journal(journal.path)) == i + 1


def test_the_first_result_of_an_id_stays(tmp_path):
    journal = Journal(tmp_path / "history.jsonl")
    for i in (0, 2, 1):
        journal.append(child(i))
    before = journal.path.read_bytes()
    journal.append(child(2, scores={"a": 1.0, "b": 1.0}))
    assert journal.path.read_bytes() == before
    for one in (journal, Journal(journal.path)):
        assert len(one) == 3
        assert one[2] == child(2)
    journal.take_back([2])
    journal.append(child(2, scores={"a": 1.0, "b": 1.0}))  # evaluated again
    assert Journal(journal.path).scores(2, ["a", "b"]) == [1.0, 1.0]


def test_results_that_several_threads_repeat_are_written_once(tmp_path):
    journal = Journal(tmp_path / "history.jsonl")
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(journal.append, child(i % 5)) for i in range(40)]:
            done.result()
    assert Journal(journal.path).ids() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kept", range(1, 40, 6))
def test_an_incomplete_last_line_is_removed(tmp_path, kept):
    path = tmp_path / "history.jsonl"
    journal = Journal(path)
    journal.append(child(0))
    whole = path.read_bytes()
    journal.append(child(1))
    path.write_bytes(path.read_bytes()[: len(whole) + kept])
    again = Journal(path)
    assert len(again) == 1
    assert path.read_bytes() == whole
    again.append(child(1))
    assert len(Journal(path)) == 2


def test_a_line_without_its_newline_is_incomplete(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text(child(0).to_json())
    assert len(Journal(path)) == 0
    assert path.read_bytes() == b""


@pytest.mark.parametrize("bad", ["{", "[1, 2]", '{"id": 1, "scores": {}}', "7", "", "\udc80", child(0).to_json()])
def test_the_error_names_an_invalid_line(tmp_path, bad):
    path = tmp_path / "history.jsonl"
    lines = [child(0).to_json(), bad, child(2).to_json(), ""]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"^expected .*, got .* in line 2 of .*history\.jsonl; restore the file$"):
        Journal(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_does_not_have_are_refused(tmp_path, value):
    journal = Journal(tmp_path / "history.jsonl")
    journal.append(child(0))
    before = journal.path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        journal.append(child(1, scores={"a": value}))
    assert journal.path.read_bytes() == before
    assert journal.get(1) is None


def test_scores_of_quarantined_individuals_are_nan(tmp_path):
    journal = Journal(tmp_path / "history.jsonl")
    journal.append(child(0, scores=None, error="not finite"))
    assert all(math.isnan(f) for f in journal.scores(0, ["a", "b"]))


def test_scores_of_other_tasks_are_refused(tmp_path):
    journal = Journal(tmp_path / "history.jsonl")
    journal.append(child(0))
    with pytest.raises(InputError, match="tasks a, c, got scores of a, b for individual 0"):
        journal.scores(0, ["a", "c"])


def test_sort_brings_lines_into_order(tmp_path):
    journal, ordered = Journal(tmp_path / "history.jsonl"), Journal(tmp_path / "ordered.jsonl")
    for i in range(4):
        ordered.append(child(i, error=f"é{i}"))
    for i in (0, 2, 3, 1):
        journal.append(child(i, error=f"é{i}"))
    journal.sort()
    assert journal.path.read_bytes() == ordered.path.read_bytes()
    for some in (journal, ordered):
        some.append(child(4))
    assert journal.path.read_bytes() == ordered.path.read_bytes()
    before = journal.path.stat()
    journal.sort()
    assert journal.path.stat() == before  # no change, no write


@pytest.mark.parametrize("written", [0, 5, None])
def test_the_line_after_an_interrupted_one_is_whole(tmp_path, monkeypatch, written):
    """Ctrl-C may come while a line is written, and after it is written but before the journal has registered it."""
    import os

    journal = Journal(tmp_path / "history.jsonl")
    journal.append(child(0))
    size = journal.path.stat().st_size

    def interrupted(descriptor):
        if written is not None:
            os.ftruncate(descriptor, size + written)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.append(child(1, error="interrupted"))
    assert journal.get(1) is None
    for i in (1, 2):
        journal.append(child(i))
    again = Journal(journal.path)
    assert [again.get(i) for i in range(3)] == [child(i) for i in range(3)]


def test_the_items_of_individuals(tmp_path):
    def one(identity, items):
        scores = {task: float(np.mean(of)) for task, of in items.items()} if items else None
        return Individual(identity, -1, "a", None, (-1, -1), None, None, scores=scores, items=items)

    journal = Journal(tmp_path / "history.jsonl")
    for individual in (one(0, {"a": [0.0, 1.0], "b": [0.5]}), one(1, {}), one(2, {"b": [1.0], "a": [1.0, 0.0]})):
        journal.append(individual)
    np.testing.assert_array_equal(journal.items(range(3), ("a", "b")), [[0, 1, 0.5], [np.nan] * 3, [1, 0, 1]])
    np.testing.assert_array_equal(journal.items([2], ("b", "a")), [[1, 1, 0]])
    assert journal.items([1], ("a", "b")).shape == (1, 3)
    journal.append(one(3, {"a": [0.0], "b": [0.5, 1.0]}))
    with pytest.raises(
        InputError, match=r"scores of \[2, 1\] problems of a, b for individual 3, as for individual 0, got \[1, 2\]"
    ):
        journal.items([0, 3], ("a", "b"))


def test_a_line_without_a_checksum_after_others_is_refused(tmp_path):
    path = tmp_path / "history.jsonl"
    journal = Journal(path)
    journal.append(child(0))
    journal.append(child(1))
    first, second = ({k: v for k, v in json.loads(line).items() if k != "checksum"} for line in path.read_text().splitlines())
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps(first) + "\n" + lines[1])  # begun by an older version
    assert Journal(path).ids() == [0, 1]
    path.write_text(lines[0] + json.dumps(second) + "\n")
    with pytest.raises(InputError, match=r"expected a checksum, as in the line before, got none in line 2 of .*; restore"):
        Journal(path)


def test_individuals_that_are_not_recent_are_read_from_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RECENT", 3)
    path = tmp_path / "history.jsonl"
    journal = Journal(path)
    for i in (0, 2, 1, 4, 3, 5, 6):
        journal.append(child(i, scores={"a": i / 7, "b": 0.0}))

    def agree(one):
        assert [one[i].scores["a"] for i in range(len(one))] == [i / 7 for i in range(len(one))]
        assert len(one._recent) == 3

    agree(journal)
    watching = Journal(path, read_only=True)
    journal.sort()
    agree(journal)
    journal.take_back([5])
    assert journal.ids() == [0, 1, 2, 3, 4, 6]
    assert 5 not in journal
    agree(watching)  # the file that it has read is not there any more
    journal.append(child(5, scores={"a": 5 / 7, "b": 0.0}))
    journal.sort()
    agree(journal)
    agree(Journal(path))


@pytest.mark.exhaustive
def test_memory_does_not_grow_with_the_journal(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RECENT", 10)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    journal = Journal(tmp_path / "history.jsonl")
    items = {"a": [i / 100 for i in range(100)], "b": [1 / 3] * 100}
    tracemalloc.start()
    try:
        sizes = []
        for i in range(1200):
            journal.append(child(i, items={task: [x + i for x in found] for task, found in items.items()}))
            if i % 600 == 599:
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert (sizes[1] - sizes[0]) / 600 < 200  # bytes for each individual, whose items alone have 6,400


def test_a_file_that_became_shorter_is_not_filled(tmp_path):
    journal = Journal(tmp_path / "history.jsonl")
    journal.append(child(0))
    journal.append(child(1))
    journal.path.unlink()
    with pytest.raises(InputError, match=r"expected at least \d+ bytes, which this search has written, got 0 in .*; restore"):
        journal.append(child(2))
    assert journal.path.read_bytes() == b""


def test_a_folder_in_its_place_is_named(tmp_path):
    (tmp_path / "history.jsonl").mkdir()
    with pytest.raises(IsADirectoryError) as refused:
        Journal(tmp_path / "history.jsonl", read_only=True)
    assert refused.value.filename == str(tmp_path / "history.jsonl")
