"""The header of a GGUF file: key-value pairs and the table of tensors.

The format: magic ``GGUF``, version, counts, typed key-value pairs, a table of tensors (name, shape innermost first, type,
offset), padding, and the tensors' blocks.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

from cycleqd_jax.types import InputError

__all__ = ["Entry", "Header", "corrupt", "read_header"]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)


class Entry(NamedTuple):
    """The description of a tensor.

    Attributes:
        shape: outermost dimension first.
        kind: ggml's number of its type.
        offset: the position of its first byte in the file.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int


class Header(NamedTuple):
    """The header of a file.

    Attributes:
        path: the path of the file.
        metadata: the key-value pairs.
        tensors: the tensors by llama.cpp's names.
        size: the size of the file, in bytes.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Entry]
    size: int

    def get(self, key: str, kind: type, default: object = ...) -> Any:
        """A value of the metadata.

        Raises:
            InputError: the value is of another type than ``kind``, or it is missing and there is no default.
        """
        value = self.metadata.get(key, default)
        if value is ... or (value is not default and not isinstance(value, kind)):
            got = "none" if value is ... else repr(str(value)[:80])
            raise InputError(
                f"expected a value of type {kind.__name__} for the key {key} in {self.path}, got {got}; convert the model "
                "again with a current llama.cpp"
            )
        return value


def corrupt(path: Path, what: str) -> InputError:
    """The error for a file that is truncated or invalid."""
    return InputError(f"expected a whole GGUF file of version 2 or 3, got {what} in {path}; download or convert it again")


def read_header(path: Path) -> Header:
    """Reads everything but the tensors.

    Raises:
        InputError: the file is missing, truncated, corrupt, or no GGUF of version 2 or 3.
    """
    if not os.path.isfile(path):  # unlike path.is_file(), no error for a name that is too long
        raise InputError(f"expected a GGUF file, got no file {path}; correct the path")
    size = path.stat().st_size
    if size < 24:
        raise corrupt(path, f"{size} bytes")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise corrupt(path, f"the magic {data[:4]!r}")
        (version,) = struct.unpack_from("<I", data, 4)
        if version not in _VERSIONS:
            swapped = version & 0xFFFF == 0
            raise corrupt(path, "big-endian numbers" if swapped else f"version {version}")
        reader = _Reader(data, 8)
        try:
            count, pairs = reader.scalar("Q"), reader.scalar("Q")
            metadata: dict[str, Any] = {}
            for _ in range(pairs):
                key = reader.string()
                if key in metadata:
                    raise corrupt(path, f"the key {key} twice")
                metadata[key] = reader.value(reader.scalar("I"))
            raw: dict[str, tuple[tuple[int, ...], int, int]] = {}
            for _ in range(count):
                name = reader.string()
                if name in raw:
                    raise corrupt(path, f"the tensor {name} twice")
                dims = [reader.scalar("Q") for _ in range(reader.scalar("I"))]
                raw[name] = (tuple(reversed(dims)), reader.scalar("I"), reader.scalar("Q"))
        except (struct.error, UnicodeDecodeError, ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise corrupt(path, f"an unreadable header near byte {reader.at} of {size} ({error})") from error
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise corrupt(path, f"general.alignment {alignment!r}")
    start = -(-reader.at // alignment) * alignment
    return Header(path, metadata, {k: Entry(shape, kind, start + at) for k, (shape, kind, at) in raw.items()}, size)


class _Reader:
    """Reads numbers and strings one after another; reading past the end is an error."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self.data, self.at = data, at

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        return self._bytes(self.scalar("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(self._code(kind))
        kind, length = self.scalar("I"), self.scalar("Q")
        if kind in (_STRING, _ARRAY):
            if length > len(self.data) - self.at:
                raise ValueError(f"an array of {length} items")
            return [self.value(kind) for _ in range(length)]
        code = self._code(kind)
        return list(struct.unpack(f"<{length}{code}", self._bytes(length * struct.calcsize("<" + code))))

    def _bytes(self, length: int) -> bytes:
        if length > len(self.data) - self.at:
            raise ValueError(f"{length} bytes, more than the {len(self.data) - self.at} that are left")
        self.at += length
        return self.data[self.at - length : self.at]

    @staticmethod
    def _code(kind: int) -> str:
        if kind not in _SCALARS:
            raise ValueError(f"a value of the unknown type {kind}")
        return _SCALARS[kind]
