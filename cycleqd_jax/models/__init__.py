"""Models as pure functions of a tree of weights, with their tokenizers and files.

The public names are modules, so that importing one of them does not import the others.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cycleqd_jax.models import (
        agreement,
        compare,
        fetch,
        fetch_sam,
        files,
        folder,
        inspection,
        llama,
        preflight,
        sam,
        tokenizer,
        tokenizer_files,
        tool_templates,
    )

__all__ = [
    "agreement",
    "compare",
    "fetch",
    "fetch_sam",
    "files",
    "folder",
    "inspection",
    "llama",
    "preflight",
    "sam",
    "tokenizer",
    "tokenizer_files",
    "tool_templates",
]
