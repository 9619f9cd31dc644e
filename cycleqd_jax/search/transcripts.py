"""The transcripts of a run: the token ids of every individual's replies, one compressed file for each individual."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cycleqd_jax.files import make_folder, write_bytes
from cycleqd_jax.types import Transcript

__all__ = ["Transcripts"]


class Transcripts:
    """A folder of transcripts, ``<id>.json.gz``.

    They are drafts for children: replies do not depend on them. A file that is missing, damaged or of another tokenizer is
    ignored.

    Args:
        folder: the folder of the transcripts; made with the first of them.
        tokenizer: identifies the tokenizer; token ids of another one mean other texts.
        drafts: whether children get the transcripts of their relatives.
    """

    def __init__(self, folder: Path, tokenizer: str, *, drafts: bool = True) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self.drafts = drafts

    def _path(self, identity: int) -> Path:
        return self._folder / f"{identity}.json.gz"

    def write(self, identity: int, transcript: Transcript) -> None:
        """Writes the transcript of an individual; nothing if it has no replies."""
        if not any(any(replies) for replies in transcript.values()):
            return
        make_folder(self._folder)
        record = {"tokenizer": self._tokenizer, "replies": transcript}
        content = json.dumps(record, separators=(",", ":")).encode()
        write_bytes(self._path(identity), gzip.compress(content, 6, mtime=0))

    def read(self, identity: int) -> Transcript | None:
        """The transcript of an individual; None if there is none for this tokenizer."""
        try:
            record: object = json.loads(gzip.decompress(self._path(identity).read_bytes()))
        except (OSError, EOFError, ValueError, zlib.error):
            return None
        if not isinstance(record, dict) or record.get("tokenizer") != self._tokenizer or not _is_valid(record.get("replies")):
            return None
        return record["replies"]

    def of(self, relatives: Iterable[int]) -> list[Transcript]:
        """The transcripts of relatives, as far as there are any; none where children get no drafts.

        Args:
            relatives: ids, the closest first; -1 is none.
        """
        found = (self.read(one) for one in dict.fromkeys(relatives) if self.drafts and one >= 0)
        return [transcript for transcript in found if transcript is not None]


def _is_valid(replies: Any) -> bool:
    """Whether a JSON value is a transcript."""

    def lists(value: Any, depth: int) -> bool:
        if depth == 0:
            return type(value) is int
        return isinstance(value, list) and all(lists(one, depth - 1) for one in value)

    return isinstance(replies, dict) and all(lists(value, 3) for value in replies.values())
