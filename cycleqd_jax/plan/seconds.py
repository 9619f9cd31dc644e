"""Seconds of a workload at a device's limits: the formulas of :mod:`cycleqd_jax.plan.estimate`."""

from __future__ import annotations

import math

from cycleqd_jax.operators.svd import ITERATIONS, OVERSAMPLING
from cycleqd_jax.plan.device import Device
from cycleqd_jax.plan.flops import attention_flops, matrix_flops
from cycleqd_jax.plan.leaves import Leaf
from cycleqd_jax.plan.memory import GenomeMemory, Memory
from cycleqd_jax.plan.workload import Workload

__all__ = ["GenomeSeconds", "Seconds"]


class GenomeSeconds:
    """Times of models and genomes at the limits of a device: the greater of FLOPs and bytes.

    Args:
        memory: the memory of the workload.
        device: whose limits.
    """

    def __init__(self, memory: GenomeMemory, device: Device) -> None:
        self.memory, self.device = memory, device
        self.work = memory.work

    def decompose_flops(self, leaf: Leaf) -> int:
        """FLOPs of the decomposition of one matrix."""
        m, n = max(leaf.m, leaf.n), min(leaf.m, leaf.n)
        rank = leaf.width // self.work.experts
        if self.work.method == "svd":
            return 6 * m * n**2 + 20 * n**3
        if self.work.method == "gram":
            return 2 * m * n**2 + 9 * n**3 + 2 * m * n * rank
        w = min(rank + OVERSAMPLING, n)
        products = 2 * ITERATIONS + 2
        return products * 2 * m * n * w + (ITERATIONS + 1) * 4 * m * w**2 + ITERATIONS * 4 * n * w**2 + 26 * m * w**2

    def decompose_moved(self, leaf: Leaf) -> int:
        """Bytes that the decomposition of one matrix reads and writes."""
        passes = {"svd": 1, "gram": 2, "randomized": 2 * ITERATIONS + 2}[self.work.method]
        rank = leaf.width // self.work.experts
        return leaf.m * leaf.n * (2 * self.memory.itemsize + 4 * (1 + passes)) + 4 * rank * (leaf.m + leaf.n + 1)

    def basis(self) -> float:
        """The basis stage, over all devices."""
        devices, count, device = math.prod(self.memory.mesh), self.work.experts, self.device
        flops = sum(count * leaf.stack * self.decompose_flops(leaf) for leaf in self.memory.decomposed)
        moved = sum(count * leaf.stack * self.decompose_moved(leaf) for leaf in self.memory.decomposed)
        return max(flops / devices / device.single, moved / devices / device.bandwidth, self.memory.stored_bases / device.disk)

    def express(self) -> float:
        """Express of one child."""
        device = self.device

        def of(leaf: Leaf) -> float:
            flops = matrix_flops(leaf.local, leaf.directions)
            moved = leaf.local * (self.memory.itemsize * (leaf.changes.experts + 2) + 4 * sum(leaf.changes.updates))
            moved += leaf.factor * leaf.stack * leaf.directions * (leaf.rows + leaf.columns)
            return max(flops / (device.half if leaf.factor == 2 else device.single), moved / device.bandwidth)

        return sum(map(of, self.memory.leaves), 0.0)


class Seconds(GenomeSeconds):
    """Times of language models: those of the engine too."""

    memory: Memory
    work: Workload

    def __init__(self, memory: Memory, device: Device) -> None:
        super().__init__(memory, device)

    def prefill(self) -> float:
        """Prefill of the prompt of every episode."""
        layout, prompt = self.memory.layout, self.work.prompt
        rows = self.work.rounds[0] * math.ceil(prompt / layout.chunk)
        # Where the cache has pages, the padding of rows is not computed.
        computed = self.work.rounds[0] * prompt if layout.attention.paged else rows * layout.chunk
        most = layout.batches[-1]
        size = layout.batch_for(min(rows, most), min(computed, layout.batch_tokens(most)))
        columns = layout.page * math.ceil(prompt / layout.page)
        tokens = layout.batch_tokens(size)
        attention = self._attention_flops(tokens, columns)
        return math.ceil(max(rows / size, computed / tokens)) * self._forward(
            tokens, size, attention, self.memory.cache(size, columns)
        )

    def decode(self) -> float:
        """Decode steps of all replies."""
        work = self.work
        tokens = sum(work.rounds) * work.reply
        steps = max(math.ceil(tokens / work.slots), len(work.rounds) * work.reply)
        length = work.prompt + work.reply / 2  # in the middle of a reply
        active = tokens / steps
        attention = self._attention_flops(work.slots, length)
        return steps * self._forward(work.slots, work.slots, attention, self.memory.cache(active, length))

    def _attention_flops(self, tokens: int, columns: int | float) -> float:
        return attention_flops(self.work.model, tokens * columns) / self.memory.tensor

    def _forward(self, tokens: int, logits: int, attention: float, cache: float) -> float:
        """One pass over all layers.

        Args:
            tokens: how many go through the layers.
            logits: how many go through the head.
            attention: FLOPs of attention on this device.
            cache: bytes of the KV cache that are read.
        """
        memory, device = self.memory, self.device
        rate = device.half if memory.compute == 2 else device.single
        tied = self.work.model.tie_word_embeddings
        flops, moved, summed, sums = attention, cache, 0.0, 0
        for leaf in memory.leaves:
            if leaf.path == "embed_tokens" and not tied:
                continue
            through = tokens if leaf.path.startswith("layers/") else logits
            moved += leaf.local * memory.itemsize
            if leaf.matrix:
                flops += matrix_flops(leaf.local, through)
                if leaf.split > 1 and leaf.path != "embed_tokens":
                    summed += leaf.stack * through * leaf.columns * memory.compute * 2 * (leaf.split - 1) / leaf.split
                    sums += leaf.stack
        return max(flops / rate, moved / device.bandwidth) + summed / device.link + sums * device.latency
