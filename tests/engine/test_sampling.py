"""Sampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.engine import programs

from .small_model import groups_of, make


@pytest.mark.exhaustive
def test_draws_depend_only_on_the_seed(params, attention):
    prompts, _ = groups_of(3)
    options = {"temperature": 1.5, "top_p": 0.9, "seed": 7}
    engine, narrow = make(attention=attention), make(attention=attention, slots=1, steps=3, share_prefixes=False)
    engine.load(params)
    narrow.load(params)
    together = engine.generate(prompts, [8] * len(prompts), **options)
    assert together == narrow.generate(prompts, [8] * len(prompts), **options)
    assert [engine.generate([prompt], [8], **options)[0] for prompt in prompts[:4]] == together[:4]
    numbers = [engine.submit(prompts[n], 8, **(options if n % 2 else {})) for n in range(6)]  # together with greedy requests
    done = {}
    while engine.busy:
        done |= dict(engine.advance())
    assert [done[numbers[n]] for n in (1, 3, 5)] == [together[n] for n in (1, 3, 5)]
    assert [done[numbers[n]] for n in (0, 2, 4)] == engine.generate(prompts[:6:2], [8] * 3)
    assert engine.generate(prompts, [8] * len(prompts), **(options | {"seed": 8})) != together


@pytest.mark.parametrize("options", [{"temperature": 1e-4}, {"temperature": 2.0, "top_p": 1e-6}], ids=str)
def test_the_limits_of_sampling_are_greedy(engine, expected, options):
    prompts, limits, wanted = expected[0]
    assert engine.generate(prompts, limits, **options) == wanted


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("temperature", "top_p", "wanted"),
    [(1.0, 1.0, (0.3, 0.5, 0.2)), (1.0, 0.7, (3 / 8, 5 / 8, 0)), (1.0, 0.4, (0, 1, 0)), (0.5, 1.0, (9 / 38, 25 / 38, 4 / 38))],
)
def test_the_distribution(temperature, top_p, wanted):
    n = 4000
    logits = jnp.log(jnp.tile(jnp.array([0.3, 0.5, 0.2]), (n, 1)))
    full = [jnp.full(n, x, jnp.float32) for x in (temperature, top_p)]
    for key, positions in (
        (jax.random.key_data(jax.random.split(jax.random.key(0), n)), jnp.zeros(n, jnp.int32)),
        (jnp.tile(jax.random.key_data(jax.random.key(3)), (n, 1)), jnp.arange(n)),
    ):
        token, finite = programs.choose(logits, programs.Sampling(*full, key), positions)
        assert finite.all()
        seen = np.bincount(np.asarray(token), minlength=3) / n
        np.testing.assert_allclose(seen, wanted, atol=4 * np.sqrt(0.25 / n))
        assert all(seen[i] == 0 for i in range(3) if wanted[i] == 0)
