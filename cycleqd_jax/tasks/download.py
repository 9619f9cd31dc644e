"""Downloads benchmark files that are named by a URL, verifies their content and caches them."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import tempfile
import urllib.request
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from cycleqd_jax.files import replacing
from cycleqd_jax.types import InputError

__all__ = ["local_file"]

_HUB = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)@(?P<commit>[0-9a-f]{40})/(?P<file>.+)")
_TIMEOUT_S = 60


def local_file(path: str | Path) -> Path:
    """The path of a file on this machine; a file named by a URL is downloaded first.

    Args:
        path: a path; or ``https://host/file#sha256=DIGEST``, whose content must have that digest; or
            ``hf://datasets/owner/name@commit/file``, a file of a data set on the Hugging Face hub at a fixed commit.
            Downloads are cached in ``$XDG_CACHE_HOME/cycleqd/data`` (``~/.cache/cycleqd/data``) or by ``huggingface_hub``.

    Raises:
        InputError: the digest or the commit is missing, the content has another digest, or the download fails.
    """
    address = str(path)
    if address.startswith("hf://"):
        return _from_hub(address)
    if not address.startswith(("http://", "https://")):
        return Path(path)
    url, _, digest = address.partition("#sha256=")
    digest = digest.lower()
    if digest and not re.fullmatch("[0-9a-f]{64}", digest):
        raise InputError(f"expected a SHA-256 digest of 64 hexadecimal digits, got {digest!r} in {url}; correct it")
    try:
        name = PurePosixPath(unquote(urlsplit(url).path)).name or "file"
        kept = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cycleqd" / "data" / digest / name
        if not (digest and kept.is_file() and _digest(kept) == digest):
            _fetch(url, digest, kept)
    except InputError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(
            f"expected to download {url}, got {error}; check the URL, the network and the disk, or download it by hand "
            "and give the file's path"
        ) from error
    return kept


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _fetch(url: str, digest: str, kept: Path) -> None:
    """Downloads ``url`` to ``kept``; only content with the given digest is stored there."""
    with tempfile.TemporaryDirectory(prefix="cycleqd-download-") as folder:
        file = Path(folder) / "content"
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response, file.open("wb") as out:
            shutil.copyfileobj(response, out)
            length = response.headers.get("Content-Length")
        if length is not None and int(length) != file.stat().st_size:
            raise InputError(f"expected {length} bytes from {url}, got {file.stat().st_size}; try again")
        got = _digest(file)
        if not digest:
            raise InputError(
                f"expected a digest after {url}, so that every run reads the same content, got none; inspect the file, and if "
                f"it is the right one, write {url}#sha256={got}"
            )
        if got != digest:
            raise InputError(
                f"expected the content of {url} to have the SHA-256 digest {digest}, got {got}; correct the digest or the URL"
            )
        with file.open("rb") as content, replacing(kept) as out:
            shutil.copyfileobj(content, out)


def _from_hub(address: str) -> Path:
    found = _HUB.fullmatch(address)
    if found is None:
        raise InputError(
            f"expected a file of a data set at a commit (hf://datasets/owner/name@commit/file), got {address}; correct it"
        )
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(
            huggingface_hub.hf_hub_download(found["repo"], found["file"], repo_type="dataset", revision=found["commit"])
        )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise InputError(
            f"expected to download {address}, got {error}; check the address and the network, or download it by hand and give "
            "the file's path"
        ) from error
