"""``cycleqd basis``: the experts' singular directions, decomposed once, kept by orbax and found again by what they depend on.

A store is a folder ``<cache>/basis/<digest>``; the digest is that of all that its numbers depend on, written out in
``meta.json``. Every leaf of the model is an orbax checkpoint of its own, with its facts beside it: a stage that was killed goes
on at the leaf it was at.
"""

from __future__ import annotations

import json
import math
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

from cycleqd_jax.config import RunConfig
from cycleqd_jax.files import digest, locked, make_folder, write_json
from cycleqd_jax.genome.basis import Basis, Sketch, dense_bases, low_rank_bases, matrix_leaves, sketch
from cycleqd_jax.genome.experts import check_experts
from cycleqd_jax.genome.similarity import similarity
from cycleqd_jax.operators.svd import Method
from cycleqd_jax.runs.folder import folder_digest
from cycleqd_jax.runs.models import Models
from cycleqd_jax.types import Adapter, Array, InputError, Params, Progress, tree_paths

__all__ = ["Experts", "Stored", "basis_text", "experts_of", "stored_bases"]

RECIPE = 2
"""Part of every store's digest; raised whenever the same experts would be decomposed, or stored, otherwise."""

Facts = dict[str, Any]


class Experts(NamedTuple):
    """What a basis is of.

    Attributes:
        base: weights θ_base.
        experts: of each task.
        identity: all that the numbers depend on, as JSON: what the store is found by.
        rank: directions kept per matrix; None keeps all.
        method: of the decomposition.
        densify: see :class:`~cycleqd_jax.config.GenomeConfig`.
    """

    base: Params
    experts: Sequence[Params | Adapter]
    identity: Mapping[str, Any]
    rank: int | None = None
    method: Method = "svd"
    densify: bool = False


class Stored(NamedTuple):
    """What the stage gives.

    Attributes:
        bases: of every leaf that experts change as a whole, by path, as :class:`~cycleqd_jax.genome.ExpertSpace` takes them, in
            the host's memory: in float32 they may be larger than a device.
        facts: what ``basis.json`` holds: shapes, ranks, retained energy and seconds by leaf, and how alike the experts are.
        folder: of the store.
    """

    bases: dict[str, Basis]
    facts: Facts
    folder: Path


def experts_of(config: RunConfig, models: Models) -> Experts:
    """Base and experts of a run, with the identity of their basis: the content of their files, and what is made of it.

    Args:
        config: of the run, in the expert space.
        models: its models, which are loaded.

    Raises:
        InputError: the run has no basis, as it evolves whole task vectors.
    """
    options = config.genome
    if options.space != "expert":
        raise InputError("genome.space: dense evolves whole task vectors: it has no basis. Leave this stage out.")
    identity = {
        "recipe": RECIPE,
        "base": folder_digest(models.folders["base"]),
        "experts": [folder_digest(models.folders[f"expert/{name}"]) for name in config.task_names],
        "dtype": config.model.dtype,
        "vocab_size": config.model.vocab_size,
        "rank": options.rank,
        "method": options.method,
        "densify": options.densify,
    }
    return Experts(models.base, models.experts, identity, options.rank, options.method, options.densify)


def stored_bases(of: Experts, cache: Path, progress: Progress, say: Callable[[str], None]) -> Stored:
    """The bases of experts: read from the cache, or decomposed and put there, on all devices of this process.

    Low-rank updates (LoRA) are not stored: their factors are given. Another process that makes the same basis is waited for.

    Args:
        of: base and experts.
        cache: folder of all stores.
        progress: shown leaf by leaf.
        say: for single lines: what was found, and what was broken and is made again.

    Raises:
        InputError: the experts do not belong together (:func:`~cycleqd_jax.genome.experts.check_experts`), the store is of
            others than its name says, or the disk is too small.
    """
    check_experts(of.base, of.experts)
    dense, low_rank = matrix_leaves(of.base, of.experts, densify=of.densify)
    store = _Store(cache / "basis" / digest(of.identity, digits=16), of)
    make_folder(store.folder / "leaves")
    make_folder(cache / "locks")
    found: dict[str, tuple[Basis, Facts]] = {}
    store.find(dense, found)
    facts = store.report(found)
    if len(found) == len(dense) and facts is not None:
        say(f"basis: {store.folder}")
        return Stored({path: found[path][0] for path in dense}, facts, store.folder)
    with locked(cache / "locks" / f"basis-{store.folder.name}", wait=True):
        store.claim(say)
        store.find(dense, found, say)  # others may have been at work meanwhile
        if found:
            say(f"basis: {len(found)} of {len(dense)} leaves are in {store.folder}")
        store.make(dense, found, progress)
        facts = store.report(found)
        if facts is None:
            facts = _describe(of, {path: found[path] for path in dense}, low_rank) | {"digest": store.folder.name}
            write_json(store.folder / "basis.json", facts)
    return Stored({path: found[path][0] for path in dense}, facts, store.folder)


class _Broken(Exception):
    """A leaf of a store can't be used; the message says why."""


class _Store:
    """One folder of leaves."""

    def __init__(self, folder: Path, of: Experts) -> None:
        self.folder = folder
        self._of = of
        self._identity = json.loads(json.dumps(of.identity))
        self._leaves = dict(tree_paths(of.base))

    def _meta(self) -> Any:
        """What the store says that it is of; None where that can't be read."""
        try:
            return json.loads((self.folder / "meta.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def claim(self, say: Callable[[str], None]) -> None:
        """Writes what the store is of, or compares it with what is written."""
        wanted, found = self._identity, self._meta()
        if found == wanted:
            return
        if isinstance(found, dict):
            key = next(key for key in [*wanted, *found] if wanted.get(key) != found.get(key))
            raise InputError(
                f"the basis {self.folder} was built for other experts than its name says: its {key} is {found.get(key)!r}, "
                f"expected {wanted.get(key)!r}: remove it, or choose another cache."
            )
        if any((self.folder / "leaves").iterdir()):
            say(f"basis: {self.folder / 'meta.json'} can't be read: what lies there may be anything, and is made again")
            shutil.rmtree(self.folder / "leaves")
            (self.folder / "leaves").mkdir()
        write_json(self.folder / "meta.json", wanted)

    def report(self, found: Mapping[str, tuple[Basis, Facts]]) -> Facts | None:
        """``basis.json``, where it is there and of these leaves."""
        try:
            facts = json.loads((self.folder / "basis.json").read_text("utf-8"))
            return facts if (facts["digest"], facts["checksum"]) == (self.folder.name, _checksum(found)) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def find(
        self, paths: Sequence[str], found: dict[str, tuple[Basis, Facts]], say: Callable[[str], None] | None = None
    ) -> None:
        """Reads the leaves that are there and not in ``found``; what is broken is said, and removed, where ``say`` is given."""
        if self._meta() != self._identity:
            return
        for path in paths:
            if path in found or not self._facts(path).exists():
                continue
            try:
                found[path] = self._read(path)
            except _Broken as error:
                if say is not None:  # the store is locked
                    say(f"basis: {path} in {self.folder} is broken ({error}) and is made again")
                    self._remove(path)

    def make(self, paths: Sequence[str], found: dict[str, tuple[Basis, Facts]], progress: Progress) -> None:
        """Decomposes, and writes one by one, the leaves that are not in ``found``."""
        of = self._of
        missing = [path for path in paths if path not in found]
        sizes = {path: sum(4 * math.prod(shape) for shape in self._shapes(path)) for path in missing}
        free = shutil.disk_usage(self.folder).free
        if free < sum(sizes.values()):
            raise InputError(
                f"expected {sum(sizes.values()) / 1e9:.1f} GB of space for the basis in {self.folder}, got {free / 1e9:.1f} "
                "GB: choose another cache, free some, or set genome.rank"
            )
        devices = jax.local_devices()
        mesh = Mesh(np.asarray(devices), ("device",)) if len(devices) > 1 else None
        started = time.perf_counter()
        for path, basis, sketched in dense_bases(of.base, of.experts, missing, of.rank, of.method, mesh):
            jax.block_until_ready(basis)
            found[path] = self._write(path, basis, sketched, time.perf_counter() - started)
            progress("basis", len(found), len(paths), {})
            started = time.perf_counter()

    def _facts(self, path: str) -> Path:
        # the checksum tells "a/b" from "a.b", and from "A/B" where file names have no case
        return self.folder / "leaves" / f"{path.replace('/', '.')}-{zlib.crc32(path.encode()):08x}.json"

    def _arrays(self, path: str) -> Path:
        return self._facts(path).with_suffix("").absolute()

    def _remove(self, path: str) -> None:
        self._facts(path).unlink(missing_ok=True)
        arrays = self._arrays(path)
        for folder in (arrays, *arrays.parent.glob(f"{arrays.name}.orbax-checkpoint-tmp*")):
            shutil.rmtree(folder, ignore_errors=True)

    def _shapes(self, path: str) -> Basis:
        *stack, m, n = self._leaves[path].shape
        count, full = len(self._of.experts), min(m, n)
        rank = full if self._of.rank is None else min(self._of.rank, full)
        shapes: Any = ((*stack, m, count, rank), (count, *stack, rank), (*stack, count, rank, n))
        return Basis(*shapes)

    def _write(self, path: str, basis: Basis, sketched: Sketch, seconds: float) -> tuple[Basis, Facts]:
        self._remove(path)
        host: dict[str, Any] = {name: np.asarray(x) for name, x in basis._asdict().items()}
        if basis.s.size:  # orbax refuses to save what is empty, the basis of a stack of no matrices
            with _checkpointer() as checkpointer:
                checkpointer.save(self._arrays(path), args=ocp.args.PyTreeSave(host))
        facts = {
            "basis": self.folder.name,
            "path": path,
            "energies": sketched.energies.tolist(),
            "projections": sketched.projections.tolist(),
            "seconds": seconds,
            "crc32": {name: zlib.crc32(np.ascontiguousarray(x).data) for name, x in host.items()},
            "files": _file_checksums(self._arrays(path)),
        }
        write_json(self._facts(path), facts)  # what says that the leaf is whole
        return Basis(**host), facts

    def _read(self, path: str) -> tuple[Basis, Facts]:
        shapes = self._shapes(path)
        try:
            facts = json.loads(self._facts(path).read_text("utf-8"))
            of, files, _ = (facts["basis"], facts["path"]), facts["files"], facts["crc32"]
            held = Sketch(*(np.asarray(facts[key], np.float64) for key in Sketch._fields))
            float(facts["seconds"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _Broken("its facts can't be read") from error
        if of != (self.folder.name, path):
            raise _Broken("it is of another basis")
        if files != _file_checksums(self._arrays(path)):
            raise _Broken("its files are not those that were written")
        try:
            host: dict[str, Any] = {name: np.empty(shape, np.float32) for name, shape in shapes._asdict().items() if 0 in shape}
            if not host:
                with _checkpointer() as checkpointer:
                    kinds = dict.fromkeys(Basis._fields, ocp.RestoreArgs(restore_type=np.ndarray))
                    host = checkpointer.restore(self._arrays(path), args=ocp.args.PyTreeRestore(restore_args=kinds))
        except Exception as error:  # orbax and tensorstore raise what they like
            raise _Broken("its arrays can't be read") from error
        wanted = {name: (shape, np.dtype(np.float32)) for name, shape in shapes._asdict().items()}
        if {name: (x.shape, x.dtype) for name, x in host.items()} != wanted:
            raise _Broken("its arrays have other shapes")
        # the digests of large files are of samples: the weights themselves have the last word
        if not _alike(held, sketch(self._of.base, self._of.experts, path)):
            raise _Broken("it is of other task vectors than the experts'")
        if not all(np.isfinite(x).all() for x in host.values()):
            raise _Broken("it holds NaN or infinity")
        return Basis(**host), facts


def _alike(one: Sketch, other: Sketch) -> bool:
    """Are these of the same task vectors, but for the order in which float32 was summed?"""
    if any(a.size != b.size for a, b in zip(one, other, strict=True)):
        return False
    one = Sketch(*(a.reshape(b.shape) for a, b in zip(one, other, strict=True)))  # JSON has no shape of what is empty
    # Random walks of rounding errors, 6e-8 sqrt(n) ‖τ‖ at most. In a matrix of 4096 × 14336 a change of one element by a
    # quarter of the others' standard deviation is seen.
    norms = np.sqrt(other.energies)[..., None]
    near = np.abs(one.projections - other.projections) <= 3e-5 * norms
    return bool(near.all()) and np.allclose(one.energies, other.energies, rtol=1e-4, atol=0.0)


def _checkpointer() -> ocp.Checkpointer:
    # Random mantissas: compression saves a twentieth of the space for two thirds of the speed.
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))


def _file_checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of every file: what orbax is given to read is whole."""
    found = {}
    for file in sorted(filter(Path.is_file, folder.rglob("*"))):
        total = 0
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                total = zlib.crc32(block, total)
        found[str(file.relative_to(folder))] = total
    return found


def _checksum(found: Mapping[str, tuple[Basis, Facts]]) -> str:
    return digest({path: facts["crc32"] for path, (_, facts) in found.items()}, digits=16)


def _describe(of: Experts, found: Mapping[str, tuple[Basis, Facts]], low_rank: Sequence[str]) -> Facts:
    """What is known of a basis, by leaf and of every pair of experts."""
    leaves: Facts = {}
    spectra: dict[str, Array] = {}
    shapes = {path: leaf.shape for path, leaf in tree_paths(of.base)}

    def describe(path: str, kind: str, s: np.ndarray, norms: np.ndarray, rank: int, seconds: float) -> None:
        *stack, m, n = shapes[path]
        held = np.sum(np.square(s, dtype=np.float64), axis=-1)
        retained = [
            [min(1.0, a / b) if b > 0 else None for a, b in zip(*rows, strict=True)]
            for rows in zip(held.reshape(len(s), -1).tolist(), norms.reshape(len(s), -1).tolist(), strict=True)
        ]
        known = [value for row in retained for value in row if value is not None]
        leaves[path] = {
            "kind": kind,
            "matrices": math.prod(stack),
            "shape": [m, n],
            "rank": rank,
            "retained": {"min": min(known), "mean": sum(known) / len(known)} if known else None,
            "retained_by_expert": retained,
            "seconds": seconds,
            "bytes": 4 * len(s) * math.prod(stack) * rank * (m + n + 1),
        }

    for path, (basis, facts) in found.items():
        spectra[path] = basis.s
        norms = np.asarray(facts["energies"], np.float64)
        describe(path, "whole", np.asarray(basis.s), norms, basis.s.shape[-1], facts["seconds"])
    started = time.perf_counter()
    for path, basis in low_rank_bases(of.base, of.experts, low_rank):
        s = np.asarray(basis.s)
        spectra[path] = basis.s
        rank = s.shape[-1] if of.rank is None else min(of.rank, s.shape[-1])
        norms = np.sum(np.square(s, dtype=np.float64), axis=-1)
        describe(path, "low-rank", s[..., :rank], norms, rank, time.perf_counter() - started)
        started = time.perf_counter()
    return {
        "method": of.method,
        "rank": of.rank,
        "leaves": leaves,
        "seconds": sum(leaf["seconds"] for leaf in leaves.values()),
        "bytes": sum(leaf["bytes"] for leaf in leaves.values()),
        "similarity": similarity(of.base, of.experts, spectra)._asdict(),
        "checksum": _checksum(found),
    }


def basis_text(facts: Facts, experts: Sequence[str]) -> str:
    """What is known of a basis, as lines for a terminal.

    Args:
        facts: see :class:`Stored`.
        experts: their names.
    """
    kept = "all directions" if facts["rank"] is None else f"{facts['rank']} directions"
    lines = [f"{facts['method']}, {kept} of every matrix: {facts['bytes'] / 1e6:.1f} MB, made in {facts['seconds']:.1f} s"]
    lines.append(f"  {'leaf':24} {'matrices':>18} {'rank':>6} {'energy: least':>14} {'mean':>9} {'seconds':>9}")
    for path, leaf in facts["leaves"].items():
        m, n = leaf["shape"]
        shape = f"{leaf['matrices']} × {m} × {n}"
        shares = ["–", "–"] if leaf["retained"] is None else [f"{leaf['retained'][key]:.4%}" for key in ("min", "mean")]
        lines.append(f"  {path:24} {shape:>18} {leaf['rank']:>6} {shares[0]:>14} {shares[1]:>9} {leaf['seconds']:>9.2f}")
    these = "" if facts["rank"] is None else ", of those kept"
    lines.append(f"similarity of experts: of singular values (the paper's{these}), and cosine of task vectors")
    tables = [facts["similarity"][key] for key in ("singular_values", "task_vectors")]
    for a in range(len(experts)):
        for b in range(a + 1, len(experts)):
            shown = ["–" if table[a][b] is None else f"{table[a][b]:.4f}" for table in tables]
            lines.append(f"  {experts[a]} and {experts[b]}: {shown[0]}, {shown[1]}")
    return "\n".join(lines)
