from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from cycleqd_jax import sharding
from cycleqd_jax.models import llama
from cycleqd_jax.types import InputError

CONFIG = llama.LlamaConfig(64, 32, 64, 2, 4, 2, 8, max_position_embeddings=64, initializer_range=0.2)


@pytest.mark.exhaustive
def test_a_sharded_forward_equals_the_unsharded_one():
    if len(jax.devices()) < 8:
        pytest.skip("needs eight devices: set XLA_FLAGS=--xla_force_host_platform_device_count=8")
    mesh = sharding.make_mesh(population=2, fsdp=2, tensor=2)
    params = llama.init_params(CONFIG, jax.random.key(0))
    layout = sharding.shardings(mesh, llama.abstract_params(CONFIG), llama.logical_axes(CONFIG))
    sharded = jax.device_put(params, layout)
    assert sharded["layers"]["mlp"]["gate"].addressable_shards[0].data.shape == (2, 16, 32)
    tokens = np.random.default_rng(0).integers(0, 64, (4, 16))
    f = jax.jit(lambda params, tokens: llama.forward(params, CONFIG, tokens))
    want = f(params, tokens)
    got = f(sharded, jax.device_put(tokens, jax.NamedSharding(mesh, sharding.partition_spec(("batch", None)))))
    assert np.abs(want).max() > 0.5
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_rules():
    assert sharding.partition_spec(("layer", "embed", "heads")) == PartitionSpec(None, "fsdp", "tensor")
    assert sharding.partition_spec(("population", None)) == PartitionSpec("population", None)
    with pytest.raises(InputError, match="'tensor' for both 'heads' and 'hidden'"):
        sharding.partition_spec(("heads", "hidden"))
    with pytest.raises(InputError, match="'haeds'"):
        sharding.partition_spec(("haeds",))


def test_what_does_not_divide_is_refused():
    if len(jax.devices()) < 8:
        pytest.skip("needs eight devices: set XLA_FLAGS=--xla_force_host_platform_device_count=8")
    mesh = sharding.make_mesh(fsdp=2, tensor=4)
    config = CONFIG.replace(vocab_size=66)
    with pytest.raises(InputError, match=r"'vocab'.*embed_tokens.*4 devices.*66"):
        sharding.shardings(mesh, llama.abstract_params(config), llama.logical_axes(config))


@pytest.mark.parametrize("sizes", [{"tensor": 10**6}, {"fsdp": 0}])
def test_impossible_meshes(sizes):
    with pytest.raises(InputError, match="population × fsdp × tensor"):
        sharding.make_mesh(**sizes)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [({}, (1, 1, 1)), ({"tensor": -1}, (1, 1, 8)), ({"population": -1, "tensor": 2}, (4, 1, 2)), ({"fsdp": 3}, (1, 3, 1))],
)
def test_sizes_of_a_mesh(sizes, wanted):
    assert sharding.mesh_sizes(8, **sizes) == wanted


@pytest.mark.parametrize("sizes", [{"fsdp": -1, "tensor": -1}, {"fsdp": -2}, {"fsdp": 3, "tensor": -1}, {"population": 9}])
def test_sizes_that_make_no_mesh(sizes):
    with pytest.raises(InputError, match="population × fsdp × tensor"):
        sharding.mesh_sizes(8, **sizes)


def test_groups_of_a_mesh():
    if len(jax.devices()) < 8:
        pytest.skip("needs eight devices: set XLA_FLAGS=--xla_force_host_platform_device_count=8")
    mesh = sharding.make_mesh(population=-1, tensor=2)
    found = sharding.device_groups(mesh)
    assert [dict(group.shape) for group in found] == [{"population": 1, "fsdp": 1, "tensor": 2}] * 4
    assert [list(group.devices.flat) for group in found] == [jax.devices()[i : i + 2] for i in range(0, 8, 2)]
