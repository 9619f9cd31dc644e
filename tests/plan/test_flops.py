"""FLOPs, against XLA's own count and by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from cycleqd_jax.genome import CoefficientSpace, DenseSpace, ExpertSpace
from cycleqd_jax.models import llama
from cycleqd_jax.plan import ModelFlops, express_flops, mixed_flops, product_flops
from cycleqd_jax.plan.shapes import PUBLISHED
from cycleqd_jax.types import Adapter, LowRank

CONFIG = llama.LlamaConfig(4096, 256, 640, 1, 4, 2, 64, max_position_embeddings=256)


@pytest.mark.exhaustive
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("length", [32, 128])
def test_a_forward_pass_has_the_flops_that_xla_counts(tied, length):
    config = CONFIG.replace(tie_word_embeddings=tied)
    shapes = llama.abstract_params(config)
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    program = jax.jit(lambda params, tokens: llama.forward(params, config, tokens)).lower(shapes, tokens).compile()
    found = ModelFlops.of(config)
    pairs = length * length  # the program computes masked pairs too
    expected = found.layers * length + found.head * length + found.pair * pairs
    assert program.cost_analysis()["flops"] == pytest.approx(expected, rel=0.03)  # norms, RoPE, softmax and activations


def test_llama_3_8b_has_two_flops_for_every_weight():
    config = llama.LlamaConfig.from_hf(dict(PUBLISHED["meta-llama/Meta-Llama-3-8B"]), "llama")
    found = ModelFlops.of(config)
    assert found.layers + found.head == pytest.approx(2 * (8.03e9 - 128256 * 4096), rel=1e-3)  # the embedding is looked up
    assert found.pair == 4 * 32 * 32 * 128


@pytest.mark.exhaustive
def test_express_by_hand():
    base = {"w": jnp.zeros((2, 6, 4)), "norm": jnp.zeros(4)}
    keys = jax.random.split(jax.random.key(0), 3)
    experts = [{"w": jax.random.normal(key, (2, 6, 4)), "norm": jnp.ones(4)} for key in keys]
    space = ExpertSpace.from_experts(base, experts, rank=2)
    assert express_flops(space) == 2 * (48 * (3 + 3 * 2) + 4 * 3)
    assert express_flops(CoefficientSpace.from_experts(base, experts)) == 2 * (48 * 3 + 4 * 3)
    assert express_flops(DenseSpace.from_experts(base, experts)) == 52
    low = Adapter({"w": LowRank(jnp.ones((2, 6, 2)), jnp.ones((2, 2, 4)))})
    adapters = ExpertSpace.from_experts(base, [low, low])
    assert express_flops(adapters) == 2 * 48 * 2 * 2
    low_rank = 2 * 2 * 2 * 2 * (6 + 4)  # per token: layers, experts, rank
    assert mixed_flops(adapters) == mixed_flops(CoefficientSpace.from_experts(base, [low, low])) == low_rank


def test_products_of_a_function_are_counted_loops_as_often_as_they_run():
    def loop(x, layers):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, layers)[0]

    x, layers = jnp.zeros((3, 8)), jnp.zeros((5, 8, 8))
    assert product_flops(loop, x, layers) == product_flops(jax.jit(jax.checkpoint(loop)), x, layers) == 5 * 2 * 3 * 8 * 8
    image, kernel = jnp.zeros((2, 10, 10, 6)), jnp.zeros((3, 3, 2, 12))

    def convolve(image, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(image, kernel, (1, 1), "VALID", dimension_numbers=numbers, feature_group_count=3)

    assert product_flops(convolve, image, kernel) == 2 * (2 * 8 * 8 * 12) * (3 * 3 * 2)
