"""Digests of model folders: equal for equal bytes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import time
from pathlib import Path
from typing import Any

from cycleqd_jax.files import digest, load_json, write_json
from cycleqd_jax.machine import cpu_count
from cycleqd_jax.models.files.safetensors import INDEX, weight_files
from cycleqd_jax.models.folder import tokenizer_files

__all__ = ["folder_digest", "tokenizer_digest"]

BLOCK = 64 << 20
"""Bytes of a file that one thread digests at once."""

SETTLED_S = 2.0
"""Seconds since its last change after which a file's times distinguish it from the next change."""


def folder_digest(folder: str | Path, cache: Path | None = None) -> str:
    """Sixteen hexadecimal digits that identify the content of a model folder or file: every byte counts.

    Of a folder, only the files that a model is read from count: other programs add files to the hub's cache. Files of more than
    64 MiB are read by as many threads as there are cores.

    Args:
        folder: a model folder, the folder of an adapter, or a ``.gguf`` file.
        cache: where digests of large files are kept, by path, size, times and inode; None reads them all.

    Raises:
        OSError: a file can't be read.
    """
    total = hashlib.sha256()
    folder = Path(folder)
    found = {folder.name: folder}
    if not folder.is_file():
        names = {"config.json", INDEX, *weight_files(folder), "adapter_config.json", "adapter_model.safetensors"}
        names |= set(tokenizer_files(folder))
        found = {name: folder / name for name in sorted(names) if (folder / name).is_file()}
    with concurrent.futures.ThreadPoolExecutor(cpu_count()) as threads:
        for name, file in found.items():
            size = file.stat().st_size
            total.update(f"{name}\0{size}\0".encode())
            total.update(file.read_bytes() if size <= BLOCK else _large_digest(file, cache, threads))
    return total.hexdigest()[:16]


def tokenizer_digest(folder: str | Path) -> str:
    """Sixteen hexadecimal digits that identify the tokenizer, chat templates and stop tokens of a model folder or file."""
    folder = Path(folder)
    if folder.is_file():
        return folder_digest(folder)
    names = [*tokenizer_files(folder), *(["config.json"] if (folder / "config.json").is_file() else [])]
    return digest({name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}, digits=16)


def _large_digest(file: Path, cache: Path | None, threads: concurrent.futures.Executor) -> bytes:
    """A digest of the digests of a file's blocks, from the cache if the file has not changed since."""

    def state() -> dict[str, Any]:
        found = file.stat()
        times = {"mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns}
        return {"path": os.path.realpath(file), "size": found.st_size, "device": found.st_dev, "inode": found.st_ino, **times}

    before = state()
    kept = None if cache is None else cache / "digests" / f"{digest(before['path'], digits=32)}.json"
    if kept is not None:
        try:
            known = load_json(kept)
            if known["file"] == before:
                return bytes.fromhex(known["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there yet, or damaged
    blocks = threads.map(lambda start: _block_digest(file, start), range(0, before["size"], BLOCK))
    value = hashlib.sha256(b"".join(blocks))
    changed = max(before["mtime_ns"], before["ctime_ns"]) / 1e9
    if kept is not None and state() == before and time.time() - changed > SETTLED_S:
        with contextlib.suppress(OSError):  # the file is read again where there is no place to keep its digest
            write_json(kept, {"file": before, "sha256": value.hexdigest()})
    return value.digest()


def _block_digest(file: Path, start: int) -> bytes:
    total, left = hashlib.sha256(), BLOCK
    with file.open("rb") as stream:
        stream.seek(start)
        while left and (content := stream.read(min(left, 4 << 20))):
            total.update(content)
            left -= len(content)
    return total.digest()
