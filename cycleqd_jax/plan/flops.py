"""FLOPs of a model and of an expressed child, counted over whole arrays: one multiplication and one addition are two.

Only matrix products count, and attention to the tokens that exist. Padding and masked columns do not count, so the figures are
those of the computation, not of a program.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr

from cycleqd_jax.genome import CoefficientSpace, DenseSpace, ExpertSpace
from cycleqd_jax.models.llama import LlamaConfig, abstract_params
from cycleqd_jax.operators import is_matrix
from cycleqd_jax.types import tree_paths

__all__ = [
    "UTILISATION",
    "ModelFlops",
    "attention_flops",
    "express_flops",
    "largest_product",
    "matrix_flops",
    "mixed_flops",
    "product_flops",
]

UTILISATION = {"train": 0.4, "evaluate": 0.1}
"""Shares of a GPU's peak with which GPU-hours are extrapolated. Training: the 38 to 43 % that Llama 3 reached on H100 GPUs (The
Llama 3 Herd of Models, table 4). Evaluation: an assumption; decoding is limited by the memory's bandwidth."""


def matrix_flops(weights: int | float, tokens: int | float) -> int | float:
    """Products of tokens with matrices.

    Args:
        weights: numbers of the matrices.
        tokens: how many are multiplied with each.
    """
    return 2 * weights * tokens


def attention_flops(model: LlamaConfig, pairs: int | float) -> int | float:
    """Scores and weighted sums of attention, in all layers.

    Args:
        model: the model.
        pairs: pairs of a token and a token that it attends to.
    """
    return 4 * model.num_hidden_layers * model.num_attention_heads * model.head_dim * pairs


def product_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """FLOPs of all matrix products and convolutions of a function; nothing is compiled.

    Args:
        function: a function of arrays. A scan counts as often as it runs, other loops once.
        arguments: arrays or ``jax.ShapeDtypeStruct``.

    >>> import jax, jax.numpy as jnp
    >>> from cycleqd_jax.plan import product_flops
    >>> product_flops(lambda a, b: jnp.tanh(a @ b), jnp.zeros((2, 3)), jax.ShapeDtypeStruct((3, 5), jnp.float32))
    60
    """
    return _products(jax.make_jaxpr(function)(*arguments).jaxpr)


def largest_product(function: Callable[..., Any], *arguments: Any) -> int:
    """Bytes of operands and result of the largest matrix product or convolution of a function; nothing is compiled.

    Args:
        function: a function of arrays.
        arguments: arrays or ``jax.ShapeDtypeStruct``.

    >>> import jax, jax.numpy as jnp
    >>> from cycleqd_jax.plan.flops import largest_product
    >>> largest_product(lambda a, b: jnp.tanh(a @ b), jnp.zeros((2, 3)), jax.ShapeDtypeStruct((3, 5), jnp.float32))
    124
    """
    return _largest(jax.make_jaxpr(function)(*arguments).jaxpr)


_PRODUCTS = ("dot_general", "conv_general_dilated")


def _largest(jaxpr: Jaxpr) -> int:
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in _PRODUCTS:
            arrays = [one.aval for one in (*equation.invars, *equation.outvars)]
            found = max(found, sum(one.size * one.dtype.itemsize for one in arrays if isinstance(one, ShapedArray)))
        found = max([found, *map(_largest, _parts(tuple(equation.params.values())))])
    return found


def _products(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _PRODUCTS:
            arrays = [one.aval for one in (*equation.invars, *equation.outvars)]
            left, right, result = (one.shape for one in arrays if isinstance(one, ShapedArray))
            numbers = equation.params["dimension_numbers"]
            if name == "dot_general":
                inner = math.prod(left[axis] for axis in numbers[0][0])
            else:
                inner = math.prod(right) // right[numbers.rhs_spec[0]]
            total += int(matrix_flops(math.prod(result), inner))
        times = equation.params["length"] if name == "scan" else 1
        total += times * sum(_products(part) for part in _parts(tuple(equation.params.values())))
    return total


def _parts(value: Any) -> Iterator[Jaxpr]:
    """The functions within the parameters of an operation."""
    if isinstance(value, tuple | list):
        for one in value:
            yield from _parts(one)
    elif isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value


@dataclasses.dataclass(frozen=True)
class ModelFlops:
    """FLOPs of a model's forward pass. Training takes three times as many: the backward pass takes two forward passes.

    Attributes:
        layers: for each token that goes through the layers.
        head: for each token whose logits are computed.
        pair: for each pair of a token and a token that it attends to.
    """

    layers: int
    head: int
    pair: int

    @classmethod
    def of(cls, model: LlamaConfig) -> ModelFlops:
        """The figures of a model."""
        sizes = {path: math.prod(leaf.shape) for path, leaf in tree_paths(abstract_params(model)) if is_matrix(path, leaf)}
        layers = sum(size for path, size in sizes.items() if path.startswith("layers/"))
        head = sizes["embed_tokens" if model.tie_word_embeddings else "lm_head"]
        return cls(int(matrix_flops(layers, 1)), int(matrix_flops(head, 1)), int(attention_flops(model, 1)))


def express_flops(space: ExpertSpace | CoefficientSpace | DenseSpace) -> int:
    """FLOPs of the weights of one child that is expressed; children that share a base are not (see :func:`mixed_flops`)."""
    if isinstance(space, DenseSpace):
        return sum(leaf.size for leaf in jax.tree.leaves(space.base))
    if isinstance(space, CoefficientSpace):
        return express_flops(space.experts)
    total = 0
    for path, leaf in tree_paths(space.base):
        held = [*space.experts.get(path, ()), *(update for update in space.updates.get(path, ()) if update is not None)]
        bases = [of[path] for of in (space.bases, space.remainders) if path in of]
        directions = sum(basis.u.shape[-2] * basis.u.shape[-1] for basis in bases)
        total += int(matrix_flops(leaf.size, len(held) + directions))
    return total


def mixed_flops(space: ExpertSpace | CoefficientSpace) -> int:
    """FLOPs of the low-rank products of one token, where several children are decoded over one base.

    They come on top of :attr:`ModelFlops.layers`: (x U · c) Vᵀ takes 2 r (m + n) for a matrix ``[m, n]`` and its r directions.

    Args:
        space: a space of LoRA experts (see :meth:`~cycleqd_jax.genome.ExpertSpace.express_mixed`).
    """
    if isinstance(space, CoefficientSpace):
        return mixed_flops(space.experts)
    bases = [basis for of in (space.bases, space.remainders) for basis in of.values()]
    return sum(int(matrix_flops(basis.u.size + basis.vt.size, 1)) for basis in bases)
