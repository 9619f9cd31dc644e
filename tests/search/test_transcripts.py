"""Transcripts of a run."""

from __future__ import annotations

import gzip

import pytest

from cycleqd_jax.search import Transcripts

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
