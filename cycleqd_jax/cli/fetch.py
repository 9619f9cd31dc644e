"""``cycleqd fetch``: writes a small real model as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from cycleqd_jax.models import fetch

__all__ = ["fetch_smollm2"]


def fetch_smollm2(folder: Path, *, source: str | None, dtype: str) -> None:
    """Writes SmolLM2-135M-Instruct, and prints the steps and a command that tries the model.

    Args:
        folder: the folder to write.
        source: see :func:`cycleqd_jax.models.fetch.fetch_smollm2`.
        dtype: dtype of the written weights.

    Raises:
        InputError: the folder can't be written, or the source can't be read.
    """
    fetch.fetch_smollm2(folder, source=source, dtype=dtype, log=print)
    print(f"try: cycleqd generate {folder} 'What is photosynthesis?'")
