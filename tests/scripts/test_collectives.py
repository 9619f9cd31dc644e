"""The list of messages between devices, from HLO and from a program on two simulated devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cycleqd_jax.sharding import make_mesh

from ..script import load_script

script = load_script("collectives")


def test_collectives_are_grouped_by_kind_and_shape():
    text = """
  %a = f32[8,64]{1,0} all-reduce(%x), replica_groups={{0,1}}
  %b = f32[8,64]{1,0} all-reduce(%y), replica_groups={{0,1}}
  %c = f32[4,128]{1,0} all-reduce(%y), replica_groups={{0,1}}
  ROOT %d = (s32[1,4]{1,0}, s32[1,4]{1,0}) all-to-all(%x, %y)
  %e = f32[8,64]{1,0} add(%a, %b)
"""
    assert script.rows(text) == [
        ("all-reduce", "f32[4,128]", 2048, 1),
        ("all-reduce", "f32[8,64]", 2048, 2),
        ("all-to-all", "2 × s32[1,4]", 32, 1),
    ]


def test_a_sum_over_two_devices():
    mesh = make_mesh(tensor=2, devices=jax.devices()[:2])
    x = jax.ShapeDtypeStruct((4, 6), jnp.float32, sharding=NamedSharding(mesh, P(None, "tensor")))
    text = jax.jit(lambda x: x.sum(1)).trace(x).lower().compile().as_text()
    assert script.rows(text) == [("all-reduce", "f32[4]", 16, 1)]
