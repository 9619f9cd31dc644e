"""Memory, FLOPs and bytes of every stage of a run, from the shapes of its model alone.

The formulas, all per device; a sum over leaves takes the part of each that the mesh gives the device:

- weights W = Σ size · itemsize. An expert space holds the base and K experts, (K + 1) W, and one more W for the child.
- bases = Σ over stacks of matrices [m, n] of K r (f (m + n) + 4), r = min(rank, m, n). f is 4 bytes, or 2 where the weights are
  bfloat16; on disk, and of low-rank updates, 4. u has the rows' part, vt the columns': of a matrix that is split along one side
  only, the other factor is whole on every device.
- LoRA adapters: no W of their own. Of a leaf that they alone change, r is the largest of their ranks, whatever is kept of it
  for mutation, and nothing is decomposed or stored. Of one that another expert changes as a whole, every τ is held, 4 · size.
- genome = Σ 4 · K r + 4 K; an archive of C cells C genomes.
- express: 2 · m n · K r FLOPs of operands of f bytes; reads base, experts and factors once, writes the child. It holds c ⊙ s,
  and for one matrix (or block of one), on a CPU one of every stack, which are made at the same time: the product in float32,
  and a copy of what is cut out of the stacks of factors.
- the engine keeps its KV cache from child to child; the last child's weights go before the next child's are made. When it
  takes a child apart into layers, one stack of matrices is there twice.
- KV cache of N columns: 2 · layers · N · kv_heads · head_dim · itemsize. On a GPU each slot has a chunk more than its longest
  conversation, on a CPU as many pages of a chunk as that needs. Columns that prompts share are beside them: four chunks here.
- prefill goes by R rows of a chunk of T tokens: 2 FLOPs for each weight and token, 4 · heads · head_dim · N for each token's
  attention to the N columns of its row. It holds the states and hidden units of its tokens, those rows' keys and values of one
  layer, mask and bias; without cuDNN scores too, in float32 and as weights, R · heads · T · N · (4 + itemsize). An episode's
  prompt is prefilled once, whatever the turn that a part of it comes in: conversations stay in the cache.
- a decode step: reads the weights and what is in use of the cache; 2 FLOPs for each weight and slot. A slot that is done takes
  the next reply: there are as many steps as tokens of all replies, divided by the slots, though no fewer than those of the
  longest episode. It holds four arrays of every slot's logits in float32, and the whole ones where the vocabulary is split;
  on a CPU what attention has found in every page, on a GPU without cuDNN a copy of the cache, and scores.
- a product that sums over a split axis is summed over the devices: 2 (d − 1) / d of its result goes over the links.
- svd: 6 · m n² + 20 n³ FLOPs for m ≥ n, gram: 2 · m n² + 9 n³ + 2 · m n r (Golub and Van Loan). randomized, w = min(r + 16, n)
  and i = 2 passes: (2 i + 2) products of 2 · m n w, i + 1 QRs of 4 · m w² and i of 4 · n w², and the SVD and last product of
  what is left, 26 · m w².
- bytes of a decomposition: base and expert read, τ written in float32 and read (svd once, gram twice, randomized 2 i + 2
  times), factors written. The basis stage takes the greatest of FLOPs and of these bytes, over all devices, and of the bases'
  bytes at the disk's rate.
- devices that share the host's memory have their part of what a stage needs there on top.

Times are those at the device's limits, the greater of FLOPs and bytes: no program takes less, real ones take more.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from cycleqd_jax.engine.cache import BLOCK, attention_for
from cycleqd_jax.genome.basis import default_factor_dtype
from cycleqd_jax.genome.express import block_shape
from cycleqd_jax.models import llama
from cycleqd_jax.operators import is_matrix
from cycleqd_jax.operators.svd import ITERATIONS, OVERSAMPLING, Method
from cycleqd_jax.plan.device import Device
from cycleqd_jax.sharding import MESH_AXES, shardings
from cycleqd_jax.types import tree_paths

__all__ = ["Changes", "Mesh", "Sizes", "Stage", "Workload", "changes", "estimate", "matrix_shapes", "sizes"]

STEPS = 16
"""Decode steps between two looks of the engine's host."""

Mesh = tuple[int, int, int]
"""Devices as population × fsdp × tensor."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is to be computed.

    Attributes:
        model: base and experts, with the dtype of their weights.
        experts: K.
        rank: singular directions kept; None keeps all.
        method: of decomposition.
        slots: prompts decoded together.
        max_len: most tokens of prompt and reply.
        new: most tokens of a reply.
        rounds: replies of one child in each round: every episode has a reply in the first, conversations in later ones too.
        prompt: tokens of a prompt that times are estimated for.
        reply: tokens of a reply likewise.
        children: per generation.
        cells: of all archives together.
        keep: checkpoints that are kept.
        workers: sandboxes at work at the same time.
        sandbox_memory: bytes that each may use.
        sandbox_disk: likewise.
        adapters: of every expert, by path, the ranks of a LoRA adapter's updates (None: the whole leaf); None in its place
            where the expert is given by its weights, as all are if this is empty.
        factor_dtype: of the directions of dense experts; None as :class:`~cycleqd_jax.genome.ExpertSpace` chooses.
    """

    model: llama.LlamaConfig
    experts: int
    rank: int | None
    method: Method
    slots: int
    max_len: int
    new: int
    rounds: tuple[int, ...]
    prompt: int
    reply: int
    children: int
    cells: int
    keep: int
    workers: int
    sandbox_memory: int
    sandbox_disk: int
    adapters: tuple[Mapping[str, int | None] | None, ...] = ()
    factor_dtype: str | None = None

    @property
    def full(self) -> int:
        """Experts that are given by their weights."""
        return self.experts - sum(adapter is not None for adapter in self.adapters)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage needs.

    Attributes:
        name: of the stage.
        device: bytes on each device, by what they are.
        host: bytes of the host's memory.
        disk: bytes on disk that the stage needs or writes.
        seconds: once for the run (load, basis), or for every child, at the device's limits; those of the sandboxes are unknown.
        source: ``estimate``, or ``XLA`` where the compiler's figures stand in its place.
    """

    name: str
    device: dict[str, float]
    host: float
    disk: float
    seconds: float
    source: str = "estimate"

    @property
    def total(self) -> float:
        """Bytes on each device."""
        return sum(self.device.values())


class Changes(NamedTuple):
    """What an expert space holds of a leaf beside the base.

    Attributes:
        experts: weights of that many experts, in the base's dtype.
        updates: whether there is a τ of each expert, in float32; empty where there are none.
        rank: of the updates, where adapters alone change it by factors; 0 elsewhere.
    """

    experts: int
    updates: tuple[bool, ...]
    rank: int

    @property
    def dense(self) -> bool:
        """Whether matrices of it are decomposed."""
        return self.experts > 0 or any(self.updates)


def changes(work: Workload, path: str) -> Changes:
    """What is held of the leaf at a path, as :meth:`~cycleqd_jax.genome.ExpertSpace.from_experts` sorts leaves."""
    if work.full == work.experts:
        return Changes(work.experts, (), 0)
    given = [adapter is None or path in adapter for adapter in work.adapters]
    ranks = [adapter[path] for adapter in work.adapters if adapter is not None and path in adapter]
    if work.full or None in ranks:
        return Changes(0, tuple(given), 0)
    return Changes(0, (), max((rank for rank in ranks if rank is not None), default=0))


class Sizes(NamedTuple):
    """How the engine lays out its cache and takes in prompts (:class:`~cycleqd_jax.engine.Engine`).

    Attributes:
        implementation: of attention.
        chunk: tokens of a row of prefill.
        rows: of the largest prefill.
        fewest: rows of the smallest.
        page: columns of a page.
        pages: of the cache, all told.
        columns: of the longest conversation.
        shared: columns that prompts share.
    """

    implementation: str
    chunk: int
    rows: int
    fewest: int
    page: int
    pages: int
    columns: int
    shared: int


def sizes(work: Workload, platform: str) -> Sizes:
    """What the engine chooses on a platform.

    Args:
        work: with slots and lengths.
        platform: ``"cpu"`` or ``"gpu"``.
    """
    attention = attention_for(work.model, platform)
    cpu = platform == "cpu"
    chunk = min(64 if cpu else 512, work.max_len)
    fewest = 2 if cpu else 1
    if not attention.paged:
        columns = work.max_len + max(chunk, STEPS)
        return Sizes(attention.implementation, chunk, 8, fewest, columns, work.slots, columns, 4 * chunk)
    width = math.ceil(work.max_len / chunk)
    pages = math.ceil((1 + work.slots * width) / BLOCK) * BLOCK
    return Sizes(attention.implementation, chunk, 8, fewest, chunk, pages, width * chunk, 4 * chunk)


class _Leaf(NamedTuple):
    """One weight and the part of it that a device holds."""

    path: str
    stack: int  # matrices
    m: int  # rows of the whole; 1 of a vector
    n: int
    rows: int  # of a device's part
    columns: int
    width: int  # K r; 0 where there is no basis
    split: int  # devices over which the rows, the axis that products sum over, are split
    matrix: bool
    directions: int  # K r with those that mutation leaves alone
    factor: int  # bytes of each number of u and vt
    changes: Changes

    @property
    def size(self) -> int:
        return self.stack * self.m * self.n

    @property
    def local(self) -> int:
        return self.stack * self.rows * self.columns


@functools.lru_cache(maxsize=256)  # of small tuples; the search for a layout asks for few of them many times
def _places(model: llama.LlamaConfig, mesh: Mesh) -> tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]:
    """Path, shape, and shape of a device's part of every weight."""
    shapes = llama.abstract_params(model)
    places: Any = shardings(AbstractMesh(mesh, MESH_AXES), shapes, llama.logical_axes(model))  # type: ignore[arg-type]
    pairs = zip(tree_paths(shapes), jax.tree.leaves(places), strict=True)
    return tuple((path, leaf.shape, place.shard_shape(leaf.shape)) for (path, leaf), place in pairs)


def _leaves(work: Workload, mesh: Mesh) -> list[_Leaf]:
    """Raises InputError where the mesh does not divide a weight."""
    found = []
    for path, shape, local in _places(work.model, mesh):
        matrix = is_matrix(path, jax.ShapeDtypeStruct(shape, jnp.float32))
        *stack, m, n = shape if matrix else (*shape[:-1], 1, shape[-1])
        rows, columns = (local[-2], local[-1]) if matrix else (1, local[-1])
        change = changes(work, path)
        most = min(m, n) if change.dense else min(change.rank, m, n)
        kept = most if work.rank is None else min(work.rank, most)
        whole = kept if change.dense else most
        width, directions = (work.experts * kept, work.experts * whole) if matrix else (0, 0)
        factor = jnp.dtype(work.factor_dtype or default_factor_dtype(work.model.dtype)).itemsize if change.dense else 4
        found.append(_Leaf(path, math.prod(stack), m, n, rows, columns, width, m // rows, matrix, directions, factor, change))
    return found


class _Model:
    """The formulas, for one workload on one mesh."""

    def __init__(self, work: Workload, mesh: Mesh, platform: str = "cpu") -> None:
        self.work, self.mesh = work, mesh
        self.platform, self.sizes = platform, sizes(work, platform)
        self.leaves = _leaves(work, mesh)
        self.itemsize = jnp.dtype(work.model.dtype).itemsize
        compute = work.model.compute_dtype or work.model.dtype
        self.compute = jnp.dtype(compute).itemsize
        self.tensor = mesh[2]

    # Memory, bytes

    @property
    def weights(self) -> int:
        return sum(leaf.local for leaf in self.leaves) * self.itemsize

    @property
    def whole_weights(self) -> int:
        return sum(leaf.size for leaf in self.leaves) * self.itemsize

    @property
    def bases(self) -> int:
        return sum(leaf.stack * leaf.directions * (leaf.factor * (leaf.rows + leaf.columns) + 4) for leaf in self.leaves)

    @property
    def updates(self) -> int:
        return sum(4 * leaf.local * sum(leaf.changes.updates) for leaf in self.leaves)

    @property
    def decomposed(self) -> list[_Leaf]:
        return [leaf for leaf in self.leaves if leaf.matrix and leaf.changes.dense]

    @property
    def stored_bases(self) -> int:
        return sum(4 * leaf.stack * leaf.width * (leaf.m + leaf.n + 1) for leaf in self.decomposed)

    @property
    def adapters(self) -> int:
        """Of the factors and whole leaves of all adapters, as the host reads them."""

        def of(leaf: _Leaf, rank: int | None) -> int:
            return 4 * (leaf.size if rank is None else leaf.stack * rank * (leaf.m + leaf.n))

        given = [adapter for adapter in self.work.adapters if adapter is not None]
        return sum(of(leaf, adapter[leaf.path]) for adapter in given for leaf in self.leaves if leaf.path in adapter)

    @property
    def genome(self) -> int:
        return sum(4 * leaf.stack * leaf.width for leaf in self.leaves) + 4 * self.work.experts

    @property
    def archives(self) -> int:
        return self.work.cells * self.genome

    def cache(self, slots: float, length: float) -> float:
        c = self.work.model
        return 2 * c.num_hidden_layers * slots * length * c.num_key_value_heads * c.head_dim * self.compute / self.tensor

    @property
    def express_temporaries(self) -> int:
        def of(leaf: _Leaf) -> int:
            stacked = "/" in leaf.path
            rows, columns = (leaf.rows, leaf.columns) if stacked else block_shape(leaf.rows, leaf.columns, leaf.directions)
            # a factor is copied where it is cut out of a stack, and the one that diag(c ⊙ s) is multiplied into
            scales_u = leaf.factor == 2 or rows <= columns
            u = stacked or rows < leaf.rows or scales_u
            vt = stacked or columns < leaf.columns or not scales_u
            return 4 * rows * columns + leaf.factor * leaf.directions * (u * rows + vt * columns)

        stacked = [of(leaf) for leaf in self.leaves if leaf.directions and "/" in leaf.path]
        others = [of(leaf) for leaf in self.leaves if leaf.directions and "/" not in leaf.path]
        scales = sum(4 * leaf.stack * leaf.directions for leaf in self.leaves if "/" in leaf.path)  # c ⊙ s, matrix by matrix
        return scales + max([sum(stacked) if self.platform == "cpu" else max(stacked, default=0), *others])

    @property
    def one_stack(self) -> int:
        """Of the child, while the engine takes it apart."""
        return max(leaf.local for leaf in self.leaves if "/" in leaf.path) * self.itemsize

    @property
    def kv_cache(self) -> float:
        return self.cache(self.sizes.pages, self.sizes.page)

    @property
    def prefill_temporaries(self) -> float:
        """Beside the cache: those of one layer, and logits of each row."""
        c, sizes = self.work.model, self.sizes
        tokens, columns = sizes.rows * sizes.chunk, sizes.columns
        states = 4 * tokens * c.hidden_size * self.compute
        units = 2 * tokens * c.intermediate_size / self.tensor * self.compute
        rows = self.cache(sizes.rows, columns) / c.num_hidden_layers
        mask = tokens * columns * (1 + self.compute)
        scores = 0.0
        if sizes.implementation != "cudnn":
            rows *= 2  # as gathered, and as products take them
            scores = tokens * c.num_attention_heads / self.tensor * max(columns, sizes.shared) * (4 + self.compute)
        return max(states + units, states + rows + mask + scores)

    @property
    def decode_temporaries(self) -> float:
        """Beside the cache."""
        c, sizes, slots = self.work.model, self.sizes, self.work.slots
        whole = 4 * slots * c.vocab_size
        found = 4 * whole / self.tensor + (whole if self.tensor > 1 else 0)
        heads = c.num_attention_heads / self.tensor
        if sizes.implementation == "products":  # of every page, and of the pages of every row
            found += 4 * heads * (c.head_dim + 2) * (sizes.pages + 2 * slots * sizes.columns / sizes.page)
        if sizes.implementation == "xla":  # which turns the axes of the whole cache around
            found += self.kv_cache + slots * heads * sizes.page * (4 + self.compute)
        return found

    def decompose_memory(self, leaf: _Leaf) -> float:
        """Input, output and temporaries of the decomposition of one matrix, without the library's own work space."""
        rank = leaf.width // self.work.experts
        matrix, factors = 4 * leaf.m * leaf.n, 4 * (rank * (leaf.m + leaf.n + 1))
        small = 4 * min(leaf.m, leaf.n) ** 2
        sketch = 4 * (rank + OVERSAMPLING) * (leaf.m + leaf.n)
        return {"svd": 2 * matrix + factors, "gram": 2 * matrix + factors + 2 * small, "randomized": matrix + factors + sketch}[
            self.work.method
        ]

    # FLOPs and seconds

    def decompose_flops(self, leaf: _Leaf) -> float:
        m, n = max(leaf.m, leaf.n), min(leaf.m, leaf.n)
        rank = leaf.width // self.work.experts
        if self.work.method == "svd":
            return 6 * m * n**2 + 20 * n**3
        if self.work.method == "gram":
            return 2 * m * n**2 + 9 * n**3 + 2 * m * n * rank
        w = min(rank + OVERSAMPLING, n)
        products = 2 * ITERATIONS + 2
        return products * 2 * m * n * w + (ITERATIONS + 1) * 4 * m * w**2 + ITERATIONS * 4 * n * w**2 + 26 * m * w**2

    def decompose_moved(self, leaf: _Leaf) -> float:
        """Bytes between a device and its memory for one matrix: see above."""
        passes = {"svd": 1, "gram": 2, "randomized": 2 * ITERATIONS + 2}[self.work.method]
        rank = leaf.width // self.work.experts
        return leaf.m * leaf.n * (2 * self.itemsize + 4 * (1 + passes)) + 4 * rank * (leaf.m + leaf.n + 1)

    def basis_seconds(self, device: Device) -> float:
        devices, count = math.prod(self.mesh), self.work.experts
        flops = sum(count * leaf.stack * self.decompose_flops(leaf) for leaf in self.decomposed)
        moved = sum(count * leaf.stack * self.decompose_moved(leaf) for leaf in self.decomposed)
        return max(flops / devices / device.single, moved / devices / device.bandwidth, self.stored_bases / device.disk)

    def express_seconds(self, device: Device) -> float:
        def of(leaf: _Leaf) -> float:
            flops = 2 * leaf.local * leaf.directions
            moved = leaf.local * (self.itemsize * (leaf.changes.experts + 2) + 4 * sum(leaf.changes.updates))
            moved += leaf.factor * leaf.stack * leaf.directions * (leaf.rows + leaf.columns)
            return max(flops / (device.half if leaf.factor == 2 else device.single), moved / device.bandwidth)

        return sum(map(of, self.leaves))

    def _forward_seconds(self, device: Device, tokens: int, logits: int, attention: float, cache: float) -> float:
        """One pass over all layers.

        Args:
            device: whose limits.
            tokens: how many go through the layers.
            logits: how many go through the head.
            attention: its FLOPs on this device.
            cache: bytes of it that are read.
        """
        rate = device.half if self.compute == 2 else device.single
        tied = self.work.model.tie_word_embeddings
        flops, moved, summed, sums = attention, cache, 0.0, 0
        for leaf in self.leaves:
            if leaf.path == "embed_tokens" and not tied:
                continue
            through = tokens if leaf.path.startswith("layers/") else logits
            moved += leaf.local * self.itemsize
            if leaf.matrix:
                flops += 2 * leaf.local * through
                if leaf.split > 1 and leaf.path != "embed_tokens":
                    summed += leaf.stack * through * leaf.columns * self.compute * 2 * (leaf.split - 1) / leaf.split
                    sums += leaf.stack
        return max(flops / rate, moved / device.bandwidth) + summed / device.link + sums * device.latency

    def _attention_flops(self, tokens: int, columns: float) -> float:
        c = self.work.model
        return 4 * c.num_hidden_layers * tokens * columns * c.num_attention_heads * c.head_dim / self.tensor

    def prefill_seconds(self, device: Device) -> float:
        """Of every episode's prompt."""
        sizes, prompt = self.sizes, self.work.prompt
        rows = self.work.rounds[0] * math.ceil(prompt / sizes.chunk)
        size = sizes.fewest if rows <= sizes.fewest else sizes.rows
        columns = sizes.page * math.ceil(prompt / sizes.page)
        tokens = size * sizes.chunk
        attention = self._attention_flops(tokens, columns)
        return math.ceil(rows / size) * self._forward_seconds(device, tokens, size, attention, self.cache(size, columns))

    def decode_seconds(self, device: Device) -> float:
        """Of all replies."""
        work = self.work
        said = sum(work.rounds) * work.reply
        steps = max(math.ceil(said / work.slots), len(work.rounds) * work.reply)
        length = work.prompt + work.reply / 2  # in the middle of a reply
        active = said / steps
        attention = self._attention_flops(work.slots, length)
        return steps * self._forward_seconds(device, work.slots, work.slots, attention, self.cache(active, length))


def estimate(work: Workload, mesh: Mesh, device: Device) -> list[Stage]:
    """What every stage needs: load, basis, express, decode, evaluate.

    Args:
        work: what is to be computed.
        mesh: population × fsdp × tensor.
        device: of which the mesh is made.

    Raises:
        InputError: the mesh does not divide the model.
    """
    model = _Model(work, mesh, "cpu" if device.chip is None else "gpu")
    devices = math.prod(mesh)
    experts = {"base": float(model.weights), "experts": float(work.full * model.weights)}
    files = (work.full + 1) * model.whole_weights + model.adapters
    stacked = max(leaf.local for leaf in model.leaves) * model.itemsize  # the host holds one at a time
    one_matrix = max((model.decompose_memory(leaf) for leaf in model.decomposed), default=0.0)
    space = {**experts, "updates": float(model.updates), "bases": float(model.bases), "archives": float(model.archives)}
    cache = {"KV cache": model.kv_cache, "shared columns": model.cache(1, model.sizes.shared)}
    child = {**space, "child": float(model.weights), **cache}
    express = {**child, "one stack": float(model.one_stack), "temporaries": float(model.express_temporaries)}
    stages = [
        Stage("load", experts, stacked + model.adapters, files, files / device.disk),
        # the host gathers the bases from all devices, and writes them
        Stage(
            "basis",
            {**experts, "temporaries": one_matrix},
            model.stored_bases,
            model.stored_bases,
            model.basis_seconds(device),
        ),
        Stage("express", express, 0, 0, model.express_seconds(device)),
        Stage(
            "decode",
            {**child, "temporaries": max(model.prefill_temporaries, model.decode_temporaries)},
            0,
            0,
            model.prefill_seconds(device) + model.decode_seconds(device),
        ),
        # telling the scores makes the archives anew
        Stage(
            "evaluate",
            {**child, "temporaries": float(model.archives)},
            work.workers * work.sandbox_memory,
            work.workers * work.sandbox_disk + work.keep * model.archives + model.whole_weights,
            0.0,
        ),
    ]
    if not device.shares_host:
        return stages
    return [dataclasses.replace(s, device={**s.device, "host": s.host / devices}) if s.host else s for s in stages]


def matrix_shapes(work: Workload) -> list[tuple[int, int]]:
    """The different shapes of matrices that are decomposed."""
    return list(dict.fromkeys((leaf.m, leaf.n) for leaf in _Model(work, (1, 1, 1)).decomposed))
