"""Checkpoints of a search, with orbax."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from cycleqd_jax.disk_errors import one_disk_error
from cycleqd_jax.files import load_json, write_json
from cycleqd_jax.search.digests import OLD_BASES, tree_digest
from cycleqd_jax.types import InputError, PRNGKeyArray, first_line, tree_paths

__all__ = [
    "SCHEMA",
    "Checkpoints",
    "DamagedCheckpointError",
    "StoredState",
    "checkpoint_steps",
    "leaf_shapes",
    "read_checkpoint",
    "remove_partial",
]

SCHEMA = 1
"""Version of the checkpoint format; increased with every incompatible change."""

_FILES = "files.json"
"""Beside the items of a checkpoint: the digest of its files of arrays."""

_DAMAGES = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
"""Errors of the disk that come again: a file of a checkpoint is not there, or something else is in its place."""

_REMOVE = "remove it, and the run continues from the checkpoint before it or from the journal"


class DamagedCheckpointError(InputError):
    """A checkpoint lacks files or has others, can't be parsed, or the digest of its arrays differs."""


def leaf_shapes(tree: Any) -> dict[str, str]:
    """The dtype and the shape of every leaf of a pytree, by path."""
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in tree_paths(tree)}


def _contents(state: Any, key: PRNGKeyArray) -> dict[str, Any]:
    """What orbax reads: dicts of arrays, because orbax puts other objects than arrays into the nodes of a tree."""
    contents = {"state": flax.serialization.to_state_dict(state), "key_data": jax.random.key_data(key)}
    # In a distributed run orbax takes arrays of one process for parts of larger ones.
    return contents if jax.process_count() == 1 else jax.tree.map(np.asarray, contents)


def _copy(state: Any, key: PRNGKeyArray) -> dict[str, Any]:
    """What orbax writes: a copy in the memory of the host. The search goes on, and may free its own arrays."""
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), _contents(state, key))


def one_process() -> ocp.options.MultiprocessingOptions:
    """Options of orbax with which it waits for no other process of a distributed run."""
    here = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"{here}")


def _digest(contents: Mapping[str, Any]) -> str:
    """The digest that is stored beside the arrays: those have no checksums of their own."""
    return tree_digest(contents, digits=64)


def _check_digest(meta: Mapping[str, Any], contents: Mapping[str, Any], place: Path) -> None:
    """Compares what was read with what was written; checkpoints of older versions have no digest.

    Raises:
        DamagedCheckpointError: they differ.
    """
    found = _digest(contents)
    if meta.get("digest") not in (None, found):
        raise DamagedCheckpointError(
            f"expected the arrays of a checkpoint with digest {meta['digest']:.16}, got {found:.16} in {place}; {_REMOVE}"
        )


def _files_digest(folder: Path) -> str:
    """The digest of the names and bytes of all files in a folder.

    Raises:
        OSError: there are none, or they can't be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise FileNotFoundError(f"no files in {folder.name}")
    found = hashlib.sha256()
    for file in files:
        name = file.relative_to(folder).as_posix().encode()
        found.update(len(name).to_bytes(8, "little") + name)
        with file.open("rb") as stream:
            found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()


def _meta_digest(place: Path) -> str:
    """The digest of what stands beside the arrays of a checkpoint."""
    return hashlib.sha256((place / "meta" / "metadata").read_bytes()).hexdigest()


def _unreadable(place: Path, error: Exception) -> InputError:
    """The error of a checkpoint that can't be read: it is damaged, or the disk or the memory has refused for now."""
    if isinstance(error, (OSError, MemoryError)) and not isinstance(error, _DAMAGES):
        return InputError(
            f"expected to read a checkpoint, got {type(error).__name__} ({first_line(error, 120)}) in {place}; correct the "
            "cause, and run the same command to continue"
        )
    return DamagedCheckpointError(
        f"expected a readable checkpoint, got {type(error).__name__} ({first_line(error, 120)}) in {place}; {_REMOVE}"
    )


def _check_files(place: Path) -> None:
    """Compares the files of a checkpoint with their digest before orbax reads them.

    Orbax reads many files at once. After the first error it returns while the other reads go on, so damaged files must not
    reach it. Checkpoints of older versions have no digest of files, nor has one whose writer was killed just after orbax.

    Raises:
        DamagedCheckpointError: they differ, or are not there.
        InputError: the disk refuses.
    """
    file = place / _FILES
    if not file.exists():
        return
    try:
        stated = load_json(file)
        expected, found = stated["digest"], _files_digest(place / "search")
        if found == expected and "meta" in stated:  # earlier versions had no digest of it
            expected, found = stated["meta"], _meta_digest(place)
    except (OSError, MemoryError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(place, error) from error
    if found != expected:
        raise DamagedCheckpointError(
            f"expected the files of a checkpoint with digest {expected!s:.16}, got {found:.16} in {place}; {_REMOVE}"
        )


def _read_meta(place: Path) -> Mapping[str, Any]:
    """The schema, the leaves and the digest of a checkpoint.

    Raises:
        ValueError: it is damaged.
        OSError: it can't be read.
    """
    meta = load_json(place / "meta" / "metadata")
    if not isinstance(meta, dict) or not isinstance(meta.get("schema"), int) or not isinstance(meta.get("leaves"), dict):
        raise ValueError("no schema and leaves")
    if not isinstance(meta.get("digest", ""), str):
        raise ValueError("no digest")
    return meta


@dataclasses.dataclass(frozen=True)
class StoredState:
    """What a checkpoint holds, as numpy arrays.

    Attributes:
        schema: the version of the checkpoint format.
        state: the state dict of the searcher's state (``flax.serialization.to_state_dict``).
        key_data: the raw data of the run's PRNG key.
    """

    schema: int
    state: Mapping[str, Any]
    key_data: np.ndarray


def remove_partial(folder: Path) -> None:
    """Removes what a process has left in a folder that was killed, or found the disk full, while it wrote a checkpoint."""
    for partial in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(partial, ignore_errors=True)


def checkpoint_steps(folder: str | Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, ascending; writes nothing and takes no lock."""
    folder = Path(folder)
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def read_checkpoint(folder: str | Path, step: int) -> StoredState:
    """Reads a checkpoint on any devices, without knowing the state's shapes; writes nothing and takes no lock.

    Args:
        folder: the folder of checkpoints.
        step: one of :func:`checkpoint_steps`.

    Raises:
        DamagedCheckpointError: the checkpoint is damaged.
        InputError: the disk or the memory refuses.
    """
    place = Path(folder).resolve() / str(step)
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)  # it warns of files that checkpoints of a manager do not have
    try:
        _check_files(place)
        meta = _read_meta(place)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            shapes = checkpointer.metadata(place / "search").item_metadata
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes.tree)
            found = checkpointer.restore(place / "search", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        stored = StoredState(meta["schema"], found["state"], np.asarray(found["key_data"]))
    except InputError:
        raise
    except Exception as error:  # orbax and tensorstore do not document what they raise
        raise _unreadable(place, error) from error
    finally:
        absl.setLevel(level)
    _check_digest(meta, {"state": stored.state, "key_data": stored.key_data}, place)
    return stored


class Checkpoints:
    """A folder of atomically written checkpoints.

    A checkpoint holds the searcher's state, the raw data of the run's PRNG key, the schema version, and a digest of state and
    key, because a flipped bit in an array is not an error of the file format. A digest of its files finds damage before they
    are read. Its step is the number of finished generations. Checkpoints are written in another thread, one at a time, while
    the search goes on.

    Attributes:
        folder: the folder.
        every: generations between two checkpoints.
    """

    def __init__(self, folder: str | Path, *, every: int = 10, keep: int = 2) -> None:
        """Args:
        folder: created if it is missing. No other process may write checkpoints into it: partial ones are removed.
        every: generations between two checkpoints.
        keep: how many checkpoints are kept, the newest ones.
        """  # noqa: D205
        self.every = every
        self.folder = Path(folder).resolve()
        remove_partial(self.folder)
        options: dict[str, Any] = {}
        if jax.process_count() > 1:  # of a distributed run this process alone has checkpoints
            self.folder.mkdir(parents=True, exist_ok=True)
            options = {"create": False, "multiprocessing_options": one_process()}
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False, **options),
        )
        self._writer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: concurrent.futures.Future[None] | None = None
        self._latest = self._manager.latest_step()
        self._newest = self._latest or 0

    def save(self, step: int, state: Any, key: PRNGKeyArray) -> None:
        """Starts to write a checkpoint, unless the step has one; waits for the one before.

        Args:
            step: number of finished generations.
            state: state of the searcher, a pytree.
            key: PRNG key of the run.

        Raises:
            OSError: the disk was full, or has refused otherwise, when the checkpoint before was written.
        """
        self.wait()
        if step not in self._manager.all_steps():
            self._newest = step
            self._writing = self._writer.submit(self._write, step, _copy(state, key), leaf_shapes(state))

    def _write(self, step: int, contents: Mapping[str, Any], leaves: Mapping[str, str]) -> None:
        items = ocp.args.Composite(
            search=ocp.args.StandardSave(contents),
            meta=ocp.args.JsonSave({"schema": SCHEMA, "leaves": leaves, "digest": _digest(contents)}),
        )
        with one_disk_error(self.folder):
            self._manager.save(step, args=items)
            self._manager.wait_until_finished()
            place = self.folder / str(step)
            write_json(
                place / _FILES, {"schema": SCHEMA, "digest": _files_digest(place / "search"), "meta": _meta_digest(place)}
            )
        self._latest = self._manager.latest_step()

    def check(self) -> None:
        """Raises the error of a checkpoint that could not be written; waits for none.

        Raises:
            OSError: the disk is full, or refuses otherwise.
        """
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the checkpoint that is being written is complete.

        Raises:
            OSError: the disk is full, or refuses otherwise.
        """
        if self._writing is not None:
            writing = self._writing
            concurrent.futures.wait([writing])  # an interrupt leaves it to the next call
            self._writing = None
            try:
                writing.result()
            except BaseException:
                self._newest = self._latest or 0
                raise

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None if there is none."""
        return self._latest

    def newest(self) -> int:
        """Step of the newest checkpoint, complete or not; 0 if there is none."""
        return self._newest

    def remove(self, step: int) -> None:
        """Removes the checkpoint of a step."""
        self.wait()
        self._manager.delete(step)
        self._latest = self._manager.latest_step()
        self._newest = self._latest or 0

    def restore(self, like: Any, key: PRNGKeyArray) -> tuple[int, Any]:
        """Reads the newest checkpoint.

        Args:
            like: a state with the same leaves, shapes and dtypes.
            key: PRNG key of the run; it must equal the saved one.

        Returns:
            The step and the state.

        Raises:
            DamagedCheckpointError: the checkpoint is damaged.
            InputError: the disk or the memory refuses; or it has another schema, other leaves or another key.
        """
        self.wait()
        step = self._manager.latest_step()
        assert step is not None, "no checkpoint to restore"
        place = self.folder / str(step)
        _check_files(place)
        try:
            meta = _read_meta(place)
        except (OSError, MemoryError, ValueError) as error:
            raise _unreadable(place, error) from error
        if meta["schema"] != SCHEMA:
            raise InputError(
                f"expected a checkpoint of schema {SCHEMA}, got schema {meta['schema']} in {self.folder}; use the version of "
                "cycleqd_jax that wrote it, or remove the checkpoints to replay the journal"
            )
        if meta["leaves"] != leaf_shapes(like):
            raise InputError(
                f"expected a checkpoint with the leaves and shapes of this run's state, got others in {self.folder}; use the "
                f"config and the version of that run ({OLD_BASES}), or another folder"
            )
        contents = _contents(like, key)
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, contents)
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(search=ocp.args.StandardRestore(target)))["search"]
        except Exception as error:  # orbax and tensorstore do not document what they raise
            raise _unreadable(place, error) from error
        _check_digest(meta, found, place)
        if not bool((found["key_data"] == contents["key_data"]).all()):
            raise InputError(
                f"expected a checkpoint with the PRNG key of this run, got another key in {self.folder}; use the seed of that "
                "run, or another folder"
            )
        state = found["state"] if jax.process_count() == 1 else jax.tree.map(jnp.asarray, found["state"])
        return step, flax.serialization.from_state_dict(like, state)

    def close(self) -> None:
        """Waits until what is being written is complete, and ends the thread.

        Raises:
            OSError: the disk is full, or refuses otherwise.
        """
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._manager.close()
