"""Repositories on the Hugging Face hub: judged by their headers, then downloaded into huggingface_hub's cache.

Everything goes through ``huggingface_hub``: its cache, token, endpoint (``HF_ENDPOINT``) and offline mode
(``HF_HUB_OFFLINE=1``, which uses what the cache has) are honoured. A revision is resolved once in a process, by
:func:`download`; what follows is of that commit, whatever happens to the branch meanwhile: what was checked is what is loaded.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import glob
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cycleqd_jax.models.files.safetensors import (
    INDEX,
    SINGLE,
    Tensor,
    header_length,
    parse_header,
    read_headers,
    read_index,
    weight_files,
)
from cycleqd_jax.models.tokenizer import FILES
from cycleqd_jax.types import InputError

__all__ = ["download", "download_weights", "forget", "headers", "is_repository"]

_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w./-]+)?", re.ASCII)

_ADAPTER, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_SMALL = ["config.json", _ADAPTER, INDEX, *FILES]
_FIRST = 1 << 15  # bytes that hold almost every header

_NO_SAFETENSORS = (
    "expected {file} in the repository {name}, got none: choose a repository or revision that has it; pickled weights run code "
    "when they are read, convert them with transformers, from_pretrained(name).save_pretrained(folder)"
)

_snapshots: dict[tuple[str, str], Path] = {}  # by repository and revision


class _RemoteTensor:
    """A :class:`~cycleqd_jax.models.files.safetensors.Tensor` that is known by its header alone."""

    def __init__(self, file: str, dtype: str, shape: tuple[int, ...]) -> None:
        self.file, self.dtype, self.shape = file, dtype, shape

    def read(self, start: int, stop: int) -> np.ndarray:
        raise RuntimeError(f"{self.file} has not been downloaded")


def is_repository(name: str | Path) -> bool:
    """Whether this reads like ``owner/name`` or ``owner/name@revision``; what exists as a path is for the caller to see."""
    return isinstance(name, str) and _REPOSITORY.fullmatch(name) is not None


def download(name: str) -> Path:
    """Downloads configs and tokenizer of a repository, as far as they are not in the cache.

    The same name is the same commit for as long as the process lives, or until :func:`forget`.

    Args:
        name: ``owner/name`` or ``owner/name@revision``.

    Returns:
        The snapshot: a folder of the cache, whose name is that of the commit.

    Raises:
        InputError: no such repository, no access, or no network and not in the cache.
    """
    repository, _, revision = name.partition("@")
    key = repository, revision or "main"
    if key not in _snapshots:
        _snapshots[key] = _snapshot(name, *key, _SMALL, quiet=True)
    return _snapshots[key]


def forget() -> None:
    """Lets branches be looked up anew."""
    _snapshots.clear()


def headers(name: str, folder: Path) -> Mapping[str, Tensor]:
    """All tensors of a repository, by headers that are read over the network; those of the cache where it has the weights.

    Args:
        name: ``owner/name`` or ``owner/name@revision``.
        folder: its snapshot.

    Raises:
        InputError: there are no safetensors, their headers can't be read or are broken, or the index names tensors or files
            that are not there.
    """
    if not _missing(folder):
        try:
            return read_headers(folder)
        except InputError as error:
            repository = name.partition("@")[0]
            raise InputError(f"{error}; `hf cache rm model/{repository}` first removes what is in the cache") from error
    single = _remote_header(name, folder, SINGLE)
    if single is not None:
        return single
    if not (folder / INDEX).is_file():
        raise InputError(_NO_SAFETENSORS.format(file=SINGLE, name=name))
    weight_map = read_index(folder / INDEX)
    files = sorted(set(weight_map.values()))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = dict(zip(files, threads.map(lambda file: _remote_header(name, folder, file), files), strict=True))
    tensors = {}
    for tensor, file in weight_map.items():
        header = found[file]
        if header is None or tensor not in header:
            what = f"no such {'file' if header is None else 'tensor there'}"
            raise InputError(
                f"expected the tensor {tensor} in {file} of the repository {name}, as its index says, got {what}: choose "
                "another repository or revision"
            )
        tensors[tensor] = header[tensor]
    return tensors


def download_weights(name: str, folder: Path, nbytes: int = 0) -> None:
    """Downloads the safetensors of a model or adapter, as far as they are not in the cache.

    Args:
        name: ``owner/name`` or ``owner/name@revision``.
        folder: its snapshot, which they are added to.
        nbytes: their size; a disk with less space is refused before anything is downloaded.

    Raises:
        InputError: there are none, they can't be downloaded, or there is no space for them.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    if not _missing(folder):
        return
    there = sum((folder / file).stat().st_size for file in _weight_files(folder) if (folder / file).is_file())
    cache = Path(HF_HUB_CACHE)
    free = shutil.disk_usage(next(path for path in (cache, *cache.absolute().parents) if path.exists())).free
    if free < nbytes - there:
        raise InputError(
            f"expected {(nbytes - there) / 1e9:.3g} GB of space for the weights of {name} in {cache}, got {free / 1e9:.3g} GB: "
            "free some, or set HF_HOME to another disk"
        )
    repository = name.partition("@")[0]
    # One file is preferred to shards, as by transformers; a repository may have both.
    first = _ADAPTER_WEIGHTS if (folder / _ADAPTER).is_file() else SINGLE
    _snapshot(name, repository, folder.name, [*_SMALL, first])
    if missing := _missing(folder):
        _snapshot(name, repository, folder.name, [*_SMALL, *map(glob.escape, missing)])
    if missing := _missing(folder):
        raise InputError(_NO_SAFETENSORS.format(file=missing[0], name=name))


def _weight_files(folder: Path) -> list[str]:
    return [_ADAPTER_WEIGHTS] if (folder / _ADAPTER).is_file() else weight_files(folder)


def _missing(folder: Path) -> list[str]:
    return [file for file in _weight_files(folder) if not (folder / file).is_file()]


def _snapshot(name: str, repository: str, revision: str, files: list[str], quiet: bool = False) -> Path:
    import huggingface_hub
    from huggingface_hub.utils import tqdm

    class Quiet(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    with _explained(name):
        found = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=files, tqdm_class=Quiet if quiet else None
        )
    return Path(found)


def _remote_header(name: str, folder: Path, file: str) -> dict[str, Tensor] | None:
    """The header of one file, or None where there is no such file."""
    import huggingface_hub
    from huggingface_hub import errors

    url = huggingface_hub.hf_hub_url(name.partition("@")[0], file, revision=folder.name)
    where = Path(name) / file
    with _explained(name):
        try:
            start, size = _fetch_start(url, _FIRST)
            stop = 8 + header_length(where, start[:8], size)
            if stop > len(start):
                start, size = _fetch_start(url, stop)
        except errors.RemoteEntryNotFoundError:
            return None
    return {
        tensor: _RemoteTensor(str(where), info.dtype, info.shape)
        for tensor, info in parse_header(where, start[8:stop], size).items()
    }


def _fetch_start(url: str, nbytes: int) -> tuple[bytes, int]:
    """The first bytes of a file, and how many it has."""
    from huggingface_hub import constants, utils

    headers = {**utils.build_hf_headers(), "Range": f"bytes=0-{nbytes - 1}", "Accept-Encoding": "identity"}
    with utils.get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        utils.hf_raise_for_status(response)
        content = b""
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) >= nbytes:  # of a server that does not know ranges
                break
        size = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers["Content-Length"]
    return content[:nbytes], int(size)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """What the hub and the network raise, as a sentence."""
    from huggingface_hub import errors

    def short(error: BaseException) -> str:
        if isinstance(error, errors.HfHubHTTPError):  # its text has the address, which may be signed
            return " ".join(f"HTTP {error.response.status_code} {error.server_message or ''}".split())
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]

    repository, _, revision = name.partition("@")
    try:
        yield
    except InputError:
        raise
    except errors.GatedRepoError as error:
        raise InputError(f"the repository {name} is gated: accept its terms on the hub, then `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"the repository {repository} has no revision {revision or 'main'}: correct the branch, tag or commit after the @"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"there is no folder {name}, and no repository {repository} on the hub (or it is private): correct the name, or "
            "`hf auth login`"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        cause = error.__cause__ or error
        offline = isinstance(cause, errors.OfflineModeIsEnabled)
        why = "offline mode is on (HF_HUB_OFFLINE)" if offline else f"the hub does not give it ({short(cause)})"
        raise InputError(
            f"there is no folder {name}, the hub's cache does not hold that repository or not enough of it, and {why}: correct "
            "the path, or go online once"
        ) from error
    except errors.HFValidationError as error:
        raise InputError(f"there is no folder {name}, and it is no name of a repository: {short(error)}") from error
    except Exception as error:  # the HTTP library's errors pass through huggingface_hub, and have no common base with its own
        raise InputError(
            f"the repository {name} can't be read from the hub ({short(error)}): try again when it can be reached"
        ) from error
