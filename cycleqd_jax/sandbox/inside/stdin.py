"""The standard input of a program: a file without a name."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator

__all__ = ["open_input"]


@contextlib.contextmanager
def open_input(text: str | int) -> Iterator[io.FileIO]:
    """A file with the text, at its beginning; /dev/null for an empty text. A descriptor is an input that is already open."""
    if isinstance(text, int):
        with open(text, "rb", buffering=0) as file:
            yield file
        return
    if not text:
        with open("/dev/null", "rb", buffering=0) as file:
            yield file
        return
    view = memoryview(text.encode("utf-8", "surrogatepass"))
    if hasattr(os, "memfd_create"):
        where = os.memfd_create("stdin")
    else:
        where, path = tempfile.mkstemp()
        os.unlink(path)
    with open(where, "w+b", buffering=0) as file:
        while view:
            view = view[file.write(view) :]
        file.seek(0)
        yield file
