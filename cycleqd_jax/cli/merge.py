"""``cycleqd merge``: merges models as a mergekit config says."""

from __future__ import annotations

import contextlib
from pathlib import Path

from cycleqd_jax.compilation import persistent_compilation
from cycleqd_jax.config import RunConfig
from cycleqd_jax.merging import load_recipe, merge_models
from cycleqd_jax.report import ProgressBar
from cycleqd_jax.types import InputError

__all__ = ["merge"]


def merge(config: Path, folder: Path, seed: int) -> None:
    """Merges models, shows progress, and prints the folder.

    Args:
        config: the mergekit config.
        folder: the folder to write.
        seed: the seed of DARE's random masks.

    Raises:
        InputError: see :func:`cycleqd_jax.merging.merge_models`.
    """
    recipe = load_recipe(config)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(InputError):  # without a folder that can be written, programs are compiled again
            stack.enter_context(persistent_compilation(Path(RunConfig.cache)))
        bar = stack.enter_context(ProgressBar())
        merge_models(recipe, folder, seed=seed, progress=bar, log=bar.log)
    print(f"model: {folder}")
