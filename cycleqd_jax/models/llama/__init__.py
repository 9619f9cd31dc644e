"""Llama-architecture decoders: configuration, weights and the forward pass."""

from cycleqd_jax.models.llama.config import Llama3RopeScaling, LlamaConfig
from cycleqd_jax.models.llama.forward import (
    Attend,
    abstract_params,
    decoder,
    finite_layers,
    for_products,
    forward,
    hidden_states,
    init_params,
    logical_axes,
    matmul,
    num_individuals,
    num_params,
    select,
    unembed,
    unstack,
)

__all__ = [
    "Attend",
    "Llama3RopeScaling",
    "LlamaConfig",
    "abstract_params",
    "decoder",
    "finite_layers",
    "for_products",
    "forward",
    "hidden_states",
    "init_params",
    "logical_axes",
    "matmul",
    "num_individuals",
    "num_params",
    "select",
    "unembed",
    "unstack",
]
