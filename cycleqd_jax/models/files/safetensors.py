"""Safetensors files, header first and in pieces: nothing is in memory that is not being copied.

The format is a length (8 bytes, little-endian), a JSON header with dtype, shape and byte range of every tensor, and the bytes.
Headers alone say whether models fit together, before gigabytes are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from cycleqd_jax.types import InputError

__all__ = ["DTYPES", "SafeTensor", "Tensor", "all_finite", "header_length", "parse_header", "read_headers", "read_index"]
__all__ += ["read_finite", "read_json", "row_chunks", "transpose", "weight_files", "write_safetensors"]

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
"""The weight dtypes that can be read, by safetensors' names."""

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1}
_ITEM_BYTES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1}
_MAX_HEADER = 100_000_000  # as the safetensors library has it
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CHUNK = 8 << 20
"""Bytes of a tensor that are read at once."""

_TILE = 128  # of a transposition: rows and columns that stay in the cache


@runtime_checkable
class Tensor(Protocol):
    """A tensor of a checkpoint that has not been read.

    Attributes:
        file: it lies in, for messages.
        dtype: by safetensors' name.
        shape: as Hugging Face has it.
    """

    @property
    def file(self) -> Path | str:
        """See above."""
        ...

    @property
    def dtype(self) -> str:
        """See above."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """See above."""
        ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of the first dimension."""
        ...


class SafeTensor(NamedTuple):
    """A :class:`Tensor` in a safetensors file, and the offset of its first byte there."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of the first dimension.

        Raises:
            InputError: the file has become shorter.
        """
        dtype, row = DTYPES[self.dtype], math.prod(self.shape[1:])
        array = np.fromfile(self.file, dtype, (stop - start) * row, offset=self.offset + start * row * dtype.itemsize)
        if array.size != (stop - start) * row:
            raise InputError(f"expected {self.file} to stay as it was, but it was cut while it was read: restore the file")
        return array.reshape(stop - start, *self.shape[1:])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: the file is missing, or is not a JSON object.
    """
    if not path.is_file():
        raise InputError(
            f"expected a Hugging Face model folder with {path.name}, got no such file in {path.parent}: correct the path"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last of brackets within brackets
        raise InputError(f"expected JSON in {path}, got {error}: restore the file") from error
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object in {path}, got {type(value).__name__}: restore the file")
    return value


def _plain_name(name: str, where: Path | str) -> str:
    """A file name that stays in its folder.

    Raises:
        InputError: it has a separator, or is ``..`` or empty.
    """
    if not name or name in (".", "..") or any(sign in name for sign in "/\\\0:"):
        raise InputError(f"expected plain file names in {where}, got {name!r}, which leads out of the folder: restore the file")
    return name


def read_index(path: Path) -> dict[str, str]:
    """The ``weight_map`` of an index: the file of every tensor.

    Raises:
        InputError: there is none, a file's name is unsafe, or its weights are pickled.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"expected a weight_map of tensor names to files in {path}, got none: restore the file")
    pickled = sorted(file for file in weight_map.values() if file.endswith(_PICKLED))
    if pickled:
        raise _pickled(f"safetensors files in {path}", pickled[0])
    return {name: _plain_name(file, path) for name, file in weight_map.items()}


def weight_files(folder: Path) -> list[str]:
    """Files of a model folder that its weights are read from, whether they are there or still to be downloaded.

    Raises:
        InputError: the index is broken, or names unsafe files.
    """
    if (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
        return sorted(set(read_index(folder / INDEX).values()))
    return [SINGLE]


def read_headers(folder: Path) -> dict[str, SafeTensor]:
    """All tensors of a model folder, from one file or from the shards of its index.

    Raises:
        InputError: a file is missing, pickled, truncated or not safetensors; or the index names a tensor that its file lacks.
    """
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if not (folder / INDEX).is_file():
        endings = (*_PICKLED, *(f"{ending}.index.json" for ending in _PICKLED))
        pickled = sorted(path.name for path in folder.iterdir() if path.name.endswith(endings))
        if pickled:
            raise _pickled(f"{SINGLE} in {folder}", pickled[0])
        raise InputError(f"expected {SINGLE} or {INDEX} in {folder}, got neither: correct the path or finish the download")
    weight_map = read_index(folder / INDEX)
    tensors: dict[str, SafeTensor] = {}
    for file in sorted(set(weight_map.values())):
        if not (folder / file).is_file():
            raise InputError(f"expected the shard {file} that {folder / INDEX} names, got no such file: finish the download")
        header = read_header(folder / file)
        for name in (name for name, owner in weight_map.items() if owner == file):
            if name not in header:
                raise InputError(
                    f"expected the tensor {name} in {folder / file} as the index says, got none: restore the shard"
                )
            tensors[name] = header[name]
    return tensors


def read_header(path: Path) -> dict[str, SafeTensor]:
    """All tensors of one file.

    Raises:
        InputError: it can't be read, is truncated or not safetensors.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(header_length(path, file.read(8), size))
    except OSError as error:
        raise InputError(f"expected a safetensors file, got {error}: correct the path or its permissions") from error
    return parse_header(path, header, size)


def header_length(path: Path, start: bytes, size: int) -> int:
    """Bytes of the header, without the length before it.

    Args:
        path: of the file.
        start: its first 8 bytes.
        size: of the file, bytes.

    Raises:
        InputError: the file is too short for it.
    """
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, _MAX_HEADER):
        raise _broken(path, f"{size} bytes where its header announces {8 + length}")
    return length


def parse_header(path: Path, header: bytes, size: int) -> dict[str, SafeTensor]:
    """All tensors that a header names.

    Args:
        path: of the file.
        header: the JSON, without the length before it.
        size: of the file, bytes.

    Raises:
        InputError: the header is not safetensors', or does not fit the size.
    """
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = {
            name: (str(entry["dtype"]), _counts(entry["shape"]), _counts(entry["data_offsets"]))
            for name, entry in entries.items()
        }
        end = max((offsets[1] for _, _, offsets in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise _broken(path, f"an unreadable header ({type(error).__name__}: {error})") from error
    data = 8 + len(header)
    if size != data + end:
        raise _broken(path, f"{size} bytes where its header announces {data + end}")
    result, last = {}, 0
    for name, (dtype, shape, offsets) in sorted(tensors.items(), key=lambda item: item[1][2]):
        begin, stop = offsets if len(offsets) == 2 else (-1, -1)
        if begin != last or min(shape, default=0) < 0 or stop - begin != math.prod(shape) * _ITEM_BYTES.get(dtype, -1):
            raise _broken(path, f"a tensor {name} at bytes {begin} to {stop} for {dtype} {list(shape)} after byte {last}")
        result[name] = SafeTensor(path, dtype, shape, data + begin)
        last = stop
    return result


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, data: Iterable[np.ndarray]) -> None:
    """Writes tensors of one dtype as they come.

    Args:
        path: of the file.
        shapes: of the tensors, by name, in their order.
        dtype: one of :data:`DTYPES`.
        data: the tensors, in order.
    """
    name_of = {value: name for name, value in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": name_of[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin on a multiple of eight bytes, as safetensors has it
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, shape), array in zip(shapes.items(), data, strict=True):
            assert (array.shape, array.dtype) == (shape, dtype), name
            file.write(np.ascontiguousarray(array).view(np.uint8).data)


def row_chunks(tensor: Tensor, first: int = 0, last: int | None = None) -> Iterator[tuple[int, int]]:
    """Ranges of rows, from ``first`` to ``last``, of at most :data:`CHUNK` bytes each."""
    step = max(1, CHUNK // (math.prod(tensor.shape[1:]) * DTYPES[tensor.dtype].itemsize))
    stop = tensor.shape[0] if last is None else last
    return ((start, min(start + step, stop)) for start in range(first, stop, step))


def read_finite(name: str, tensor: Tensor, start: int, stop: int) -> np.ndarray:
    """Rows of a tensor, checked.

    Raises:
        InputError: a number is NaN or infinite.
    """
    rows = tensor.read(start, stop)
    if not all_finite(rows):
        raise InputError(f"expected finite weights, got NaN or Inf in tensor {name} of {tensor.file}: use a sound one")
    return rows


def all_finite(array: np.ndarray) -> bool:
    """Whether no number is NaN or infinite, for any dtype of :data:`DTYPES`."""
    if array.dtype == np.float32:
        return bool(np.isfinite(array).all())
    exponent = 0x7F80 if array.dtype == ml_dtypes.bfloat16 else 0x7C00  # all ones: NaN or infinite
    return not ((array.view(np.uint16) & exponent) == exponent).any()


def transpose(source: np.ndarray, target: np.ndarray) -> None:
    """``target[...] = source.T`` for two matrices, tile by tile: three times as fast as NumPy when they exceed the cache."""
    rows, columns = source.shape
    for i in range(0, rows, _TILE):
        for j in range(0, columns, _TILE):
            target[j : j + _TILE, i : i + _TILE] = source[i : i + _TILE, j : j + _TILE].T


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError(f"{str(values)[:80]} where whole numbers belong")
    return tuple(values)


def _pickled(expected: str, file: str) -> InputError:
    return InputError(
        f"expected {expected}, got pickled weights ({file}), which run code when they are read: convert them with "
        "transformers, AutoModelForCausalLM.from_pretrained(folder).save_pretrained(other_folder)"
    )


def _broken(path: Path, what: str) -> InputError:
    return InputError(f"expected a whole safetensors file, got {what} in {path}: download or export it again")
