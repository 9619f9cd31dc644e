"""Declares the weights of Segment Anything: shape, logical axes, initial values, and the name in Hugging Face's files.

Every kernel is one matrix ``[in, out]`` or a stack of such matrices, so that operators on matrices need no code for
convolutions. A convolution's kernel ``[out, in, height, width]`` is the matrix ``[in · height · width, out]`` that multiplies
the unfolded image. The kernel of a depthwise convolution ``[channels, 1, height, width]`` is ``[height · width, channels]``. A
transposed convolution ``[in, out, height, width]`` is ``[in, out · height · width]``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from cycleqd_jax.sharding import Axes

__all__ = ["Module", "Weight"]


class Weight(NamedTuple):
    """One array of the model.

    Attributes:
        shape: its shape here, with the layers in front where they are stacked.
        axes: the logical axis of every dimension.
        std: standard deviation of random values; None: ones.
        name: the name in a file, with ``{}`` for the layer.
        file_shape: the shape of one layer in a file.
        transpose: whether the file has the transposed matrix.
        layers: the numbers of the stacked layers in names; None where there is no layer axis.
    """

    shape: tuple[int, ...]
    axes: Axes
    std: float | None
    name: str
    file_shape: tuple[int, ...]
    transpose: bool
    layers: tuple[int, ...] | None

    @property
    def names(self) -> list[str]:
        """The tensor of every layer in a file."""
        return [self.name] if self.layers is None else [self.name.format(layer) for layer in self.layers]

    def from_file(self, tensor: np.ndarray) -> np.ndarray:
        """One layer from the tensor of a file."""
        if self.transpose:
            tensor = tensor.reshape(tensor.shape[0], -1).T
        return tensor.reshape(self.shape if self.layers is None else self.shape[1:])

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """The tensor of a file from one layer."""
        if self.transpose:
            array = array.reshape(-1, self.file_shape[0]).T
        return array.reshape(self.file_shape)


@dataclasses.dataclass(frozen=True)
class Module:
    """Declares the weights below one prefix of names.

    Attributes:
        prefix: the start of the names, with ``{}`` for the layer and a dot at the end.
        std: standard deviation of random kernels.
        layers: the numbers of the stacked layers; None where there is no layer axis.
    """

    prefix: str
    std: float
    layers: tuple[int, ...] | None = None

    def array(
        self,
        name: str,
        shape: tuple[int, ...],
        axes: Axes | None = None,
        *,
        std: float | None = 0.0,
        file_shape: tuple[int, ...] | None = None,
        transpose: bool = False,
    ) -> Weight:
        """An array of one layer's shape."""
        axes = axes or (None,) * len(shape)
        layers = self.layers
        stacked = (*(() if layers is None else (len(layers),)), *shape)
        stacked_axes = axes if layers is None else ("layer", *axes)
        return Weight(stacked, stacked_axes, std, self.prefix + name, file_shape or shape, transpose, layers)

    def linear(self, name: str, rows: int, columns: int, axes: Axes = (None, None), *, bias: bool = True) -> dict[str, Weight]:
        """A linear layer: kernel ``[in, out]`` and bias ``[out]``."""
        file_shape = (columns, rows)
        kernel = self.array(f"{name}.weight", (rows, columns), axes, std=self.std, file_shape=file_shape, transpose=True)
        return {"kernel": kernel} | ({"bias": self.array(f"{name}.bias", (columns,), (axes[1],))} if bias else {})

    def conv(
        self, name: str, rows: int, columns: int, side: int, *, bias: bool = True, depthwise: bool = False
    ) -> dict[str, Weight]:
        """A convolution: kernel ``[in · side · side, out]``, or ``[side · side, channels]`` where it is depthwise."""
        inputs = 1 if depthwise else rows
        shape, file_shape = (inputs * side * side, columns), (columns, inputs, side, side)
        kernel = self.array(f"{name}.weight", shape, std=self.std, file_shape=file_shape, transpose=True)
        return {"kernel": kernel} | ({"bias": self.array(f"{name}.bias", (columns,))} if bias else {})

    def conv_transpose(self, name: str, rows: int, columns: int, side: int) -> dict[str, Weight]:
        """A transposed convolution: kernel ``[in, out · side · side]`` and bias ``[out]``."""
        shape, file_shape = (rows, columns * side * side), (rows, columns, side, side)
        kernel = self.array(f"{name}.weight", shape, std=self.std, file_shape=file_shape)
        return {"kernel": kernel, "bias": self.array(f"{name}.bias", (columns,))}

    def norm(self, name: str, size: int) -> dict[str, Weight]:
        """A layer norm: scale and bias."""
        return {"scale": self.array(f"{name}.weight", (size,), std=None), "bias": self.array(f"{name}.bias", (size,))}

    def conv_batch_norm(self, name: str, rows: int, columns: int, side: int, *, depthwise: bool = False) -> dict[str, Any]:
        """A convolution without a bias and its batch norm, with the norm's running mean and variance."""
        norm = self.norm(f"{name}.bn", columns)
        norm["mean"] = self.array(f"{name}.bn.running_mean", (columns,))
        norm["var"] = self.array(f"{name}.bn.running_var", (columns,), std=None)
        return self.conv(f"{name}.c", rows, columns, side, bias=False, depthwise=depthwise) | {"norm": norm}
