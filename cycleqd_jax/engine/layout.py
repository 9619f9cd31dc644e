"""Sizes of an engine: how its cache is divided, and for which shapes its programs are compiled."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from cycleqd_jax.engine.attention import Attention, KVCacheDtype, attention_for
from cycleqd_jax.engine.cache import BLOCK, SHARED_BLOCK
from cycleqd_jax.models.llama import LlamaConfig
from cycleqd_jax.types import InputError

__all__ = ["STEPS", "WINDOW", "EngineLayout", "check_mesh"]

STEPS = 16
"""Decode steps between two host syncs, unless the engine is given another number."""

WINDOW = 8
"""Tokens per row of a step that verifies drafts, where a run uses drafts."""


@dataclasses.dataclass(frozen=True)
class EngineLayout:
    """Every size of an engine, computed from shapes alone; holds no arrays.

    The engine and ``cycleqd plan`` both read their sizes here. Make one with :meth:`of`.

    Attributes:
        config: the model.
        attention: the implementation of attention.
        slots: conversations that are decoded at the same time.
        max_len: the most tokens of a prompt and its reply together.
        steps: decode steps between two host syncs.
        chunk: tokens per row of a prefill.
        page: columns of a page.
        pages: pages of the cache at its largest: room for ``slots`` conversations of ``max_len`` tokens.
        batches: rows of the compiled prefill programs, smallest first.
        counts: rows of the compiled decode programs, smallest first.
        width: pages of the longest row.
        verify_counts: rows of the compiled programs that verify drafts, smallest first.
        window: tokens per row of these programs; 1 where drafts are ignored.
    """

    config: LlamaConfig
    attention: Attention
    slots: int
    max_len: int
    steps: int
    chunk: int
    page: int
    pages: int
    batches: tuple[int, ...]
    counts: tuple[int, ...]
    width: int
    verify_counts: tuple[int, ...]
    window: int

    @classmethod
    def of(
        cls,
        config: LlamaConfig,
        *,
        slots: int,
        max_len: int,
        platform: str,
        attention: Attention | None = None,
        steps: int = STEPS,
        chunk: int | None = None,
        window: int = 1,
        kv_cache_dtype: KVCacheDtype = "auto",
    ) -> EngineLayout:
        """The sizes for a model, a workload and a platform.

        Args:
            config: the model.
            slots: conversations that are decoded at the same time.
            max_len: the most tokens of a prompt and its reply together.
            platform: ``"cpu"``, or another one of ``jax.Device.platform``.
            attention: None takes the fastest implementation for the platform.
            steps: decode steps between two host syncs.
            chunk: tokens per row of a prefill; None takes the platform's.
            window: tokens per row of a step that verifies drafts; 1 ignores drafts.
            kv_cache_dtype: of the fastest implementation; see :class:`Attention`.

        Raises:
            InputError: a size is below its least value, ``max_len`` is beyond the model's positions, or the platform does not
                have ``kv_cache_dtype``.
        """
        if slots < 1 or steps < 1 or (chunk is not None and chunk < 1) or not 2 <= max_len <= config.context_length:
            raise InputError(
                "expected at least 1 slot, 1 step, a chunk of at least 1 token and a max_len from 2 to the model's "
                f"{config.context_length} positions, got {slots} slots, {steps} steps, chunk {chunk} and max_len {max_len}; "
                "correct the engine's settings"
            )
        if not 1 <= window <= max_len:
            raise InputError(
                f"expected a window of 1 to max_len = {max_len} tokens, got {window}; correct the engine's settings"
            )
        cpu = platform == "cpu"
        attention = attention or attention_for(config, platform, kv_cache_dtype)
        # On a CPU 512 tokens keep the cores busy; a GPU needs thousands.
        chunk = min(chunk or (64 if cpu else 512), max_len)
        if not attention.paged:
            if chunk == 1:
                raise InputError("expected a chunk of at least 2 tokens where the cache has no pages, got 1; make it larger")
            page = max_len + max(chunk, steps, window)  # the last chunk of a prompt is written whole
            return cls(config, attention, slots, max_len, steps, chunk, page, slots, (1, 8), (slots,), 1, (slots,), window)
        width = -(-max_len // chunk)
        pages = whole_blocks(1 + slots * width)  # page 0 is where rows without a reply write
        # Products do not skip empty rows: only active ones are decoded, by a program for each of a few counts.
        counts = (*(count for count in _sizes(slots, smallest=min(8, slots)) if count < slots), slots)
        windows = (*(2**i for i in range(32) if 2**i < slots), slots)
        return cls(config, attention, slots, max_len, steps, chunk, chunk, pages, (4, 16), counts, width, windows, window)

    @property
    def computed(self) -> LlamaConfig:
        """The model as the programs compute it.

        A CPU multiplies bfloat16 numbers fast and is slow at everything else with them: activations are float32 there.
        """
        narrow = self.attention.paged and (self.config.compute_dtype or self.config.dtype) == "bfloat16"
        return self.config.replace(compute_dtype="float32") if narrow else self.config

    @property
    def transposed(self) -> bool:
        """Whether matrices are kept transposed: faster on CPUs, but not for products of bfloat16 numbers."""
        return self.attention.paged and self.config.dtype == "float32"

    @property
    def columns(self) -> int:
        """Columns of the longest conversation."""
        return self.width * self.page

    @property
    def positions(self) -> int:
        """Positions that a program may compute: a chunk of a prompt may have padding."""
        return self.max_len + max(self.chunk, self.window)

    @property
    def verify_steps(self) -> int:
        """Windows between two host syncs: a reply ends after fewer of them than of decode steps."""
        return max(1, self.steps // 4)

    def wastes_time(self, windows: int, tokens: int) -> bool:
        """Whether the drafts of a reply take longer than plain steps.

        A GPU takes about as long for a window as for one token. A CPU computes each token: a window of 8 takes 3.6 to 4.8
        plain steps (SmolLM2-135M in float32, 8 to 96 rows). After a difference the right place is sometimes found a few windows
        later, so the first windows need only half as many tokens.

        Args:
            windows: verified windows of the reply.
            tokens: tokens that came from them.
        """
        least = self.window / 2 if windows > self.verify_steps else self.window / 4
        return self.attention.paged and tokens < least * windows

    @functools.cached_property
    def column_bytes(self) -> int:
        """Bytes of one column: keys and values of one token in all layers."""
        cache = self.attention.abstract(self.config, 1, 1)
        return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(cache))

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache at its largest, without shared columns."""
        return self.pages * self.page * self.column_bytes

    def batch_tokens(self, rows: int) -> int:
        """Tokens of the prefill program with this many rows. Where the cache has pages, rows may be half empty on average."""
        return rows * self.chunk // (2 if self.attention.paged else 1)

    def batch_for(self, rows: int, tokens: int) -> int:
        """Rows of the smallest prefill program that takes this many rows with this many tokens together."""
        return next(size for size in self.batches if size >= rows and self.batch_tokens(size) >= tokens)

    def count_for(self, rows: int) -> int:
        """Rows of the smallest decode program that takes this many."""
        return next(size for size in self.counts if size >= rows)

    def verify_count_for(self, rows: int) -> int:
        """Rows of the smallest program that verifies drafts for this many."""
        return next(size for size in self.verify_counts if size >= rows)

    def aligned(self, columns: int) -> int:
        """This many shared columns, rounded up to where another prefix may begin."""
        size = math.lcm(self.chunk, SHARED_BLOCK) if self.attention.paged else self.chunk
        return -(-columns // size) * size

    def shared_columns(self, columns: int) -> int:
        """The smallest size of an array of shared columns that has room for this many."""
        return _sizes(columns, smallest=4 * self.chunk)[-1]


def check_mesh(config: LlamaConfig, mesh: Mesh | AbstractMesh) -> None:
    """Checks that a cache can be split over a mesh.

    Raises:
        InputError: the mesh has no axis ``tensor``, or its size does not divide the KV heads.
    """
    if "tensor" not in mesh.shape:
        raise InputError(
            f"expected a mesh with an axis 'tensor', got the axes {list(mesh.shape)}; build it with sharding.make_mesh"
        )
    if config.num_key_value_heads % mesh.shape["tensor"]:
        raise InputError(
            f"expected an axis 'tensor' whose size divides the model's {config.num_key_value_heads} KV heads, got "
            f"{mesh.shape['tensor']} devices in the mesh; choose a smaller size"
        )


def whole_blocks(pages: int) -> int:
    """This many pages, rounded up to whole blocks of :data:`BLOCK` pages."""
    return -(-pages // BLOCK) * BLOCK


def _sizes(most: int, smallest: int) -> tuple[int, ...]:
    """Powers of two and the sizes halfway between them, from ``smallest`` up to the first that reaches ``most``."""
    sizes = [smallest]
    while sizes[-1] < most:
        last = sizes[-1]
        sizes.append(last * 3 // 2 if last & (last - 1) == 0 else last * 4 // 3)
    return tuple(sizes)
