"""What an engine keeps on its devices, weights and caches, and the calls of programs on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cycleqd_jax.engine import programs
from cycleqd_jax.engine.batches import Batches, Chunk
from cycleqd_jax.engine.cache import BLOCK, KVCache
from cycleqd_jax.engine.layout import EngineLayout
from cycleqd_jax.engine.likelihood import Scored, score
from cycleqd_jax.engine.requests import Request
from cycleqd_jax.engine.scheduler import Slot
from cycleqd_jax.engine.scores import Part
from cycleqd_jax.engine.verify import Verified, verify
from cycleqd_jax.models import llama
from cycleqd_jax.types import Array, InputError, MixedMatrix, NonFiniteError, Params, PyTree, leaf_path

__all__ = ["Runner"]


class Runner:
    """Weights, the cache and the shared columns.

    A call of a program donates the cache and replaces it. If a call raises, the cache may be deleted: call :meth:`lose`.

    Args:
        layout: sizes.
        batches: makes the programs' arguments.
        stop_ids: tokens that end a reply.
        mesh: where the caches lie; None is the default device.

    Attributes:
        params: the weights, layer by layer, or None.
        individuals: how many the weights belong to; None where they are those of one model.
        cache: the pool of pages, or None.
        shared: the shared columns, or None.
    """

    def __init__(self, layout: EngineLayout, batches: Batches, stop_ids: tuple[int, ...], mesh: Mesh | None) -> None:
        self._layout = layout
        self._batches = batches
        self._stop_ids = stop_ids
        self._mesh = mesh
        self._expected = _shapes(llama.abstract_params(layout.config))
        self.params: Params | None = None
        self.individuals: int | None = None
        self.cache: KVCache | None = None
        self.shared: KVCache | None = None

    # Weights

    def check(self, params: PyTree) -> None:
        """Checks that weights fit the model.

        Raises:
            InputError: names, shapes or dtypes differ from the config's.
        """
        expected, got = self._expected, _shapes(params)
        for path in expected | got:
            if expected.get(path) != got.get(path):
                raise InputError(
                    f"expected {_describe(expected.get(path))} for the weight {path!r}, got {_describe(got.get(path))}; load "
                    "weights of the engine's own config"
                )

    def load(self, params: Params, *, donate: bool) -> None:
        """Takes the weights apart layer by layer; see :meth:`cycleqd_jax.engine.Engine.load`."""
        self.params = llama.unstack(params, donate=donate, transposed=self._layout.transposed)
        if self._layout.attention.paged:
            self.params |= llama.for_products(self.params, self._layout.config, self._layout.positions)
        self.individuals = llama.num_individuals(params)

    # Caches

    @property
    def pages(self) -> int:
        """Pages of the cache."""
        return 0 if self.cache is None else self._layout.attention.shape(self.cache)[0]

    @property
    def shared_columns(self) -> int:
        """How many there are."""
        return self._columns_of(self.shared)

    def lose(self) -> None:
        """Deletes the cache and the shared columns."""
        self.cache = self.shared = None

    def grow(self, pages: int) -> None:
        """Enlarges the cache to this many pages."""
        if self.cache is None:
            self.cache = self._layout.attention.init(self._layout.config, pages, self._layout.page, self._mesh)
        else:
            self.cache = programs.grow(self.cache, attention=self._layout.attention, pages=pages)

    def swap(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Swaps pages of the cache, a block of pairs per call; no pair is one call too."""
        for start in range(0, max(len(pairs), 1), BLOCK):
            some = pairs[start : start + BLOCK]
            block = np.zeros((BLOCK, 2), np.int32)
            block[: len(some)] = np.asarray(some, np.int32).reshape(-1, 2)
            assert self.cache is not None
            self.cache = programs.swap(self.cache, block, np.int32(len(some)))

    def set_shared_columns(self, columns: int) -> None:
        """Replaces the shared columns by this many empty ones; 0 deletes them."""
        self.shared = None
        self.shared = self._empty_shared(columns)

    def _empty_shared(self, columns: int) -> KVCache | None:
        return self._layout.attention.init(self._layout.config, 1, columns, self._mesh) if columns else None

    # Programs

    def prefill(self, batch: Sequence[Chunk]) -> tuple[Array, Array]:
        """Starts the prefill of a batch of chunks.

        Returns:
            The token after each chunk and whether its logits are finite, on the device; rows past the batch repeat its first.
        """
        self.cache, *results = self._prefill(self.cache, self.shared, batch, self._size_for(batch))
        return results[0], results[1]

    def prefill_shared(self, batch: Sequence[Chunk]) -> tuple[Array, Array]:
        """The same as :meth:`prefill`, into the shared columns."""
        self.shared, *results = self._prefill(self.shared, None, batch, self._layout.batches[-1])
        return results[0], results[1]

    def score(self, parts: Sequence[Part], batch: Sequence[Chunk], top: int) -> Scored:
        """Starts the scoring of a batch of chunks; the targets are those of the parts, in order, with ``top`` alternatives."""
        return self._score(parts, batch, self._size_for(batch), self.shared, top)

    def decode(self, slots: Sequence[Slot]) -> tuple[Array, Array, Array]:
        """Starts the decode steps of these slots, a row for each; some may have no request.

        Returns:
            The new tokens, how many of them are valid in each row, and whether the row's logits are finite; on the device.
        """
        return self._decode(slots, self.shared)

    def verify(self, slots: Sequence[Slot]) -> Verified:
        """Starts the verification of the drafts of these slots, a row for each; some may have no request."""
        return self._verify(slots, self.shared)

    def warm_up(self, shared_columns: Iterable[int], *, scoring: bool) -> bool:
        """Compiles all programs, without and with shared columns of these sizes; the cache must have its largest size.

        Args:
            shared_columns: the sizes.
            scoring: whether the programs that score given tokens are compiled too.

        Returns:
            Whether all logits were finite.
        """
        found = []
        if self._layout.attention.paged:
            self.swap([])
        for columns in (0, *shared_columns):
            common = self._empty_shared(columns)
            if common is not None:
                common, _, finite = self._prefill(common, None, [], self._layout.batches[-1])
                found.append(finite)
            for size in self._layout.batches:
                self.cache, _, finite = self._prefill(self.cache, common, [], size)
                found.append(finite)
                if scoring:
                    found.append(self._score([], [], size, common, 0).finite)
            for count in self._layout.counts:
                found.append(self._decode([Slot()] * count, common)[2])
            for count in self._layout.verify_counts if self._layout.window > 1 else ():
                found.append(self._verify([Slot()] * count, common).finite)
        return all(np.asarray(finite).all() for finite in found)

    def _columns_of(self, shared: KVCache | None) -> int:
        return 0 if shared is None else self._layout.attention.shape(shared)[1]

    def _prefill(
        self, cache: KVCache | None, shared: KVCache | None, batch: Sequence[Chunk], size: int
    ) -> tuple[KVCache, Array, Array]:
        columns = self._columns_of(shared)
        tokens, requests, packing = self._batches.prefill(batch, size=size, shared_columns=columns)
        layout = self._layout
        return programs.prefill(
            self.params, cache, shared, tokens, requests, packing, config=layout.computed, attention=layout.attention
        )

    def _size_for(self, batch: Sequence[Chunk]) -> int:
        return self._layout.batch_for(len(batch), sum(len(chunk.tokens) for chunk in batch))

    def _score(self, parts: Sequence[Part], batch: Sequence[Chunk], size: int, shared: KVCache | None, top: int) -> Scored:
        columns = self._columns_of(shared)
        tokens, requests, packing, targets = self._batches.score(parts, batch, size=size, shared_columns=columns)
        layout = self._layout
        self.cache, scored = score(
            self.params,
            self.cache,
            shared,
            tokens,
            requests,
            packing,
            targets,
            config=layout.computed,
            attention=layout.attention,
            top=top,
        )
        return scored

    def _decode(self, slots: Sequence[Slot], shared: KVCache | None) -> tuple[Array, Array, Array]:
        columns = self._columns_of(shared)
        token, requests = self._batches.decode(slots, shared_columns=columns, pages=self.pages)
        self.cache, *results = programs.decode(
            self.params,
            self.cache,
            shared,
            token,
            requests,
            config=self._layout.computed,
            attention=self._layout.attention,
            steps=self._layout.steps,
            stop_ids=self._stop_ids,
        )
        return results[0], results[1], results[2]

    def _verify(self, slots: Sequence[Slot], shared: KVCache | None) -> Verified:
        layout, columns = self._layout, self._columns_of(shared)
        sources, requests = self._batches.verify(slots, shared_columns=columns, pages=self.pages)
        self.cache, found = verify(
            self.params,
            self.cache,
            shared,
            sources,
            requests,
            config=layout.computed,
            attention=layout.attention,
            steps=layout.verify_steps,
            window=layout.window,
            stop_ids=self._stop_ids,
        )
        return found

    def diagnose(self, request: Request, ids: Sequence[int] = ()) -> NonFiniteError:
        """The error for logits that are not finite, with the weight or the layer that causes them.

        Args:
            request: whose logits they are.
            ids: new tokens of its reply.
        """
        assert self.params is not None
        params = llama.select(self.params, jnp.array([request.individual]))
        where = f" of individual {request.individual}" if self.individuals is not None else ""
        message = f"the model's logits{where} are not finite"
        leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda x: isinstance(x, llama.TransposedMatrix))[0]
        for path, leaf in leaves:
            weight = leaf.w if isinstance(leaf, llama.TransposedMatrix) else leaf
            if not bool(jnp.isfinite(weight).all()):
                return NonFiniteError(f"{message}: its weight {leaf_path(path)} is not", request.individual)
        tokens = jnp.asarray([*request.prompt, *request.ids, *ids], jnp.int32)[None]
        try:
            finite = np.asarray(llama.finite_layers(params, self._layout.computed, tokens))
        except jax.errors.JaxRuntimeError:  # out of memory
            return NonFiniteError(f"{message}: some layer overflows", request.individual)
        place = "the output layer" if finite.all() else f"layer {int(np.argmin(finite))} of {len(finite)}"
        return NonFiniteError(f"{message}: {place} overflows", request.individual)


def _shapes(params: PyTree) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every weight, and of a mixed matrix that of what its individuals share."""
    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda x: isinstance(x, MixedMatrix))[0]
    whole = [(path, leaf.w if isinstance(leaf, MixedMatrix) else leaf) for path, leaf in leaves]
    return {leaf_path(path): (leaf.shape, leaf.dtype) for path, leaf in whole}


def _describe(leaf: tuple[tuple[int, ...], np.dtype] | None) -> str:
    return "none" if leaf is None else f"shape {list(leaf[0])} {leaf[1]}"
