"""What a run computes, in numbers: the input of every estimate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from cycleqd_jax.config import RunConfig
from cycleqd_jax.engine import EngineLayout
from cycleqd_jax.engine.attention import KVCacheDtype
from cycleqd_jax.engine.layout import WINDOW
from cycleqd_jax.machine import cpu_count
from cycleqd_jax.models.llama import LlamaConfig
from cycleqd_jax.models.sam import SamConfig
from cycleqd_jax.operators.svd import Method
from cycleqd_jax.types import AdapterRanks, InputError

__all__ = ["GenomeWorkload", "Mesh", "Workload", "genome_fields", "rounds_of", "workload_of"]

Mesh = tuple[int, int, int]
"""Devices as population × fsdp × tensor."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenomeWorkload:
    """The models of a run and their genomes, whatever the models are.

    Attributes:
        model: base and experts, with the dtype of their weights.
        experts: the number K of experts.
        rank: singular directions that are kept; None keeps all.
        method: the method of the decomposition.
        children: children per generation.
        cells: cells of all archives together.
        keep: checkpoints that are kept.
        adapters: for every expert the ranks of its LoRA adapter, or None where the expert is given by its weights; empty where
            all experts are.
        factor_dtype: the dtype of the singular directions of dense experts; None is the choice of
            :class:`~cycleqd_jax.genome.ExpertSpace`.
        frozen: prefixes of the paths of leaves that no expert changes.
    """

    model: LlamaConfig | SamConfig
    experts: int
    rank: int | None
    method: Method
    children: int
    cells: int
    keep: int
    adapters: tuple[AdapterRanks | None, ...] = ()
    factor_dtype: str | None = None
    frozen: tuple[str, ...] = ()

    @property
    def full(self) -> int:
        """The number of experts that are given by their weights."""
        return self.experts - sum(adapter is not None for adapter in self.adapters)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload(GenomeWorkload):
    """What is to be computed with language models.

    Attributes:
        slots: prompts decoded together.
        max_len: most tokens of prompt and reply.
        new: most tokens of a reply.
        rounds: replies of one child in each round. Every episode has a reply in the first round; conversations have replies in
            later rounds.
        prompt: tokens of a prompt, for estimates of time.
        reply: tokens of a reply, for estimates of time.
        workers: sandboxes at work at the same time.
        sandbox_memory: bytes of memory per sandbox.
        sandbox_disk: bytes of disk per sandbox.
        drafts: platforms on which the engine verifies drafts.
        kv_cache_dtype: dtype of keys and values in the engine.
    """

    model: LlamaConfig
    slots: int
    max_len: int
    new: int
    rounds: tuple[int, ...]
    prompt: int
    reply: int
    workers: int
    sandbox_memory: int
    sandbox_disk: int
    drafts: tuple[str, ...] = ()
    kv_cache_dtype: KVCacheDtype = "auto"

    def layout(self, platform: str) -> EngineLayout:
        """The engine's sizes on a platform, ``"cpu"`` or ``"gpu"``."""
        window = min(WINDOW, self.max_len) if platform in self.drafts else 1
        return EngineLayout.of(
            self.model,
            slots=self.slots,
            max_len=self.max_len,
            platform=platform,
            window=window,
            kv_cache_dtype=self.kv_cache_dtype,
        )


def genome_fields(run: RunConfig) -> dict[str, Any]:
    """The fields of :class:`GenomeWorkload` that a config gives, without ``model``.

    Raises:
        InputError: the genome space is not ``expert``, or the search method works on coefficients.
    """
    if run.genome.space != "expert":
        raise InputError(
            f"expected genome.space to be 'expert', which cycleqd plan can estimate, got {run.genome.space!r}; a dense genome "
            "is as large as the model in float32"
        )
    if run.search.coefficients:
        raise InputError(
            f"expected search.method cycleqd, qd or dns, which cycleqd plan can estimate, got {run.search.method!r}; its "
            "genomes have a few numbers, and it needs no decomposition"
        )
    return {
        "experts": len(run.expert_names),
        "rank": run.genome.rank,
        "method": run.genome.method,
        "children": run.search.batch_size,
        "cells": _cells(run),
        "keep": run.checkpoint.keep,
        "factor_dtype": run.genome.factor_dtype,
    }


def _cells(run: RunConfig) -> int:
    """The number of genomes that the state of the search holds."""
    tasks, bins = len(run.tasks), run.search.bins
    return {"cycleqd": tasks * (run.search.cells or bins ** (tasks - 1)), "qd": bins**tasks}.get(
        run.search.method, run.search.population
    )


def rounds_of(episodes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Replies of one model in each round.

    Args:
        episodes: for every task, its number of episodes and the most replies of one episode.
    """
    rounds = range(max(replies for _, replies in episodes))
    return tuple(sum(size for size, replies in episodes if replies > i) for i in rounds)


def workload_of(
    run: RunConfig,
    model: LlamaConfig,
    episodes: Sequence[tuple[int, int]],
    *,
    adapters: tuple[AdapterRanks | None, ...] = (),
    prompt: int | None = None,
    reply: int | None = None,
) -> Workload:
    """The workload of a config.

    Args:
        run: the config.
        model: the shape in which base and experts are evaluated.
        episodes: for every task, its number of episodes and the most replies of one episode.
        adapters: see :class:`Workload`.
        prompt: tokens of a prompt, for estimates of time; None is the most that the config allows.
        reply: tokens of a reply, for estimates of time; None is the most that the config allows.

    Raises:
        InputError: the genome space is not ``expert``, the search method works on coefficients, or a number is out of its
            range.
    """
    fields = genome_fields(run)
    new = max(task.max_new_tokens for task in run.tasks)
    room = run.engine.max_len - new
    for name, value, most in (("--prompt-tokens", prompt, room), ("--reply-tokens", reply, new)):
        if value is not None and not 1 <= value <= most:
            raise InputError(f"expected {name} from 1 to the {most} that the config allows, got {value}; correct it")
    return Workload(
        **fields,
        model=model,
        slots=run.engine.slots,
        max_len=run.engine.max_len,
        new=new,
        rounds=rounds_of(episodes),
        prompt=prompt or room,
        reply=reply or new,
        workers=run.sandbox.workers or cpu_count(),
        sandbox_memory=run.sandbox.memory_mb << 20,
        sandbox_disk=run.sandbox.disk_mb << 20,
        adapters=adapters,
        drafts=tuple(platform for platform in ("cpu", "gpu", "cuda") if run.engine.uses_drafts(platform)),
        kv_cache_dtype=run.engine.kv_cache_dtype,
    )
