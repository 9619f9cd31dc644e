"""Experts that changed after their basis was stored."""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.runs.basis.store import Experts

from .small_basis import MATRICES, experts, make


@pytest.mark.exhaustive
def test_experts_that_changed_under_the_same_digest_are_noticed(tmp_path, decomposed):
    make(experts(1, 2), tmp_path)
    changed = experts(1, 2)
    other = cast(dict[str, jax.Array], changed.experts[1])
    other["layers/q"] = other["layers/q"].at[1, 0, 0].add(0.1)
    made, lines = make(changed, tmp_path)
    assert "layers/q" in lines[0]
    assert "it was built from other task vectors" in lines[0]
    assert decomposed == [*MATRICES, "layers/q"]
    want = np.linalg.norm(np.asarray(other["layers/q"] - changed.base["layers/q"], np.float64), axis=(1, 2))
    np.testing.assert_allclose(np.linalg.norm(np.asarray(made.bases["layers/q"].s[1], np.float64), axis=1), want, rtol=1e-5)


def one_element(tau):
    return tau.at[1, 37, 211].add(3 * np.asarray(tau, np.float64).std())


def reversed_rows(tau):
    return tau.at[1].set(tau[1, ::-1])


def two_rows(tau):
    return tau.at[1, jnp.array([17, 18])].set(tau[1, jnp.array([18, 17])])


def reversed_stack(tau):
    return tau[::-1]


def transposed(tau):
    return jnp.swapaxes(tau, -1, -2)


def other_sign(tau):
    return -tau


def nothing(tau):
    return tau


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "change", [one_element, reversed_rows, two_rows, reversed_stack, transposed, other_sign, nothing], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("scale", [1.0, 1e-24, 1e24])
def test_changes_that_norms_do_not_show_are_noticed(tmp_path, decomposed, change, scale):
    base = {"w": jnp.zeros((2, 400, 400))}
    taus = [scale * jax.random.normal(jax.random.key(k), (2, 400, 400)) for k in (1, 2)]
    options = {"identity": {}, "rank": 2, "method": "randomized"}
    make(Experts(base, [{"w": tau} for tau in taus], **options), tmp_path)
    lines = make(Experts(base, [{"w": taus[0]}, {"w": change(taus[1])}], **options), tmp_path)[1]
    again = change is not nothing
    assert ("it was built from other task vectors" in lines[0]) == again
    assert decomposed == ["w"] * (1 + again)


@pytest.mark.exhaustive
def test_sums_in_another_order_are_not_other_experts(tmp_path, decomposed):
    devices = jax.devices()
    if len(devices) < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    mesh = jax.sharding.Mesh(np.asarray(devices[:8]).reshape(2, 4), ("a", "b"))
    base, *changed = ({"w": 0.1 + jax.random.normal(jax.random.key(k), (64, 16384))} for k in range(3))
    options = {"identity": {}, "rank": 2, "method": "randomized"}
    make(Experts(base, changed, **options), tmp_path)
    for names in (("a", "b"), (None, ("a", "b"))):
        spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*names))
        make(Experts(*jax.device_put((base, changed), spread), **options), tmp_path)
    assert decomposed == ["w"]
