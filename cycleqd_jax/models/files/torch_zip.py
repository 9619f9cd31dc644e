"""Reads tensors from PyTorch's ``.pt`` files without PyTorch, and without running anything that is in them.

Such a file is a zip archive of one pickle and the bytes of every storage. A pickle may name any function to call. This reader
resolves only the names that rebuild tensors and ordered dicts, to functions of its own, and refuses every other name.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cycleqd_jax.types import InputError

__all__ = ["read_torch_zip"]

_STORAGES: Mapping[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_MAX_PICKLE = 64 << 20  # bytes; a state dict of a large model has a few hundred kilobytes
_ADVICE = "use a state dict of tensors that torch.save has written"


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    size: int  # items


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in items


class _Ordered(dict[Any, Any]):
    """An ordered dict whose attributes, PyTorch's metadata, are dropped."""

    def __setstate__(self, state: Any) -> None:
        del state


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    del rest  # requires_grad, hooks
    numbers = [offset, *shape, *strides]
    if not isinstance(storage, _Storage) or not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor whose storage, shape or strides are invalid")
    if len(shape) != len(strides):
        raise pickle.UnpicklingError("a tensor with more strides than axes or fewer")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: Any, *rest: Any) -> Any:
    del rest
    return data


_KNOWN: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _Ordered,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"the name {module}.{name}, which no tensor needs")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str) or type(size) is not int:
            raise pickle.UnpicklingError("a storage without a dtype, a key and a size")
        return _Storage(dtype, key, size)


def read_torch_zip(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict that ``torch.save`` has written, by name.

    Args:
        path: a ``.pt`` or ``.pth`` file in PyTorch's zip format (since 1.6).

    Raises:
        InputError: the file is not such an archive or is incomplete, it has anything but tensors by name, or its pickle names
            something that no tensor needs.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"expected a PyTorch file in zip format, got {error} in {path}; download it again") from error
    except InputError as error:
        raise InputError(f"{error} in {path}; {_ADVICE}") from error
    except Exception as error:  # a corrupt pickle may raise anything
        what = str(error) or type(error).__name__
        raise InputError(f"expected a pickle of tensors alone, got {what} in {path}; {_ADVICE}") from error


def _read(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    pickles = [info for info in archive.infolist() if info.filename.count("/") == 1 and info.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise InputError(f"expected one data.pkl, got {len(pickles)}")
    if pickles[0].file_size > _MAX_PICKLE:
        raise InputError(f"expected a pickle of at most {_MAX_PICKLE} bytes, got {pickles[0].file_size}")
    folder = pickles[0].filename.removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise InputError("expected little-endian tensors, got another byte order")
    state = _Unpickler(io.BytesIO(archive.read(pickles[0]))).load()
    if not isinstance(state, dict):
        raise InputError(f"expected tensors by name, got {type(state).__name__}")
    storages: dict[str, np.ndarray] = {}
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise InputError(f"expected tensors by name, got {type(tensor).__name__} for {name!r}")
        storage = tensor.storage
        if storage.key not in storages:
            storages[storage.key] = np.frombuffer(archive.read(f"{folder}data/{storage.key}"), np.uint8)
        content = storages[storage.key]
        if content.size != storage.size * storage.dtype.itemsize:
            raise InputError(f"expected {storage.size} items of {storage.dtype} for {name}, got {content.size} bytes")
        items = content.view(storage.dtype)[tensor.offset :]
        strides = tuple(stride * storage.dtype.itemsize for stride in tensor.strides)
        tensors[name] = np.ascontiguousarray(np.lib.stride_tricks.as_strided(items, tensor.shape, strides, writeable=False))
        tensors[name].shape = tensor.shape  # ascontiguousarray makes vectors of scalars
    return tensors
