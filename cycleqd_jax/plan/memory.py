"""Bytes of a workload on one device of a mesh: the formulas of :mod:`cycleqd_jax.plan.estimate`."""

from __future__ import annotations

import math

import jax.numpy as jnp

from cycleqd_jax.engine.cache import SHARED_BLOCK
from cycleqd_jax.engine.drafts import CONTEXT, text_columns
from cycleqd_jax.engine.products import ROWS
from cycleqd_jax.genome.basis import basis_bytes
from cycleqd_jax.genome.express import block_shape
from cycleqd_jax.operators.svd import OVERSAMPLING
from cycleqd_jax.plan.leaves import Leaf, leaves_of
from cycleqd_jax.plan.workload import GenomeWorkload, Mesh, Workload

__all__ = ["GenomeMemory", "Memory"]


class GenomeMemory:
    """Bytes of models and genomes on each device, unless another place is named.

    Args:
        work: what is to be computed.
        mesh: how devices are arranged.
        platform: ``"cpu"`` or ``"gpu"``.

    Attributes:
        leaves: the model's weights.
        itemsize: bytes of each weight.

    Raises:
        InputError: the mesh does not divide the model.
    """

    def __init__(self, work: GenomeWorkload, mesh: Mesh, platform: str) -> None:
        self.work, self.mesh, self.platform = work, mesh, platform
        self.leaves = leaves_of(work, mesh)
        self.itemsize = jnp.dtype(work.model.dtype).itemsize

    @property
    def weights(self) -> int:
        """One model."""
        return sum(leaf.local for leaf in self.leaves) * self.itemsize

    @property
    def experts(self) -> int:
        """The leaves of experts that a space works with; experts are given by their weights."""
        return sum(leaf.changes.experts * leaf.local for leaf in self.leaves) * self.itemsize

    @property
    def whole_weights(self) -> int:
        """One model on disk."""
        return sum(leaf.size for leaf in self.leaves) * self.itemsize

    @property
    def bases(self) -> int:
        """The bases of all experts, and the factors of adapters."""
        return sum(leaf.stack * leaf.directions * (leaf.factor * (leaf.rows + leaf.columns) + 4) for leaf in self.leaves)

    @property
    def updates(self) -> int:
        """All τ that are held as such."""
        return sum(4 * leaf.local * sum(leaf.changes.updates) for leaf in self.leaves)

    @property
    def decomposed(self) -> list[Leaf]:
        """The leaves that the basis stage decomposes."""
        return [leaf for leaf in self.leaves if leaf.decomposed]

    @property
    def stored_bases(self) -> int:
        """The bases on disk."""
        experts, rank = self.work.experts, self.work.rank
        return sum(basis_bytes((leaf.stack, leaf.m, leaf.n), experts, rank) for leaf in self.decomposed)

    @property
    def adapters(self) -> int:
        """Factors and whole leaves of all adapters, in the host's memory."""

        def of(leaf: Leaf, rank: int | None) -> int:
            return 4 * (leaf.size if rank is None else leaf.stack * rank * (leaf.m + leaf.n))

        given = [adapter for adapter in self.work.adapters if adapter is not None]
        return sum(of(leaf, adapter[leaf.path]) for adapter in given for leaf in self.leaves if leaf.path in adapter)

    @property
    def genome(self) -> int:
        """One genome."""
        return sum(4 * leaf.stack * leaf.width for leaf in self.leaves) + 4 * self.work.experts

    @property
    def archives(self) -> int:
        """All archives, full."""
        return self.work.cells * self.genome

    @property
    def express_temporaries(self) -> int:
        """Temporaries of express."""

        def of(leaf: Leaf) -> int:
            stacked = "/" in leaf.path
            rows, columns = (leaf.rows, leaf.columns) if stacked else block_shape(leaf.rows, leaf.columns, leaf.directions)
            # factors that are cut out of a stack are copied, and so is the one that diag(c ⊙ s) is multiplied into
            scales_u = leaf.factor == 2 or rows <= columns
            u = stacked or rows < leaf.rows or scales_u
            vt = stacked or columns < leaf.columns or not scales_u
            return 4 * rows * columns + leaf.factor * leaf.directions * (u * rows + vt * columns)

        stacked = [of(leaf) for leaf in self.leaves if leaf.directions and "/" in leaf.path]
        others = [of(leaf) for leaf in self.leaves if leaf.directions and "/" not in leaf.path]
        scales = sum(4 * leaf.stack * leaf.directions for leaf in self.leaves if "/" in leaf.path)  # c ⊙ s, matrix by matrix
        return scales + max([sum(stacked) if self.platform == "cpu" else max(stacked, default=0), *others])

    def decompose_memory(self, leaf: Leaf) -> int:
        """Input, output and temporaries of the decomposition of one matrix, without the work space of the library."""
        rank = leaf.width // self.work.experts
        matrix, factors = 4 * leaf.m * leaf.n, 4 * (rank * (leaf.m + leaf.n + 1))
        small = 4 * min(leaf.m, leaf.n) ** 2
        sketch = 4 * (rank + OVERSAMPLING) * (leaf.m + leaf.n)
        return {"svd": 2 * matrix + factors, "gram": 2 * matrix + factors + 2 * small, "randomized": matrix + factors + sketch}[
            self.work.method
        ]


class Memory(GenomeMemory):
    """Bytes of language models, their genomes and the engine.

    Attributes:
        layout: the engine's sizes.
        compute: bytes of each number of activations.
    """

    work: Workload

    def __init__(self, work: Workload, mesh: Mesh, platform: str) -> None:
        super().__init__(work, mesh, platform)
        self.layout = work.layout(platform)
        self.compute = jnp.dtype(work.model.compute_dtype or work.model.dtype).itemsize
        self.tensor = mesh[2]

    def cache(self, rows: int | float, columns: int | float) -> float:
        """Columns of the KV cache, for this many rows."""
        return rows * columns * self.layout.column_bytes / self.tensor

    @property
    def one_stack(self) -> int:
        """The largest stack of the child's matrices, which is in memory twice while the engine takes it apart."""
        return max(leaf.local for leaf in self.leaves if "/" in leaf.path) * self.itemsize

    @property
    def kv_cache(self) -> float:
        """The KV cache."""
        return self.layout.cache_bytes / self.tensor

    @property
    def drafts(self) -> float:
        """The drafts and replies of all slots, which every device has; 0 if there are none."""
        slots, window = self.work.slots, self.layout.window
        return 0.0 if window == 1 else 4.0 * slots * (text_columns(self.work.max_len, window) + 1 + CONTEXT)

    @property
    def prefill_temporaries(self) -> float:
        """Temporaries of a prefill: those of one layer."""
        c, layout = self.work.model, self.layout
        size, columns = layout.batches[-1], layout.columns
        tokens = layout.batch_tokens(size)
        states = 4 * tokens * c.hidden_size * self.compute
        units = 2 * tokens * c.intermediate_size / self.tensor * self.compute
        if layout.attention.implementation == "products":
            heads = c.num_attention_heads / self.tensor
            # Queries, keys, values and results of padded rows, and the scores of some rows.
            padded = 2 * size * layout.chunk * (heads + c.num_key_value_heads / self.tensor) * c.head_dim * self.compute
            scores = 8 * math.gcd(size, ROWS) * layout.chunk * heads * max(layout.page, SHARED_BLOCK)
            return states + max(units, padded + scores)
        rows = self.cache(size, columns) / c.num_hidden_layers
        mask = tokens * columns * (1 + self.compute)
        scores = 0.0
        if layout.attention.implementation != "cudnn":
            rows *= 2  # gathered, and in the order of the products
            seen = max(columns, layout.shared_columns(1))
            scores = tokens * c.num_attention_heads / self.tensor * seen * (4 + self.compute)
        return max(states + units, states + rows + mask + scores)

    @property
    def _pool_results(self) -> float:
        """The results of one query for every page of the pool, with its scores and weights."""
        c, layout = self.work.model, self.layout
        return 4 * c.num_attention_heads / self.tensor * layout.pages * (c.head_dim + 2 + 2 * layout.page)

    @property
    def decode_temporaries(self) -> float:
        """Temporaries of the decode steps."""
        c, layout, slots = self.work.model, self.layout, self.work.slots
        whole = 4 * slots * c.vocab_size
        found = 4 * whole / self.tensor + (whole if self.tensor > 1 else 0)
        heads = c.num_attention_heads / self.tensor
        if layout.attention.implementation == "products":
            found += self._pool_results
        if layout.attention.implementation == "xla":  # a transposed copy of the whole cache, and scores
            found += self.kv_cache + slots * heads * layout.page * (4 + self.compute)
        return found

    @property
    def verify_temporaries(self) -> float:
        """Temporaries of the steps that verify drafts; 0 if there are none."""
        c, layout = self.work.model, self.layout
        if layout.window == 1:
            return 0.0
        tokens, heads = self.work.slots * layout.window, c.num_attention_heads / self.tensor
        whole = 4 * tokens * c.vocab_size
        found = whole / self.tensor + (whole if self.tensor > 1 else 0)
        if layout.attention.implementation == "products":
            found += layout.window * self._pool_results
        if layout.attention.implementation == "xla":
            found += self.kv_cache + tokens * heads * layout.page * (4 + self.compute)
        return found
