"""The store of a basis: one orbax checkpoint for each leaf of the model, with its facts beside it.

A store is the folder ``<cache>/basis/<digest>``. The digest covers everything the numbers depend on, which ``meta.json`` spells
out. A stage that was killed continues at the leaf it was at.
"""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from cycleqd_jax.disk_errors import one_disk_error
from cycleqd_jax.files import check_space, digest, load_json, write_json
from cycleqd_jax.genome.basis import Basis, Sketch, basis_bytes, basis_shapes, dense_bases, sketch
from cycleqd_jax.operators.svd import Method
from cycleqd_jax.search import one_process
from cycleqd_jax.types import Adapter, InputError, Params, Progress, tree_paths

__all__ = ["BasisStore", "Experts", "Facts", "Leaves", "checksum"]

Facts = dict[str, Any]
Leaves = dict[str, tuple[Basis, Facts]]
"""The leaves of a basis in the host's memory with their facts, by path."""


class Experts(NamedTuple):
    """The models that a basis belongs to.

    Attributes:
        base: weights θ_base.
        experts: one for each task.
        identity: everything the numbers depend on, as JSON; its digest names the store.
        rank: directions kept per matrix; None keeps all.
        method: the method of the decomposition.
        densify: see :class:`~cycleqd_jax.config.GenomeConfig`.
    """

    base: Params
    experts: Sequence[Params | Adapter]
    identity: Mapping[str, Any]
    rank: int | None = None
    method: Method = "svd"
    densify: bool = False


class CorruptLeaf(Exception):
    """A leaf of a store can't be used; the message says why."""


class BasisStore:
    """One folder of leaves.

    Attributes:
        folder: the folder of the store.
    """

    def __init__(self, folder: Path, experts: Experts) -> None:
        """Reads nothing yet.

        Args:
            folder: the folder of the store.
            experts: the models that its basis belongs to.
        """
        self.folder = folder
        self._experts = experts
        self._identity = json.loads(json.dumps(experts.identity))
        self._leaves = dict(tree_paths(experts.base))

    def claim(self, log: Callable[[str], None]) -> None:
        """Writes the identity of the store, or compares it with the one that is written.

        Raises:
            InputError: the store belongs to other experts.
        """
        expected, found = self._identity, self._meta()
        if found == expected:
            return
        if isinstance(found, dict):
            pairs = {key: (expected.get(key, "<absent>"), found.get(key, "<absent>")) for key in [*expected, *found]}
            key, (wanted, got) = next((key, pair) for key, pair in pairs.items() if pair[0] != pair[1])
            raise InputError(
                f"expected {key} {wanted!r} in the basis {self.folder}, got {got!r}, so it was built for other experts than "
                "its name says; remove it, or choose another cache"
            )
        if any((self.folder / "leaves").iterdir()):
            log(f"warning: {self.folder / 'meta.json'} can't be read, so the basis beside it is rebuilt")
            shutil.rmtree(self.folder / "leaves")
            (self.folder / "leaves").mkdir()
        write_json(self.folder / "meta.json", expected)

    def read_report(self, leaves: Mapping[str, tuple[Basis, Facts]]) -> Facts | None:
        """``basis.json``, if it describes these leaves."""
        try:
            facts = load_json(self.folder / "basis.json")
            return facts if (facts["digest"], facts["checksum"]) == (self.folder.name, checksum(leaves)) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_report(self, facts: Facts) -> None:
        """Writes ``basis.json``."""
        write_json(self.folder / "basis.json", facts)

    def read(self, paths: Sequence[str], leaves: Leaves, log: Callable[[str], None] | None = None) -> None:
        """Reads the leaves that are stored and not in ``leaves`` yet.

        Args:
            paths: the paths of the wanted leaves.
            leaves: those read before; those found are added.
            log: called with warnings about corrupt leaves, which are then removed (the caller holds the store's lock); None
                leaves them as they are.
        """
        if self._meta() != self._identity:
            return
        for path in paths:
            if path in leaves or not self._facts_file(path).exists():
                continue
            try:
                leaves[path] = self._read_leaf(path)
            except CorruptLeaf as error:
                if log is not None:
                    log(f"warning: the leaf {path} of the basis {self.folder} is corrupt ({error}) and is rebuilt")
                    self._remove(path)

    def build(self, paths: Sequence[str], leaves: Leaves, progress: Progress) -> None:
        """Decomposes the leaves that are not in ``leaves``, and writes and adds them one by one.

        Raises:
            InputError: the disk is too small.
        """
        experts = self._experts
        missing = [path for path in paths if path not in leaves]
        nbytes = sum(basis_bytes(self._leaves[path].shape, len(experts.experts), experts.rank) for path in missing)
        check_space(self.folder, nbytes, "the basis", "choose another cache, or set genome.rank")
        devices = jax.local_devices()
        mesh = Mesh(np.asarray(devices), ("device",)) if len(devices) > 1 else None
        started = time.perf_counter()
        for path, basis, sketched in dense_bases(experts.base, experts.experts, missing, experts.rank, experts.method, mesh):
            jax.block_until_ready(basis)
            leaves[path] = self._write_leaf(path, basis, sketched, time.perf_counter() - started)
            progress("basis", len(leaves), len(paths), {})
            started = time.perf_counter()

    def _meta(self) -> Any:
        """The identity that the store was built with; None where it can't be read."""
        try:
            return load_json(self.folder / "meta.json")
        except (OSError, ValueError):
            return None

    def _facts_file(self, path: str) -> Path:
        # The checksum tells "a/b" from "a.b", and from "A/B" on file systems that ignore case.
        return self.folder / "leaves" / f"{path.replace('/', '.')}-{zlib.crc32(path.encode()):08x}.json"

    def _arrays_folder(self, path: str) -> Path:
        return self._facts_file(path).with_suffix("").absolute()

    def _remove(self, path: str) -> None:
        self._facts_file(path).unlink(missing_ok=True)
        arrays = self._arrays_folder(path)
        for folder in (arrays, *arrays.parent.glob(f"{arrays.name}.orbax-checkpoint-tmp*")):
            shutil.rmtree(folder, ignore_errors=True)

    def _write_leaf(self, path: str, basis: Basis, sketched: Sketch, seconds: float) -> tuple[Basis, Facts]:
        self._remove(path)
        host = Basis(*(np.asarray(x) for x in basis))
        if host.s.size:  # orbax refuses to save empty arrays: the basis of an empty stack
            with one_disk_error(self.folder), checkpointer() as orbax:
                orbax.save(self._arrays_folder(path), args=ocp.args.PyTreeSave(host._asdict()))
        facts = {
            "basis": self.folder.name,
            "path": path,
            "energies": sketched.energies.tolist(),
            "projections": sketched.projections.tolist(),
            "seconds": seconds,
            "crc32": {name: zlib.crc32(np.ascontiguousarray(x).data) for name, x in host._asdict().items()},
            "files": file_checksums(self._arrays_folder(path)),
        }
        write_json(self._facts_file(path), facts)  # written last: a leaf with facts is complete
        return host, facts

    def _read_leaf(self, path: str) -> tuple[Basis, Facts]:
        fields = basis_shapes(self._leaves[path].shape, len(self._experts.experts), self._experts.rank)
        shapes = dict(zip(Basis._fields, fields, strict=True))
        try:
            facts = load_json(self._facts_file(path))
            owner, files, _ = (facts["basis"], facts["path"]), facts["files"], facts["crc32"]
            stored = Sketch(*(np.asarray(facts[key], np.float64) for key in Sketch._fields))
            float(facts["seconds"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptLeaf("its facts can't be read") from error
        if owner != (self.folder.name, path):
            raise CorruptLeaf("it belongs to another basis")
        if files != file_checksums(self._arrays_folder(path)):
            raise CorruptLeaf("its files are not those that were written")
        try:
            host = {name: np.empty(shape, np.float32) for name, shape in shapes.items() if 0 in shape}
            if not host:
                with checkpointer() as orbax:
                    kinds = dict.fromkeys(Basis._fields, ocp.RestoreArgs(restore_type=np.ndarray))
                    host = orbax.restore(self._arrays_folder(path), args=ocp.args.PyTreeRestore(restore_args=kinds))
        except Exception as error:  # orbax and tensorstore raise many types
            raise CorruptLeaf("its arrays can't be read") from error
        expected = {name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()}
        if {name: (x.shape, x.dtype) for name, x in host.items()} != expected:
            raise CorruptLeaf("its arrays have other shapes")
        # The names of a store can be copied, so the task vectors themselves are compared too.
        if not _same_task_vectors(stored, sketch(self._experts.base, self._experts.experts, path)):
            raise CorruptLeaf("it was built from other task vectors")
        if not all(np.isfinite(x).all() for x in host.values()):
            raise CorruptLeaf("it holds NaN or infinity")
        return Basis(**host), facts


def _same_task_vectors(one: Sketch, other: Sketch) -> bool:
    """Whether two sketches belong to the same task vectors, up to the order in which float32 was summed."""
    if any(a.size != b.size for a, b in zip(one, other, strict=True)):
        return False
    one = Sketch(*(a.reshape(b.shape) for a, b in zip(one, other, strict=True)))  # JSON keeps no shape of an empty array
    # Rounding errors are random walks of at most 6e-8 sqrt(n) ‖τ‖. In a matrix of 4096 × 14336, this bound detects a change of
    # one element by a quarter of the elements' standard deviation.
    norms = np.sqrt(other.energies)[..., None]
    near = np.abs(one.projections - other.projections) <= 3e-5 * norms
    return bool(near.all()) and np.allclose(one.energies, other.energies, rtol=1e-4, atol=0.0)


def checkpointer() -> ocp.Checkpointer:
    """Writes arrays uncompressed: of random mantissas compression saves 5 % of the space, for two thirds of the speed."""
    if jax.process_count() == 1:
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
    alone = one_process()  # of a distributed run process 0 writes alone, and every process reads alone
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def file_checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of every file of a folder, by relative path: orbax is given intact files only."""
    found = {}
    for file in sorted(filter(Path.is_file, folder.rglob("*"))):
        total = 0
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                total = zlib.crc32(block, total)
        found[str(file.relative_to(folder))] = total
    return found


def checksum(leaves: Mapping[str, tuple[Basis, Facts]]) -> str:
    """A digest of all arrays of a basis."""
    return digest({path: facts["crc32"] for path, (_, facts) in leaves.items()}, digits=16)
