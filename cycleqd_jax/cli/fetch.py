"""``cycleqd fetch``: writes a small real model as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from cycleqd_jax.models import fetch, fetch_sam

__all__ = ["fetch_model"]


def fetch_model(name: str, folder: Path, *, source: str | None, dtype: str) -> None:
    """Writes a model, and prints the steps and how to try the model.

    Args:
        name: ``smollm2`` or ``mobile_sam``.
        folder: the folder to write.
        source: see :func:`cycleqd_jax.models.fetch.fetch_smollm2` and :func:`cycleqd_jax.models.fetch_sam.fetch_mobile_sam`.
        dtype: dtype of the written weights.

    Raises:
        InputError: the folder can't be written, or the source can't be read.
    """
    if name == "mobile_sam":
        fetch_sam.fetch_mobile_sam(folder, source=source, dtype=dtype, log=print)
        print(f"try in Python: from cycleqd_jax.models import sam; config, params = sam.load({str(folder)!r})")
    else:
        fetch.fetch_smollm2(folder, source=source, dtype=dtype, log=print)
        print(f"try: cycleqd generate {folder} 'What is photosynthesis?'")
