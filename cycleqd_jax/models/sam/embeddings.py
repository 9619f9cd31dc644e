"""Image embeddings in a folder: trainings, evaluations and later commands embed an image once."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import math
import os
import shutil
import time
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8

from cycleqd_jax.compilation import device_kind
from cycleqd_jax.files import digest, replacing
from cycleqd_jax.models.sam.config import SamConfig
from cycleqd_jax.types import Float, Params, tree_paths
from cycleqd_jax.version import __version__

__all__ = ["EmbeddingFolder", "StoredEmbeddings", "image_digest"]

_RESERVE_BYTES = 1 << 30  # left free on the disk, for files that a run can't do without
_ABANDONED_S = 3600  # a temporary file of this age has no writer any more


class EmbeddingFolder:
    """A folder of image embeddings, which several processes may share.

    Every file is written whole or not at all. Where there is no room, the files that were used longest ago are removed first,
    but none that this object has read or written. The last GiB of a disk is left free. The folder is a convenience: where it
    can't be read or written, embeddings are computed.
    """

    def __init__(self, folder: str | Path, *, limit_bytes: int = 8 << 30) -> None:
        """Args:
        folder: is made when the first embedding is stored.
        limit_bytes: disk space for the files of all processes, which may exceed it for a while when several write at the same
            time; 0 stores none, and removes none.
        """  # noqa: D205
        self._folder = Path(folder)
        self._limit = limit_bytes
        self._used: set[Path] = set()
        self._others: list[tuple[float, Path, int]] = []  # the last used first
        self._bytes = 0
        self._scan()

    def of_encoder(self, vision: Params, config: SamConfig, *, batch_size: int, devices: int = 1) -> StoredEmbeddings:
        """The embeddings by one image encoder.

        Those of another batch size, device or version can differ in the last bits, and are stored apart.

        Args:
            vision: the weights of the image encoder, of which all bytes count.
            config: the model.
            batch_size: images per call.
            devices: the number over which a batch is split.
        """
        content = hashlib.blake2b(digest_size=16)
        for path, leaf in tree_paths(vision):
            content.update(f"{path} {leaf.shape} {leaf.dtype}".encode())
            content.update(np.asarray(leaf).tobytes())
        precision = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009 (the type checker lacks it)
        program = [str(config.vision), config.dtype, batch_size, devices, device_kind(), precision]
        versions = [__version__, jax.__version__, importlib.metadata.version("jaxlib")]
        return StoredEmbeddings(self, digest([content.hexdigest(), *program, *versions], digits=32), config)

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None where there is none."""
        path = self._folder / name
        try:
            found = path.read_bytes()
        except OSError:
            return None
        self._used.add(path)
        with contextlib.suppress(OSError):  # the folder may be read-only
            os.utime(path)
        return found

    def write(self, name: str, content: bytes) -> None:
        """Stores a file if there is room for it."""
        path, size = self._folder / name, len(content)
        if size > self._limit:
            return
        with contextlib.suppress(OSError):
            if self._bytes + size > self._limit:
                self._scan()  # other processes may have stored, used and removed files
            while self._others and self._bytes + size > self._limit:
                _, old, freed = self._others.pop()
                old.unlink(missing_ok=True)
                self._bytes -= freed
            path.parent.mkdir(parents=True, exist_ok=True)
            is_free = shutil.disk_usage(path.parent).free >= size + _RESERVE_BYTES
            if is_free and self._bytes + size <= self._limit:
                with replacing(path) as file:
                    file.write(content)
                self._used.add(path)
                self._bytes += size

    def _scan(self) -> None:
        """Counts the files of all processes, and removes temporary ones of processes that were killed."""
        self._others, self._bytes = [], 0
        with contextlib.suppress(OSError):
            for path in self._folder.glob("*/*"):
                with contextlib.suppress(OSError):  # another process has removed it
                    stat = path.lstat()
                    if path.suffix == ".tmp" and time.time() - stat.st_mtime > _ABANDONED_S:
                        path.unlink()
                        continue
                    self._bytes += stat.st_size
                    if path.suffix == ".bin" and path not in self._used:
                        self._others.append((stat.st_mtime, path, stat.st_size))
        self._others.sort(reverse=True)


class StoredEmbeddings:
    """The embeddings by one image encoder in an :class:`EmbeddingFolder`, found by the content of the image."""

    def __init__(self, folder: EmbeddingFolder, encoder: str, config: SamConfig) -> None:
        """Args:
        folder: of all encoders.
        encoder: the name of this one.
        config: the model.
        """  # noqa: D205
        grid = config.vision.grid
        self._folder, self._encoder = folder, encoder
        self._shape, self._dtype = (grid, grid, config.vision.output_channels), np.dtype(config.dtype)

    def read(self, image: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "grid grid channel"] | None:
        """The embedding of an image, or None where it is not stored."""
        content = self._folder.read(self._name(image))
        if content is None or len(content) != math.prod(self._shape) * self._dtype.itemsize:
            return None
        return np.frombuffer(content, self._dtype).reshape(self._shape)

    def write(self, image: UInt8[np.ndarray, "height width 3"], embedding: Float[np.ndarray, "grid grid channel"]) -> None:
        """Stores the embedding of an image if there is room for it."""
        self._folder.write(self._name(image), embedding.tobytes())

    def _name(self, image: np.ndarray) -> str:
        return f"{self._encoder}/{image_digest(image)}.bin"


def image_digest(image: UInt8[np.ndarray, "height width 3"]) -> str:
    """A digest of pixels and size, in hexadecimal."""
    return hashlib.blake2b(image.tobytes() + str(image.shape).encode(), digest_size=16).hexdigest()
