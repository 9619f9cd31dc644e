"""Several individuals, and several devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax import sharding
from cycleqd_jax.models import llama
from cycleqd_jax.types import InputError, NonFiniteError

from .small_model import CONFIG, groups_of, make, plain_loop, population


@pytest.mark.exhaustive
@pytest.mark.parametrize("count", [3, pytest.param(8, id=pytest.HIDDEN_PARAM, marks=pytest.mark.exhaustive)])
def test_a_population_equals_its_individuals_one_by_one(params, attention, count):
    mixed, singles = population(params, count)
    prompts, limits = groups_of(6)
    wanted = []
    engine = make(attention=attention)
    for single in singles:
        engine.load(single)
        wanted.append(engine.generate(prompts, limits))
    assert len(set(map(tuple, wanted))) == count
    reused = engine.statistics.reused
    engine.load(mixed)
    order = np.random.default_rng(0).permutation(count * len(prompts))
    numbers = {}
    for i in order:  # in random order
        who, which = divmod(int(i), len(prompts))
        numbers[who, which] = engine.submit(prompts[which], limits[which], individual=who)
    done = {}
    while engine.busy:
        done |= dict(engine.advance())
    for (who, which), number in numbers.items():
        assert done[number] == wanted[who][which]
    assert engine.statistics.reused == 2 * reused  # every individual has its own prefixes
    # The cache of a conversation belongs to one individual.
    for who in (0, 1):
        assert engine.generate(prompts[:1], limits[:1], conversation="x", individual=who) == wanted[who][:1]
    with pytest.raises(InputError, match=f"individual below {count}, got {count}"):
        engine.submit([1], 1, individual=count)


@pytest.mark.exhaustive
def test_a_broken_individual_is_named(params, attention):
    mixed, _ = population(params)
    q = mixed["layers"]["attn"]["q"]
    q = q._replace(coefficients=q.coefficients.at[1, 2].set(3e38))
    engine = make(attention=attention)
    engine.load(mixed | {"layers": mixed["layers"] | {"attn": mixed["layers"]["attn"] | {"q": q}}})
    for who in (0, 1):
        assert engine.generate([[1, 2]], [4], individual=who)[0].ids
    with pytest.raises(NonFiniteError, match=r"individual 2 .*layer 1 of 2") as caught:
        engine.generate([[1, 2]], [4], individual=2)
    assert caught.value.individual == 2
    assert engine.generate([[1, 2]], [4], individual=0)[0].ids  # the weights are still loaded


@pytest.mark.exhaustive
def test_a_broken_individual_does_not_change_the_prefixes_of_others(params, attention):
    mixed, singles = population(params)
    down = mixed["layers"]["mlp"]["down"]
    down = down._replace(coefficients=down.coefficients.at[0, 1].set(jnp.nan))
    engine = make(attention=attention)
    engine.load(mixed | {"layers": mixed["layers"] | {"mlp": mixed["layers"]["mlp"] | {"down": down}}})
    prompts, limits = groups_of(6)
    for who in (0, 1, 2):
        for prompt, limit in zip(prompts, limits, strict=True):
            engine.submit(prompt, limit, individual=who)
    with pytest.raises(NonFiniteError) as caught:
        engine.advance()
    assert caught.value.individual == 1
    for who in (0, 2):
        wanted = [plain_loop(singles[who], prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)]
        assert engine.generate(prompts, limits, individual=who) == wanted


@pytest.mark.exhaustive
@pytest.mark.parametrize("who", [0, 2])
@pytest.mark.parametrize("value", [jnp.nan, 1e38])
def test_a_broken_individual_does_not_change_other_rows(params, attention, who, value):
    mixed, singles = population(params)
    down = mixed["layers"]["mlp"]["down"]
    down = down._replace(coefficients=down.coefficients.at[1, who].set(value))
    engine = make(attention=attention)
    engine.load(mixed | {"layers": mixed["layers"] | {"mlp": mixed["layers"]["mlp"] | {"down": down}}})
    with pytest.raises(NonFiniteError, match=f"individual {who} ") as caught:
        engine.generate([[1, 2]], [4], individual=who)
    assert caught.value.individual == who
    for other in {0, 1, 2} - {who}:  # beside the broken one, in rows of different lengths
        engine.submit(list(range(6, 40)), 6, individual=other)
        number = engine.submit([1, 2], 6, individual=other)
        done = {}
        while engine.busy:
            done |= dict(engine.advance())
        assert done[number] == plain_loop(singles[other], [1, 2], 6)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "sizes",
    [
        {"tensor": 2},
        {"fsdp": 2, "tensor": 2},
        {"population": 2, "fsdp": 2, "tensor": 2},
    ],
    ids=str,
)
def test_a_mesh_equals_one_device(params, attention, expected, sizes):
    if len(jax.devices()) < 8:
        pytest.skip("needs eight devices: set XLA_FLAGS=--xla_force_host_platform_device_count=8")
    mesh = sharding.make_mesh(**sizes)
    layout = sharding.shardings(mesh, llama.abstract_params(CONFIG), llama.logical_axes(CONFIG))
    engine = make(attention=attention, mesh=mesh)
    engine.load(jax.device_put(params, layout))
    prompts, limits, wanted = expected[1]
    assert engine.generate(prompts, limits) == wanted
    k = engine._runner.cache.k[0]  # split over the devices
    assert k.addressable_shards[0].data.size == k.size // 2
