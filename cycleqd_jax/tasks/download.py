"""Files of benchmarks that are named by an address: fetched once, checked, and kept."""

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

from cycleqd_jax.types import InputError

__all__ = ["local_file"]

_HUB = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)@(?P<commit>[0-9a-f]{40})/(?P<file>.+)")
_TIMEOUT_S = 60


def local_file(path: str | Path) -> Path:
    """Where a file lies on this machine, after a download if it is named by its address.

    Args:
        path: of the file; or ``https://host/file#sha256=DIGEST``, whose content must have that digest; or
            ``hf://datasets/owner/name@commit/file``, a file of a data set on the Hugging Face hub at a commit, which stands for
            its content. Downloads are kept in ``$XDG_CACHE_HOME/cycleqd/data`` (``~/.cache/cycleqd/data``) or by
            ``huggingface_hub``, and are not asked for again.

    Raises:
        InputError: no digest or commit is given, the content is another, or it can't be had or kept.
    """
    address = str(path)
    if address.startswith("hf://"):
        return _from_hub(address)
    if not address.startswith(("http://", "https://")):
        return Path(path)
    url, _, digest = address.partition("#sha256=")
    digest = digest.lower()
    if digest and not re.fullmatch("[0-9a-f]{64}", digest):
        raise InputError(f"expected a SHA-256 digest of 64 hexadecimal digits behind {url}, got {digest!r}: correct it")
    try:
        name = PurePosixPath(unquote(urlsplit(url).path)).name or "file"
        kept = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cycleqd" / "data" / digest / name
        if not (digest and kept.is_file() and _digest(kept) == digest):
            _fetch(url, digest, kept)
    except InputError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(
            f"expected to download {url}, got {error}: check the address, the network and the disk, or download it by hand "
            "and give the file's path"
        ) from error
    return kept


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _fetch(url: str, digest: str, kept: Path) -> None:
    """Only what has the digest ever gets the name ``kept``."""
    with tempfile.TemporaryDirectory(prefix="cycleqd-download-") as folder:
        file = Path(folder) / "content"
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response, file.open("wb") as out:
            shutil.copyfileobj(response, out)
            length = response.headers.get("Content-Length")
        if length is not None and int(length) != file.stat().st_size:
            raise InputError(f"expected {length} bytes from {url}, got {file.stat().st_size}: try again")
        got = _digest(file)
        if not digest:
            raise InputError(
                f"expected {url} to be given with the digest of its content, so that every run sees the same, got none: look "
                f"at the file, and if it is what you want, write {url}#sha256={got}"
            )
        if got != digest:
            raise InputError(
                f"expected the content of {url} to have the SHA-256 digest {digest}, got {got}: it is another file"
            )
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as beside:  # renamed within one file system
            os.replace(shutil.copy(file, beside), kept)


def _from_hub(address: str) -> Path:
    found = _HUB.fullmatch(address)
    if found is None:
        raise InputError(f"expected a file of a data set at a commit, hf://datasets/owner/name@commit/file, got {address}")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(
            huggingface_hub.hf_hub_download(found["repo"], found["file"], repo_type="dataset", revision=found["commit"])
        )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise InputError(
            f"expected to download {address}, got {error}: check the address and the network, or download it by hand and give "
            "the file's path"
        ) from error
