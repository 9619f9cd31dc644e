"""Transcripts of a run."""

from __future__ import annotations

import dataclasses
import gzip

import pytest

from cycleqd_jax.individual import Individual
from cycleqd_jax.search import Journal, Transcripts
from cycleqd_jax.search.common import relatives_of

REPLIES = {"sql": [[[1, 2], [3]], []], "python": [[[4, 70000]]]}


def test_transcripts_are_read_as_they_were_written(tmp_path):
    transcripts = Transcripts(tmp_path / "transcripts", "t")
    assert transcripts.of([0, 1]) == []
    transcripts.write(3, REPLIES)
    transcripts.write(4, {"sql": [[], []]})
    assert transcripts.read(3) == REPLIES
    assert transcripts.read(4) is None
    assert transcripts.of([-1, 4, 3, 3]) == [REPLIES]
    content = (tmp_path / "transcripts" / "3.json.gz").read_bytes()
    transcripts.write(3, REPLIES)
    assert (tmp_path / "transcripts" / "3.json.gz").read_bytes() == content
    assert Transcripts(tmp_path / "transcripts", "t", drafts=False).of([3]) == []
    assert Transcripts(tmp_path / "transcripts", "another").read(3) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(b"{}")[:-9],
        gzip.compress(b"[]"),
        gzip.compress(b'{"tokenizer":"t","replies":{"sql":[[["x"]]]}}'),
        gzip.compress(b'{"tokenizer":"t","replies":[]}'),
    ],
    ids=["empty", "no gzip", "cut off", "a list", "text as tokens", "a list of replies"],
)
def test_damaged_files_are_ignored(tmp_path, content):
    (tmp_path / "0.json.gz").write_bytes(content)
    assert Transcripts(tmp_path, "t").read(0) is None


def test_relatives_of_coefficients_are_the_nearest_individuals(tmp_path):
    child = Individual(id=0, generation=0, expert=None, active=None, parents=(-1, -1), omega=None, key=(0, 0))
    journal = Journal(tmp_path / "history.jsonl")
    for identity, coefficients in enumerate([None, None, (1.0, 0.9), (0.5, 0.5), (0.4, 0.5)]):
        scores = None if identity == 3 else {"sql": 0.0}  # a quarantined one has no replies
        given = None if coefficients is None else (coefficients,)
        journal.append(dataclasses.replace(child, id=identity, coefficients=given, scores=scores))
    for near, relatives in (((0.5, 0.5), [4, 2, 0]), ((0.0, 1.1), [1, 4, 2]), ((9.0, 9.0), [2, 0, 1])):
        assert relatives_of(dataclasses.replace(child, id=5, coefficients=(near,)), ["sql"], journal) == relatives
    assert relatives_of(dataclasses.replace(child, id=2, coefficients=((1.0, 0.9),)), ["sql"], journal) == [0, 1]
    assert relatives_of(dataclasses.replace(child, id=5, parents=(4, 2), active="sql"), ["sql"], journal) == [4, 2, 0]
