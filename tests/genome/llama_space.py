"""The space of three small Llama models."""

from __future__ import annotations

import functools
import math

import jax
import pytest

from cycleqd_jax import sharding
from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.models import llama
from cycleqd_jax.operators import crossover_weights

__all__ = ["CONFIG", "make_space", "mutant", "on_mesh", "params"]

CONFIG = llama.LlamaConfig(64, 32, 48, 3, 4, 4, 8, initializer_range=0.2, qk_norm=True, model_type="qwen3")


@functools.cache
def params(seed, dtype="float32"):
    return llama.init_params(CONFIG.replace(dtype=dtype), jax.random.key(seed))


@functools.cache
def make_space(dtype="float32", rank=5, **options):
    return ExpertSpace.from_experts(params(0, dtype), [params(k, dtype) for k in (1, 2, 3)], rank=rank, **options)


def mutant(space, seed=0):
    key, other = jax.random.split(jax.random.key(seed))
    child = space.crossover(space.expert(0), space.expert(2), crossover_weights(key))
    return space.mutate(other, child, 1)


def on_mesh(space, **sizes):
    if len(jax.devices()) < math.prod(sizes.values()):
        pytest.skip("needs 8 (simulated) devices")
    mesh = sharding.make_mesh(**sizes)
    return space.shard(mesh, sharding.shardings(mesh, space.base, llama.logical_axes(CONFIG)))
