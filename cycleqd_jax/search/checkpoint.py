"""Checkpoints of a search with orbax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from cycleqd_jax.types import InputError, PRNGKeyArray, tree_paths

__all__ = ["SCHEMA", "Checkpoints"]

SCHEMA = 1
"""Version of what a checkpoint holds; raised with every incompatible change."""


def _leaves(tree: Any) -> dict[str, str]:
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in tree_paths(tree)}


class Checkpoints:
    """The newest states of a search in a folder, each written whole or not at all.

    A checkpoint holds the searcher's state, the raw data of the run's PRNG key, and the schema version; its step is the number
    of generations told.
    """

    def __init__(self, folder: str | Path, *, every: int = 10, keep: int = 2) -> None:
        """Args:
        folder: made if need be.
        every: generations between two checkpoints.
        keep: how many are kept.
        """  # noqa: D205
        self.every = every
        self.folder = Path(folder).resolve()
        self._manager = ocp.CheckpointManager(
            self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        )

    def save(self, step: int, state: Any, key: PRNGKeyArray) -> None:
        """Writes a checkpoint.

        Args:
            step: generations told so far.
            state: of the searcher, a pytree.
            key: of the run.
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            search=ocp.args.StandardSave({"state": state, "key_data": jax.random.key_data(key)}),
            meta=ocp.args.JsonSave({"schema": SCHEMA, "leaves": _leaves(state)}),
        )
        self._manager.save(step, args=items)
        self._manager.wait_until_finished()

    def latest(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def restore(self, like: Any, key: PRNGKeyArray) -> tuple[int, Any]:
        """Reads the newest checkpoint.

        Args:
            like: a state of the same shapes.
            key: of the run; it must be the one that was saved.

        Returns:
            Its step and the state.

        Raises:
            InputError: when the checkpoint is of another schema, or of a run with another key.
        """
        step = self._manager.latest_step()
        assert step is not None, "no checkpoint to restore"
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        if meta["schema"] != SCHEMA:
            raise InputError(f"the checkpoint {self.folder} has schema {meta['schema']}, this version reads {SCHEMA}.")
        if meta["leaves"] != _leaves(like):
            raise InputError(
                f"the checkpoint {self.folder} holds a state of other leaves or shapes than this run's: the folder belongs to "
                "another config."
            )
        data = jax.random.key_data(key)
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, {"state": like, "key_data": data})
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(search=ocp.args.StandardRestore(target)))["search"]
        except Exception as error:  # orbax and tensorstore raise what they like
            raise InputError(
                f"the checkpoint {self.folder / str(step)} can't be read: remove it, and the run goes on from the one before, "
                "or from the journal alone."
            ) from error
        if not bool((found["key_data"] == data).all()):
            raise InputError(f"the checkpoint {self.folder} belongs to a run with another seed.")
        return step, found["state"]

    def close(self) -> None:
        """Waits for writes and frees the manager."""
        self._manager.close()
