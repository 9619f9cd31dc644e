"""Llama-architecture decoders: configuration, weights and the forward pass."""

from cycleqd_jax.models.llama.config import Llama3RopeScaling, LlamaConfig
from cycleqd_jax.models.llama.diagnose import finite_layers
from cycleqd_jax.models.llama.forward import Attend, decoder, for_products, forward, hidden_states, matmul, unembed
from cycleqd_jax.models.llama.params import (
    TransposedMatrix,
    abstract_params,
    init_params,
    logical_axes,
    num_individuals,
    num_params,
    select,
    unstack,
)

__all__ = [
    "Attend",
    "Llama3RopeScaling",
    "LlamaConfig",
    "TransposedMatrix",
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
