"""Finds the layer at which a model's activations stop being finite."""

from __future__ import annotations

import jax.numpy as jnp

from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.models.llama.forward import block, embed, masked_attention, rope_angles
from cycleqd_jax.models.llama.params import unstack
from cycleqd_jax.types import AnyArray, Array, Bool, Int, Params

__all__ = ["finite_layers"]


def finite_layers(params: Params, config: LlamaConfig, tokens: Int[AnyArray, "batch time"]) -> Bool[Array, " layer"]:
    """Which decoder layers have finite outputs for these tokens: the first that does not is where the model breaks.

    Args:
        params: the weights of one individual, stacked or not.
        config: the model.
        tokens: attended to causally, without padding.
    """
    batch, time = tokens.shape
    rope = rope_angles(config, jnp.broadcast_to(jnp.arange(time, dtype=jnp.int32)[None], (batch, time)))
    causal = jnp.tri(time, dtype=bool)
    x, finite = embed(params, config, tokens), []
    for layer in unstack(params)["layers"]:
        x, _ = block(x, layer, config, rope, lambda q, k, v: (masked_attention(q, k, v, causal), None))
        finite.append(jnp.isfinite(x).all())
    return jnp.stack(finite)
