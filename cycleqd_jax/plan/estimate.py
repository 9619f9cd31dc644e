"""Memory, FLOPs and bytes of every stage of a run, from the shapes of its model.

The formulas. All are per device: a sum over leaves takes the part of each leaf that the mesh gives the device.

- Weights: W = Σ size · itemsize. An expert space holds the base and K experts, (K + 1) W, and W for the child.
- Bases: Σ over stacks of matrices [m, n] of K r (f (m + n) + 4), with r = min(rank, m, n). f is 4 bytes, or 2 where the weights
  are bfloat16; on disk and for low-rank updates it is 4. u is split with the rows, vt with the columns; where a matrix is split
  along one side only, the factor of the other side is whole on every device.
- LoRA adapters hold no W of their own. In a leaf that only adapters change, r is the largest of their ranks, whatever mutation
  keeps of it, and nothing is decomposed or stored. In a leaf that another expert changes as a whole, every τ is held, 4 · size.
- Genome: Σ 4 · K r + 4 K. An archive of C cells holds C genomes.
- Express: 2 · m n · K r FLOPs with operands of f bytes; it reads base, experts and factors once and writes the child. It holds
  c ⊙ s; for one matrix (or a block of one) the product in float32 and a copy of the factors cut out of their stacks; on a CPU
  that of one matrix of every stack, which are computed at the same time.
- The engine keeps its KV cache from child to child. The weights of a child are freed before the next child is made. While the
  engine takes a child apart into layers, one stack of matrices is in memory twice.
- KV cache of N columns: 2 · layers · N · kv_heads · head_dim · itemsize; with int8 (head_dim + 4) bytes for every head. On a
  GPU each slot has a chunk more than its longest conversation, on a CPU whole pages of a chunk. The shared columns come on top:
  four chunks in this estimate.
- Prefill computes R rows of a chunk of T tokens: 2 FLOPs per weight and token, and 4 · heads · head_dim · N per token for
  attention to the N columns of its row. It holds states and hidden units of its tokens, keys and values of its rows in one
  layer, mask and bias; without cuDNN also the scores, in float32 and as weights, R · heads · T · N · (4 + itemsize).
  Conversations stay in the cache: every part of an episode's prompt is computed once.
- A decode step reads the weights and the used part of the cache, and takes 2 FLOPs per weight and slot. A free slot takes the
  next reply: the number of steps is that of all replies' tokens over the slots, and at least that of the longest episode. It
  holds four arrays of every slot's logits in float32, and whole logits where the vocabulary is split; on a CPU the results of
  attention for every page; on a GPU without cuDNN a copy of the cache, and scores.
- A product that sums over a split axis is reduced over d devices: 2 (d − 1) / d of its result goes over the links.
- Decomposition by svd: 6 · m n² + 20 n³ FLOPs for m ≥ n; by gram: 2 · m n² + 9 n³ + 2 · m n r (Golub and Van Loan); by
  randomized, with w = min(r + 16, n) and i = 2 passes: 2 i + 2 products of 2 · m n w, i + 1 QRs of 4 · m w², i QRs of 4 · n w²,
  and 26 · m w² for the SVD and the last product.
- Bytes of a decomposition: base and expert are read, τ is written in float32 and read (svd once, gram twice, randomized 2 i + 2
  times), and the factors are written. The basis stage takes the longest of its FLOPs and these bytes, over all devices, and the
  bytes of the bases at the disk's rate.
- Devices that share the host's memory also hold their part of what a stage needs on the host.

Times are lower bounds, at the device's limits: the greater of FLOPs and bytes.
"""

from __future__ import annotations

import dataclasses
import math

from cycleqd_jax.plan.device import Device
from cycleqd_jax.plan.memory import Memory
from cycleqd_jax.plan.seconds import Seconds
from cycleqd_jax.plan.workload import Mesh, Workload

__all__ = ["Stage", "estimate"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage needs.

    Attributes:
        name: the name of the stage.
        device: bytes on each device, by their use.
        host: bytes of the host's memory.
        disk: bytes on disk that the stage needs or writes.
        seconds: the time at the device's limits, once per run (load, basis) or per child; time in sandboxes is not included.
        source: ``estimate``, or ``XLA`` where the figures are the compiler's.
    """

    name: str
    device: dict[str, int | float]
    host: int | float
    disk: int | float
    seconds: float
    source: str = "estimate"

    @property
    def total(self) -> int | float:
        """Bytes on each device."""
        return sum(self.device.values())


def estimate(work: Workload, mesh: Mesh, device: Device) -> list[Stage]:
    """What every stage needs: load, basis, express, decode, evaluate.

    Args:
        work: what is to be computed.
        mesh: population × fsdp × tensor.
        device: the kind of device.

    Raises:
        InputError: the mesh does not divide the model.
    """
    memory = Memory(work, mesh, "cpu" if device.chip is None else "gpu")
    seconds = Seconds(memory, device)
    devices = math.prod(mesh)
    experts = {"base": float(memory.weights), "experts": float(work.full * memory.weights)}
    files = (work.full + 1) * memory.whole_weights + memory.adapters
    stacked = max(leaf.local for leaf in memory.leaves) * memory.itemsize  # the host holds one stack at a time
    one_matrix = max((memory.decompose_memory(leaf) for leaf in memory.decomposed), default=0.0)
    space = {**experts, "updates": float(memory.updates), "bases": float(memory.bases), "archives": float(memory.archives)}
    cache = {"KV cache": memory.kv_cache, "shared columns": memory.cache(1, memory.layout.shared_columns(1))}
    child = {**space, "child": float(memory.weights), **cache}
    express = {**child, "one stack": float(memory.one_stack), "temporaries": float(memory.express_temporaries)}
    stages = [
        Stage("load", experts, stacked + memory.adapters, files, files / device.disk),
        # the host gathers the bases from all devices and writes them
        Stage(
            "basis",
            {**experts, "temporaries": one_matrix},
            memory.stored_bases,
            memory.stored_bases,
            seconds.basis(),
        ),
        Stage("express", express, 0, 0, seconds.express()),
        Stage(
            "decode",
            {
                **child,
                "drafts": memory.drafts,
                "temporaries": max(memory.prefill_temporaries, memory.decode_temporaries, memory.verify_temporaries),
            },
            0,
            0,
            seconds.prefill() + seconds.decode(),
        ),
        # adding the scores copies the archives
        Stage(
            "evaluate",
            {**child, "temporaries": float(memory.archives)},
            work.workers * work.sandbox_memory,
            work.workers * work.sandbox_disk + work.keep * memory.archives + memory.whole_weights,
            0.0,
        ),
    ]
    if not device.shares_host:
        return stages
    return [dataclasses.replace(s, device={**s.device, "host": s.host / devices}) if s.host else s for s in stages]
