"""The experts' singular directions: decomposed once, and kept in the cache by the content of base and experts."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cycleqd_jax.config import RunConfig
from cycleqd_jax.files import digest, load_json, locked, make_folder, write_json
from cycleqd_jax.genome.basis import Basis, basis_bytes, low_rank_bases, matrix_leaves
from cycleqd_jax.genome.experts import check_experts
from cycleqd_jax.genome.similarity import similarity
from cycleqd_jax.runs.basis.store import BasisStore, Experts, Facts, Leaves, checksum
from cycleqd_jax.runs.inputs.models import Models
from cycleqd_jax.types import Array, InputError, Progress, tree_paths

__all__ = ["StoredBasis", "experts_of", "load_basis", "write_facts"]

RECIPE = 3
"""Part of every store's digest; raised whenever the same experts would be decomposed, or stored, differently."""


class StoredBasis(NamedTuple):
    """A basis and its metadata.

    Attributes:
        bases: the bases of every leaf that experts change as a whole, by path, as :class:`~cycleqd_jax.genome.ExpertSpace`
            takes them. They are in the host's memory, since in float32 they may exceed that of a device.
        facts: the content of ``basis.json``: shapes, ranks, retained energy and seconds by leaf, and the similarity of experts.
        folder: the folder of the store.
    """

    bases: dict[str, Basis]
    facts: Facts
    folder: Path


def experts_of(config: RunConfig, models: Models) -> Experts:
    """Base and experts of a run, with the identity of their basis.

    Args:
        config: the config of the run.
        models: the models of the run; they are loaded if necessary.

    Raises:
        InputError: the run evolves whole task vectors, which need no basis.
    """
    options = config.genome
    if options.space != "expert":
        raise InputError(
            f"expected genome.space: expert for a basis, got {options.space}, which evolves whole task vectors; leave this "
            "stage out"
        )
    identity = {
        "recipe": RECIPE,
        "base": models.folders.digest(models.folders.base_name),
        "experts": [models.folders.digest(f"expert/{name}") for name in config.expert_names],
        "dtype": config.model.dtype,
        "vocab_size": config.model.vocab_size,
        "rank": options.rank,
        "method": options.method,
        "densify": options.densify,
    }
    return Experts(models.base, models.experts, identity, options.rank, options.method, options.densify)


def load_basis(experts: Experts, cache: Path, progress: Progress, log: Callable[[str], None]) -> StoredBasis:
    """The basis of experts: read from the cache, or decomposed on all devices of this process and put there.

    Low-rank updates (LoRA) are not stored: their factors are given. Another process that builds the same basis is waited for.

    Args:
        experts: base and experts.
        cache: the run's cache.
        progress: called leaf by leaf.
        log: called with single lines: what was found, and which corrupt leaves are rebuilt.

    Raises:
        InputError: the experts do not belong together (:func:`~cycleqd_jax.genome.experts.check_experts`), the store belongs to
            others, or the disk is too small.
    """
    check_experts(experts.base, experts.experts)
    dense, low_rank = matrix_leaves(experts.base, experts.experts, densify=experts.densify)
    store = BasisStore(cache / "basis" / digest(experts.identity, digits=16), experts)
    make_folder(store.folder / "leaves")
    make_folder(cache / "locks")
    leaves: Leaves = {}
    store.read(dense, leaves)
    facts = store.read_report(leaves)
    if len(leaves) == len(dense) and facts is not None:
        log(f"basis: {store.folder}")
        return StoredBasis({path: leaves[path][0] for path in dense}, facts, store.folder)
    with locked(cache / "locks" / f"basis-{store.folder.name}", wait=True):
        store.claim(log)
        store.read(dense, leaves, log)  # another process may have written leaves meanwhile
        if leaves:
            log(f"basis: {len(leaves)} of {len(dense)} leaves are in {store.folder}")
        store.build(dense, leaves, progress)
        facts = store.read_report(leaves)
        if facts is None:
            facts = _describe(experts, {path: leaves[path] for path in dense}, low_rank) | {"digest": store.folder.name}
            store.write_report(facts)
    return StoredBasis({path: leaves[path][0] for path in dense}, facts, store.folder)


def write_facts(file: Path, facts: Facts, log: Callable[[str], None]) -> None:
    """Writes ``tables/basis.json`` of a run; warns where the basis is not the one that the run began with."""
    before = None
    with contextlib.suppress(OSError, ValueError):  # it is not there yet, or damaged
        before = load_json(file)
    if isinstance(before, dict) and before.get("digest") == facts["digest"] and before.get("checksum") != facts["checksum"]:
        log("warning: the basis was rebuilt since this run began, and its last bits differ: the run may not continue exactly")
    write_json(file, facts)


def _describe(experts: Experts, leaves: Mapping[str, tuple[Basis, Facts]], low_rank: Sequence[str]) -> Facts:
    """What is known of a basis, by leaf, and the similarity of every pair of experts."""
    shapes = {path: leaf.shape for path, leaf in tree_paths(experts.base)}
    described: Facts = {}
    spectra: dict[str, Array | np.ndarray] = {}
    for path, (basis, facts) in leaves.items():
        spectra[path] = basis.s
        energies = np.asarray(facts["energies"], np.float64)
        described[path] = _describe_leaf(shapes[path], "whole", np.asarray(basis.s), energies, facts["seconds"])
    started = time.perf_counter()
    for path, basis in low_rank_bases(experts.base, experts.experts, low_rank):
        s = np.asarray(basis.s)
        spectra[path] = basis.s
        rank = s.shape[-1] if experts.rank is None else min(experts.rank, s.shape[-1])
        energies = np.sum(np.square(s, dtype=np.float64), axis=-1)
        described[path] = _describe_leaf(shapes[path], "low-rank", s[..., :rank], energies, time.perf_counter() - started)
        started = time.perf_counter()
    return {
        "method": experts.method,
        "rank": experts.rank,
        "leaves": described,
        "seconds": sum(leaf["seconds"] for leaf in described.values()),
        "bytes": sum(leaf["bytes"] for leaf in described.values()),
        "similarity": similarity(experts.base, experts.experts, spectra)._asdict(),
        "checksum": checksum(leaves),
    }


def _describe_leaf(shape: tuple[int, ...], kind: str, s: np.ndarray, energies: np.ndarray, seconds: float) -> dict[str, Any]:
    """What is known of one leaf.

    Args:
        shape: the shape of the leaf, ``[*stack, m, n]``.
        kind: ``"whole"`` or ``"low-rank"``.
        s: singular values kept, ``[expert, *stack, rank]``.
        energies: squared norms of the task vectors, ``[expert, *stack]``.
        seconds: spent on its decomposition.
    """
    *stack, m, n = shape
    rank, matrices = s.shape[-1], math.prod(stack)
    kept = np.sum(np.square(s, dtype=np.float64), axis=-1)
    retained = [
        [min(1.0, a / b) if b > 0 else None for a, b in zip(*rows, strict=True)]
        for rows in zip(kept.reshape(len(s), -1).tolist(), energies.reshape(len(s), -1).tolist(), strict=True)
    ]
    known = [value for row in retained for value in row if value is not None]
    return {
        "kind": kind,
        "matrices": matrices,
        "shape": [m, n],
        "rank": rank,
        "retained": {"min": min(known), "mean": sum(known) / len(known)} if known else None,
        "retained_by_expert": retained,
        "seconds": seconds,
        "bytes": basis_bytes(shape, len(s), rank),
    }
