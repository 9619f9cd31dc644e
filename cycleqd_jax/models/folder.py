"""The small files of a Hugging Face model folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cycleqd_jax.files import load_json
from cycleqd_jax.types import InputError

__all__ = [
    "PROCESSOR_FILES",
    "TEMPLATE_FOLDER",
    "TOKENIZER_FILES",
    "code_files",
    "is_tokenizer_file",
    "read_json",
    "tokenizer_files",
]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""The files of a tokenizer; most folders have some of them."""

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""The files that say how a model's images are prepared."""

TEMPLATE_FOLDER = "additional_chat_templates"
"""The folder of the chat templates beside the default one, a ``.jinja`` file for each."""


def is_tokenizer_file(name: str) -> bool:
    """Whether a path inside a model folder, such as ``additional_chat_templates/tool_use.jinja``, belongs to a tokenizer."""
    folder, _, file = name.rpartition("/")
    return name in TOKENIZER_FILES or (folder == TEMPLATE_FOLDER and file.endswith(".jinja"))


def tokenizer_files(folder: Path) -> list[str]:
    """The paths of a folder's tokenizer files, relative to it and sorted."""
    names = [*TOKENIZER_FILES, *(f"{TEMPLATE_FOLDER}/{path.name}" for path in (folder / TEMPLATE_FOLDER).glob("*.jinja"))]
    return sorted(name for name in names if (folder / name).is_file())


def code_files(folder: Path, config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The Python files that a model brings: those that ``auto_map`` names, and the files of the folder that they import.

    Args:
        folder: the folder of the model.
        config: the contents of ``config.json``, or of another of its JSON files.

    Returns:
        The sorted names of the files that exist, and of those that are missing. Both leave out code of other repositories.
    """
    entries = config.get("auto_map")
    values = entries.values() if isinstance(entries, dict) else ()
    references = [name for entry in values for name in (entry if isinstance(entry, list) else [entry])]
    modules = [name.partition(".")[0] for name in references if isinstance(name, str) and "--" not in name]
    there, missing = set(), set()
    while modules:
        module = modules.pop()
        name = f"{module}.py"
        if not re.fullmatch(r"\w+", module) or name in there:
            continue
        if not (folder / name).is_file():
            missing.add(name)
            continue
        there.add(name)
        code = (folder / name).read_text(encoding="utf-8", errors="replace")
        modules += re.findall(r"^\s*from\s+\.(\w+)\s+import\b", code, re.MULTILINE)
    return sorted(there), sorted(missing)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        InputError: the file is missing, can't be read, or is not a JSON object.
    """
    if not path.is_file():
        raise InputError(
            f"expected a Hugging Face model folder with {path.name}, got no such file in {path.parent}; correct the path"
        )
    try:
        value = load_json(path)
    except OSError as error:
        raise InputError(
            f"expected to read {path}, got {error.strerror or error}; correct its permissions or restore the file"
        ) from error
    except ValueError as error:
        raise InputError(f"expected JSON in {path}, got {error}; restore the file") from error
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object in {path}, got {type(value).__name__}; restore the file")
    return value
