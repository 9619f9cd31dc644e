"""The safetensors files of a model folder: found, and read header first.

The format is a length (8 bytes, little-endian), a JSON header with dtype, shape and byte range of every tensor, and the bytes.
Headers alone say whether models fit together, before gigabytes are read.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cycleqd_jax.types import InputError

__all__ = ["DTYPES", "TensorInfo", "all_finite", "read_headers", "read_json", "read_tensor"]

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
"""The weight dtypes that can be read, by safetensors' names."""

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class TensorInfo(NamedTuple):
    """Where a tensor is: file, safetensors dtype name, shape, and the offset of its first byte in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


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
    except ValueError as error:
        raise InputError(f"expected JSON in {path}, got {error}: restore the file") from error
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object in {path}, got {type(value).__name__}: restore the file")
    return value


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a model folder, from one file or from the shards of its index.

    Raises:
        InputError: a file is missing, pickled, truncated or not safetensors; or the index names a tensor that its file lacks.
    """
    if (folder / _SINGLE).is_file():
        return _header(folder / _SINGLE)
    if not (folder / _INDEX).is_file():
        pickled = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")))
        if pickled:
            raise InputError(
                f"expected {_SINGLE} in {folder}, got pickled weights ({pickled[0]}), which run code when they are read: "
                "convert "
                "them with transformers, AutoModelForCausalLM.from_pretrained(folder).save_pretrained(other_folder)"
            )
        raise InputError(f"expected {_SINGLE} or {_INDEX} in {folder}, got neither: correct the path or finish the download")
    weight_map = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"expected a weight_map of tensor names to files in {folder / _INDEX}, got none: restore the file")
    tensors: dict[str, TensorInfo] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file or not (folder / file).is_file():
            raise InputError(f"expected the shard {file} that {folder / _INDEX} names, got no such file: finish the download")
        header = _header(folder / file)
        for name in (name for name, owner in weight_map.items() if owner == file):
            if name not in header:
                raise InputError(
                    f"expected the tensor {name} in {folder / file} as the index says, got none: restore the shard"
                )
            tensors[name] = header[name]
    return tensors


def read_tensor(name: str, info: TensorInfo) -> np.ndarray:
    """One tensor, mapped from its file, with every number checked to be finite.

    Raises:
        InputError: a NaN or an infinity.
    """
    array = (
        np.memmap(info.file, DTYPES[info.dtype], "r", info.offset, info.shape)
        if math.prod(info.shape)
        else np.zeros(info.shape)
    )
    if not all_finite(array):
        raise InputError(f"expected finite weights, got NaN or Inf in tensor {name} of {info.file}: use a sound checkpoint")
    return array


def all_finite(array: np.ndarray) -> bool:
    """Whether no number is NaN or infinite, for any dtype of :data:`DTYPES`."""
    if array.dtype == np.float32:
        return bool(np.isfinite(array).all())
    exponent = 0x7F80 if array.dtype == ml_dtypes.bfloat16 else 0x7C00  # all ones: NaN or infinite
    return not ((array.view(np.uint16) & exponent) == exponent).any()


def _header(path: Path) -> dict[str, TensorInfo]:
    def broken(what: str) -> InputError:
        return InputError(f"expected a whole safetensors file, got {what} in {path}: download or export it again")

    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            raise broken(f"{size} bytes where its header announces {8 + length}")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = {
                name: (str(entry["dtype"]), tuple(map(int, entry["shape"])), tuple(map(int, entry["data_offsets"])))
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise broken(f"an unreadable header ({type(error).__name__}: {error})") from error
    end = max((offsets[1] for _, _, offsets in tensors.values()), default=0)
    if size != 8 + length + end:
        raise broken(f"{size} bytes where its header announces {8 + length + end}")
    result = {}
    for name, (dtype, shape, (begin, stop)) in tensors.items():
        if begin < 0 or stop - begin != math.prod(shape) * _ITEM_BYTES.get(dtype, 0):
            raise broken(f"a tensor {name} of {stop - begin} bytes for {dtype} {list(shape)}")
        result[name] = TensorInfo(path, dtype, shape, 8 + length + begin)
    return result
