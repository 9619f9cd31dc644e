"""The journal: whole lines or none."""

from __future__ import annotations

import json
import math

import pytest

from cycleqd_jax.search import Journal
from cycleqd_jax.search.journal import FIELDS
from cycleqd_jax.types import InputError


def record(identity, **more):
    return dict.fromkeys(FIELDS) | {"id": identity, "scores": {"a": 0.25, "b": 1 / 3}, **more}


def test_append_and_read_back(tmp_path):
    path = tmp_path / "history.jsonl"
    journal = Journal(path)
    assert len(journal) == 0
    assert journal.get(0) is None
    assert not path.exists()
    for i in range(3):
        journal.append(record(i, omega=(0.1, 1 / 3)))
    for journal in (journal, Journal(path)):
        assert len(journal) == 3
        assert journal.get(1) == record(1, omega=[0.1, 1 / 3])  # the same before and after a restart
        assert journal.scores(2, ["b", "a"]) == [1 / 3, 0.25]
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_every_record_is_on_disk_at_once(tmp_path):
    journal = Journal(tmp_path / "history.jsonl")
    for i in range(3):
        journal.append(record(i))
        assert len(Journal(journal.path)) == i + 1


@pytest.mark.parametrize("kept", range(1, 40, 6))
def test_a_torn_last_line_is_dropped(tmp_path, kept):
    path = tmp_path / "history.jsonl"
    journal = Journal(path)
    journal.append(record(0))
    whole = path.read_bytes()
    journal.append(record(1))
    path.write_bytes(path.read_bytes()[: len(whole) + kept])
    again = Journal(path)
    assert len(again) == 1
    assert path.read_bytes() == whole
    again.append(record(1))
    assert len(Journal(path)) == 2


def test_a_line_that_lacks_only_its_newline_is_torn(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps(record(0)))
    assert len(Journal(path)) == 0
    assert path.read_bytes() == b""


@pytest.mark.parametrize("bad", ["{", "[1, 2]", '{"id": 1, "scores": {}}', "7", "", "\udc80", json.dumps(record(0))])
def test_a_broken_line_elsewhere_is_named(tmp_path, bad):
    path = tmp_path / "history.jsonl"
    lines = [json.dumps(record(0)), bad, json.dumps(record(2)), ""]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"history\.jsonl, line 2"):
        Journal(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_json_are_refused(tmp_path, value):
    journal = Journal(tmp_path / "history.jsonl")
    journal.append(record(0))
    before = journal.path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        journal.append(record(1, scores={"a": value}))
    assert journal.path.read_bytes() == before
    assert journal.get(1) is None


def test_the_quarantined_have_nan(tmp_path):
    journal = Journal(tmp_path / "history.jsonl")
    journal.append(record(0, scores=None, error="not finite"))
    assert all(math.isnan(f) for f in journal.scores(0, ["a", "b"]))


def test_scores_of_other_tasks_are_refused(tmp_path):
    journal = Journal(tmp_path / "history.jsonl")
    journal.append(record(0))
    with pytest.raises(InputError, match="another config"):
        journal.scores(0, ["a", "c"])


def test_lines_out_of_turn_are_brought_into_order(tmp_path):
    journal, tidy = Journal(tmp_path / "history.jsonl"), Journal(tmp_path / "tidy.jsonl")
    for i in range(4):
        tidy.append(record(i, error=f"é{i}"))
    for i in (0, 2, 3, 1):
        journal.append(record(i, error=f"é{i}"))
    journal.sort()
    assert journal.path.read_bytes() == tidy.path.read_bytes()
    for some in (journal, tidy):
        some.append(record(4))
    assert journal.path.read_bytes() == tidy.path.read_bytes()
    before = journal.path.stat()
    journal.sort()
    assert journal.path.stat() == before  # nothing was to be done


@pytest.mark.parametrize("written", [0, 5, None])
def test_after_an_interrupted_line_the_next_is_whole(tmp_path, monkeypatch, written):
    """Ctrl-C may come while a line is written, and when it is but nobody knows yet."""
    import os

    journal = Journal(tmp_path / "history.jsonl")
    journal.append(record(0))
    size = journal.path.stat().st_size

    def interrupted(descriptor):
        if written is not None:
            os.ftruncate(descriptor, size + written)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.append(record(1, error="interrupted"))
    assert journal.get(1) is None
    for i in (1, 2):
        journal.append(record(i))
    again = Journal(journal.path)
    assert [again.get(i) for i in range(3)] == [record(i) for i in range(3)]
