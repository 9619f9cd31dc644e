"""Repositories on the Hugging Face hub: checked by their headers, then downloaded into the cache of huggingface_hub.

All access goes through ``huggingface_hub``, with its cache, token, endpoint (``HF_ENDPOINT``) and offline mode
(``HF_HUB_OFFLINE=1`` uses only the cache). :func:`download` resolves a revision once per process. All later calls use that
commit, so that the model that was checked is the one that is loaded, even if the branch moves.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import glob
import os
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
from cycleqd_jax.models.folder import PROCESSOR_FILES, TEMPLATE_FOLDER, TOKENIZER_FILES
from cycleqd_jax.types import InputError

__all__ = ["download", "download_weights", "forget", "headers", "is_repository", "is_snapshot", "repository_name"]

_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w./-]+)?", re.ASCII)

_ADAPTER, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_SMALL = ["config.json", _ADAPTER, INDEX, *TOKENIZER_FILES, f"{TEMPLATE_FOLDER}/*.jinja", *PROCESSOR_FILES, "*.py"]
_FIRST = 1 << 15  # bytes; almost every header is shorter

_NO_SAFETENSORS = (
    "expected {file} in the repository {name}, got none; choose a repository or revision that has it, or convert pickled "
    "weights, which can run code when they are read, with transformers, from_pretrained(name).save_pretrained(folder)"
)

_snapshots: dict[tuple[str, str], Path] = {}  # by repository and revision


class _RemoteTensor:
    """A :class:`~cycleqd_jax.models.files.safetensors.Tensor` of which only the header is here."""

    def __init__(self, file: str, dtype: str, shape: tuple[int, ...]) -> None:
        self.file, self.dtype, self.shape = file, dtype, shape

    def read(self, start: int, stop: int) -> np.ndarray:
        raise RuntimeError(f"expected the downloaded file {self.file}, got its header only; download the repository first")


def is_repository(name: str | Path) -> bool:
    """Whether this has the form ``owner/name`` or ``owner/name@revision``; it may also be the path of a folder."""
    return isinstance(name, str) and _REPOSITORY.fullmatch(name) is not None


def repository_name(model: str | Path) -> str | None:
    """The repository of the hub that a name stands for, without its revision; None for a model of this machine.

    The hub takes nothing else as ``base_model`` of a model card: it refuses local paths and revisions, and would take a path of
    two parts for the repository of that name.

    Args:
        model: a path, or ``owner/name[@revision]``.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not is_repository(model) or os.path.exists(model):  # unlike Path.exists, no error for a name that is too long
        return None
    name = str(model).partition("@")[0]
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def is_snapshot(folder: Path, repository: str) -> bool:
    """Whether a folder is a snapshot of a repository in a cache of the hub.

    Args:
        folder: a folder, or a file in it, which need not exist.
        repository: ``owner/name``.
    """
    parts = folder.parts
    return any(parts[k : k + 2] == (f"models--{repository.replace('/', '--')}", "snapshots") for k in range(len(parts) - 1))


def download(name: str) -> Path:
    """Downloads the configs and the tokenizer of a repository that are not in the cache.

    A name stands for the same commit until the process ends or :func:`forget` is called.

    Args:
        name: ``owner/name`` or ``owner/name@revision``.

    Returns:
        The snapshot: a folder of the cache that is named by the commit.

    Raises:
        InputError: there is no such repository, access is denied, or it is not in the cache and there is no network.
    """
    repository, _, revision = name.partition("@")
    key = repository, revision or "main"
    if key not in _snapshots:
        _snapshots[key] = _snapshot(name, *key, _SMALL, quiet=True)
    return _snapshots[key]


def forget() -> None:
    """Makes :func:`download` resolve all revisions again."""
    _snapshots.clear()


def headers(name: str, folder: Path) -> Mapping[str, Tensor]:
    """All tensors of a repository: files in the cache if it has the weights, otherwise headers read over the network.

    Args:
        name: ``owner/name`` or ``owner/name@revision``.
        folder: its snapshot.

    Raises:
        InputError: there are no safetensors, their headers can't be read or are corrupt, or the index names tensors or files
            that do not exist.
    """
    if not _missing(folder):
        try:
            return read_headers(folder)
        except InputError as error:
            repository = name.partition("@")[0]
            raise InputError(
                f"expected whole weights of {name} in the cache, got an error ({error}); clear the cache with "
                f"`hf cache rm model/{repository}` and run the command again"
            ) from error
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
            what = f"no such {'file' if header is None else 'tensor'}"
            raise InputError(
                f"expected the tensor {tensor} in {file} of the repository {name}, as in its index, got {what}; choose "
                "another repository or revision"
            )
        tensors[tensor] = header[tensor]
    return tensors


def download_weights(name: str, folder: Path, nbytes: int = 0) -> None:
    """Downloads the safetensors of a model or adapter that are not in the cache.

    Args:
        name: ``owner/name`` or ``owner/name@revision``.
        folder: its snapshot; the files are added to it.
        nbytes: their size, compared with the free space of the disk before the download.

    Raises:
        InputError: there are no safetensors, they can't be downloaded, or the disk has too little space.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    if not _missing(folder):
        return
    there = sum((folder / file).stat().st_size for file in _weight_files(folder) if (folder / file).is_file())
    cache = Path(HF_HUB_CACHE)
    free = shutil.disk_usage(next(path for path in (cache, *cache.absolute().parents) if path.exists())).free
    if free < nbytes - there:
        raise InputError(
            f"expected {(nbytes - there) / 1e9:.3g} GB of space for the weights of {name} in {cache}, got {free / 1e9:.3g} GB; "
            "free some space, or set HF_HOME to another disk"
        )
    repository = name.partition("@")[0]
    # Like transformers: a single file is preferred where a repository also has shards.
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
    """The header of one file, or None if there is no such file."""
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
    """The first bytes of a file, and its size."""
    from huggingface_hub import constants, utils

    headers = {**utils.build_hf_headers(), "Range": f"bytes=0-{nbytes - 1}", "Accept-Encoding": "identity"}
    with utils.get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        utils.hf_raise_for_status(response)
        content = b""
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) >= nbytes:  # the server may ignore the range
                break
        size = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers["Content-Length"]
    return content[:nbytes], int(size)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns errors of the hub and the network into an :class:`InputError`."""
    from huggingface_hub import errors

    def short(error: BaseException) -> str:
        if isinstance(error, errors.HfHubHTTPError):  # its text has the URL, which may be signed
            return " ".join(f"HTTP {error.response.status_code} {error.server_message or ''}".split())
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]

    repository, _, revision = name.partition("@")
    try:
        yield
    except InputError:
        raise
    except errors.GatedRepoError as error:
        raise InputError(
            f"expected access to the repository {name}, got a gated repository; accept its terms on the hub, then "
            "`hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"expected a revision of the repository {repository}, got {revision or 'main'}, which does not exist; correct the "
            "branch, tag or commit after the @"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"expected a folder or a repository of the hub, got {name}, which is neither (or is private); correct the name, or "
            "`hf auth login`"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        cause = error.__cause__ or error
        offline = isinstance(cause, errors.OfflineModeIsEnabled)
        why = "offline mode (HF_HUB_OFFLINE)" if offline else short(cause)
        raise InputError(
            f"expected the folder {name}, or that repository in the hub's cache, got neither in full, and {why} instead "
            "of a download; correct the path, or go online once"
        ) from error
    except errors.HFValidationError as error:
        raise InputError(
            f"expected a folder or the name of a repository, got {name} ({short(error)}); correct the path"
        ) from error
    except Exception as error:  # errors of the HTTP library share no base class with those of huggingface_hub
        raise InputError(f"expected to read the repository {name} from the hub, got {short(error)}; try again later") from error
