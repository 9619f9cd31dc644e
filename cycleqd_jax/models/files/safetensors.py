"""Safetensors files: headers, and tensors read in chunks of rows.

The format is a length (8 bytes, little-endian), a JSON header with dtype, shape and byte range of every tensor, and the bytes.
Headers are enough to check that models are compatible, before gigabytes are read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from cycleqd_jax.models.folder import read_json
from cycleqd_jax.types import InputError

__all__ = [
    "CHUNK",
    "DTYPES",
    "INDEX",
    "SINGLE",
    "Entry",
    "SafeTensor",
    "Tensor",
    "all_finite",
    "header_length",
    "parse_header",
    "read_finite",
    "read_header",
    "read_headers",
    "read_index",
    "row_chunks",
    "transpose",
    "weight_files",
    "write_safetensors",
    "write_shards",
]

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
"""The supported dtypes of weights, by safetensors' names."""

SINGLE = "model.safetensors"
"""The weights of a model in one file."""

INDEX = "model.safetensors.index.json"
"""The index of a model in several files."""

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1}
_ITEM_BYTES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1}
_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CHUNK = 8 << 20
"""The most bytes of a tensor that are read at once."""

_TILE = 128  # rows and columns of a transposition that fit in the cache


@runtime_checkable
class Tensor(Protocol):
    """A tensor of a checkpoint that has not been read."""

    @property
    def file(self) -> Path | str:
        """The name of its file, for messages."""
        ...

    @property
    def dtype(self) -> str:
        """Its dtype, by safetensors' name."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in Hugging Face's layout."""
        ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of the first dimension."""
        ...


class Entry(NamedTuple):
    """A tensor to write.

    Attributes:
        name: its name.
        shape: its shape.
        read: returns the tensor.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class SafeTensor(NamedTuple):
    """A :class:`Tensor` in a safetensors file; ``offset`` is the position of its first byte."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of the first dimension.

        Raises:
            InputError: the file was truncated after its header was read.
        """
        dtype, row = DTYPES[self.dtype], math.prod(self.shape[1:])
        array = np.fromfile(self.file, dtype, (stop - start) * row, offset=self.offset + start * row * dtype.itemsize)
        if array.size != (stop - start) * row:
            raise InputError(f"expected {stop} rows of a tensor in {self.file}, got a truncated file; restore the file")
        return array.reshape(stop - start, *self.shape[1:])


def _plain_name(name: str, where: Path | str) -> str:
    """Checks that a file name does not leave its folder.

    Raises:
        InputError: the name has a separator, or is ``..`` or empty.
    """
    if not name or name in (".", "..") or any(sign in name for sign in "/\\\0:"):
        raise InputError(f"expected plain file names in {where}, got {name!r}; restore the file")
    return name


def read_index(path: Path) -> dict[str, str]:
    """The file of every tensor, from the ``weight_map`` of an index.

    Raises:
        InputError: there is no weight map, the name of a file is unsafe, or weights are pickled.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"expected a weight_map of tensor names to files in {path}, got none; restore the file")
    pickled = sorted(file for file in weight_map.values() if file.endswith(_PICKLED))
    if pickled:
        raise _pickled(f"safetensors files in {path}", pickled[0])
    return {name: _plain_name(file, path) for name, file in weight_map.items()}


def weight_files(folder: Path) -> list[str]:
    """The names of the files with the weights of a model folder, including files that have not been downloaded yet.

    Raises:
        InputError: the index is corrupt or names unsafe files.
    """
    if (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
        return sorted(set(read_index(folder / INDEX).values()))
    return [SINGLE]


def read_headers(folder: Path) -> dict[str, SafeTensor]:
    """All tensors of a model folder, in one file or in the shards of its index.

    Raises:
        InputError: a file is missing, pickled, truncated or not safetensors; or a tensor of the index is not in its file.
    """
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if not (folder / INDEX).is_file():
        endings = (*_PICKLED, *(f"{ending}.index.json" for ending in _PICKLED))
        pickled = sorted(path.name for path in folder.iterdir() if path.name.endswith(endings))
        if pickled:
            raise _pickled(f"{SINGLE} in {folder}", pickled[0])
        raise InputError(f"expected {SINGLE} or {INDEX} in {folder}, got neither; correct the path or finish the download")
    weight_map = read_index(folder / INDEX)
    tensors: dict[str, SafeTensor] = {}
    for file in sorted(set(weight_map.values())):
        if not (folder / file).is_file():
            raise InputError(f"expected the shard {file}, as in {folder / INDEX}, got no such file; finish the download")
        header = read_header(folder / file)
        for name in (name for name, owner in weight_map.items() if owner == file):
            if name not in header:
                raise InputError(f"expected the tensor {name} in {folder / file}, as in the index, got none; restore the shard")
            tensors[name] = header[name]
    return tensors


def read_header(path: Path) -> dict[str, SafeTensor]:
    """All tensors of one file.

    Raises:
        InputError: the file can't be read, is truncated or is not safetensors.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(header_length(path, file.read(8), size))
    except OSError as error:
        raise InputError(f"expected a safetensors file, got {error}; correct the path or its permissions") from error
    return parse_header(path, header, size)


def header_length(path: Path, start: bytes, size: int) -> int:
    """The number of bytes of the header, without the length before it.

    Args:
        path: the path of the file.
        start: the first 8 bytes of the file.
        size: the size of the file, in bytes.

    Raises:
        InputError: the file is shorter than its header.
    """
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, _MAX_HEADER):
        raise _broken(path, f"{size} bytes instead of the {8 + length} of its header")
    return length


def parse_header(path: Path, header: bytes, size: int) -> dict[str, SafeTensor]:
    """All tensors of a header.

    Args:
        path: the path of the file.
        header: the JSON, without the length before it.
        size: the size of the file, in bytes.

    Raises:
        InputError: the header is invalid, does not match the size, or has a dtype whose size is unknown.
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
        raise _broken(path, f"{size} bytes instead of the {data + end} of its header")
    result, last = {}, 0
    for name, (dtype, shape, offsets) in sorted(tensors.items(), key=lambda item: item[1][2]):
        if dtype not in _ITEM_BYTES and re.fullmatch(r"[A-Z][A-Z0-9_]{0,19}", dtype):
            raise InputError(
                f"expected dtype {', '.join(DTYPES)} for tensor {name} in {path}, got {dtype}; save the weights in one of these"
            )
        begin, stop = offsets if len(offsets) == 2 else (-1, -1)
        if begin != last or min(shape, default=0) < 0 or stop - begin != math.prod(shape) * _ITEM_BYTES.get(dtype, -1):
            raise _broken(path, f"a tensor {name} at bytes {begin} to {stop} for {dtype} {list(shape)} after byte {last}")
        result[name] = SafeTensor(path, dtype, shape, data + begin)
        last = stop
    return result


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, data: Iterable[np.ndarray]) -> None:
    """Writes tensors of one dtype, one at a time.

    Args:
        path: the path of the file.
        shapes: the shapes of the tensors, by name, in order.
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
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of eight bytes, as the library writes it
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, shape), array in zip(shapes.items(), data, strict=True):
            assert (array.shape, array.dtype) == (shape, dtype), name
            file.write(np.ascontiguousarray(array).view(np.uint8).data)


def write_shards(folder: Path, tensors: Iterable[Entry], dtype: np.dtype, max_shard_bytes: int) -> None:
    """Writes the weights of a model, one tensor at a time, in one file or in shards with an index.

    Args:
        folder: the folder of the model.
        tensors: the tensors, in order; each is read when it is written.
        dtype: one of :data:`DTYPES`.
        max_shard_bytes: the most bytes of a file, unless one tensor is larger.
    """
    shards: list[list[Entry]] = [[]]
    total = size = 0
    for tensor in tensors:
        nbytes = math.prod(tensor.shape) * dtype.itemsize
        if shards[-1] and size + nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += nbytes
        total += nbytes
    weight_map = {}
    for i, shard in enumerate(shards):
        file = SINGLE if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        shapes = {tensor.name: tensor.shape for tensor in shard}
        write_safetensors(folder / file, shapes, dtype, (tensor.read() for tensor in shard))
        weight_map |= dict.fromkeys(shapes, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def row_chunks(tensor: Tensor, first: int = 0, last: int | None = None) -> Iterator[tuple[int, int]]:
    """Ranges of rows from ``first`` to ``last`` with at most :data:`CHUNK` bytes each."""
    step = max(1, CHUNK // (math.prod(tensor.shape[1:]) * DTYPES[tensor.dtype].itemsize))
    stop = tensor.shape[0] if last is None else last
    return ((start, min(start + step, stop)) for start in range(first, stop, step))


def read_finite(name: str, tensor: Tensor, start: int, stop: int) -> np.ndarray:
    """Reads rows of a tensor and checks them.

    Raises:
        InputError: the rows have NaN or infinity.
    """
    rows = tensor.read(start, stop)
    if not all_finite(rows):
        raise InputError(f"expected finite weights, got NaN or Inf in tensor {name} of {tensor.file}; use another checkpoint")
    return rows


def all_finite(array: np.ndarray) -> bool:
    """Whether an array of any of :data:`DTYPES` has neither NaN nor infinity."""
    if array.dtype == np.float32:
        return bool(np.isfinite(array).all())
    exponent = 0x7F80 if array.dtype == ml_dtypes.bfloat16 else 0x7C00  # all ones in NaN and infinity
    return not ((array.view(np.uint16) & exponent) == exponent).any()


def transpose(source: np.ndarray, target: np.ndarray) -> None:
    """``target[...] = source.T``, tile by tile: three times as fast as NumPy for matrices that exceed the cache."""
    rows, columns = source.shape
    for i in range(0, rows, _TILE):
        for j in range(0, columns, _TILE):
            target[j : j + _TILE, i : i + _TILE] = source[i : i + _TILE, j : j + _TILE].T


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError(f"{str(values)[:80]} instead of integers")
    return tuple(values)


def _pickled(expected: str, file: str) -> InputError:
    return InputError(
        f"expected {expected}, got pickled weights ({file}), which can run code when they are read; convert them with "
        "transformers, AutoModelForCausalLM.from_pretrained(folder).save_pretrained(other_folder)"
    )


def _broken(path: Path, what: str) -> InputError:
    return InputError(f"expected a whole safetensors file, got {what} in {path}; download or export it again")
