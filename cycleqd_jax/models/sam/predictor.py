"""Masks of box prompts for one model or a population, with image embeddings that individuals share where that is exact."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cycleqd_jax.models.sam.config import SamConfig
from cycleqd_jax.models.sam.embeddings import EmbeddingFolder, StoredEmbeddings, image_digest
from cycleqd_jax.models.sam.images import masks_of, preprocess, to_model
from cycleqd_jax.models.sam.model import abstract_params, encode_images, predict_masks
from cycleqd_jax.models.sam.prompts import Prompts
from cycleqd_jax.types import (
    AnyArray,
    Array,
    Bool,
    Float,
    InputError,
    Int,
    Params,
    PredictedMasks,
    SegmentationItem,
    TokenCounts,
    tree_paths,
)

__all__ = ["SamPredictor", "embed_images"]


@functools.partial(jax.jit, static_argnames="config")
def _encode(vision: Params, config: SamConfig, pixels: Array | np.ndarray) -> Array:
    return encode_images({"vision": vision}, config, pixels)


def embed_images(
    vision: Params,
    config: SamConfig,
    images: Iterable[np.ndarray],
    *,
    batch_size: int = 4,
    mesh: Mesh | None = None,
    stored: StoredEmbeddings | None = None,
) -> Iterator[np.ndarray]:
    """The image embeddings of any number of images, by one compiled program.

    Args:
        vision: the weights of the image encoder.
        config: the model.
        images: RGB, UInt8 ``[height, width, 3]``, of any sizes.
        batch_size: images per call; the last batch is filled with copies.
        mesh: split every batch over all of its devices, of which ``batch_size`` is a multiple.
        stored: embeddings that are read instead of computed, and where the others are stored; None has none.

    Yields:
        ``[grid, grid, channel]`` for every image, in the dtype of the config and in host memory.
    """
    source = iter(images)
    while group := list(itertools.islice(source, batch_size)):
        known = [stored.read(image) if stored else None for image in group]
        missing = [image for image, embedding in zip(group, known, strict=True) if embedding is None]
        found = iter(())
        if missing:
            pixels = np.stack([preprocess(image, config.vision.image_size).pixels for image in missing])
            found = iter(np.asarray(_encode(vision, config, _placed(_filled(pixels, batch_size), mesh))))
        for image, embedding in zip(group, known, strict=True):
            new = next(found) if embedding is None else embedding
            if stored and embedding is None:
                stored.write(image, new)
            yield new


@functools.partial(jax.jit, static_argnames=("config", "axes"))
def _decode(
    params: Params, config: SamConfig, embeddings: Array | np.ndarray, boxes: Array | np.ndarray, axes: tuple[int | None, ...]
) -> tuple[Float[Array, "individual batch rows columns"], Bool[Array, "individual batch"]]:
    """The logits of the masks of all individuals and whether they are finite; ``axes`` has the population axis of each leaf."""

    def one(params: Params) -> Array:
        return predict_masks(params, config, embeddings, Prompts(boxes=boxes))[0][:, 0, 0]

    if all(axis is None for axis in axes):
        logits = one(params)[None]
    else:
        logits = jax.vmap(one, in_axes=(jax.tree.unflatten(jax.tree.structure(params), axes),))(params)
    return logits, jnp.isfinite(logits).all((-2, -1))


@functools.partial(jax.jit, static_argnames=("axes", "count"))
def _are_finite(params: Params, axes: tuple[int | None, ...], count: int) -> Bool[Array, " individual"]:
    """Whether all weights of every individual are finite."""
    found = jnp.ones(count, bool)
    for leaf, axis in zip(jax.tree.leaves(params), axes, strict=True):
        flags = jnp.isfinite(leaf)
        found &= flags.all()[None] if axis is None else flags.reshape(count, -1).all(-1)
    return found


@functools.partial(jax.jit, static_argnames=("axes", "count"))
def _are_equal(params: Params, others: Params, axes: tuple[int | None, ...], count: int) -> Bool[Array, " individual"]:
    """Whether all weights of every individual have the values of the others."""
    found = jnp.ones(count, bool)
    for leaf, other, axis in zip(jax.tree.leaves(params), jax.tree.leaves(others), axes, strict=True):
        found &= (leaf == other).all()[None] if axis is None else (leaf == other[None]).reshape(count, -1).all(-1)
    return found


class SamPredictor:
    """Segments images from boxes, in batches of one shape; a :class:`~cycleqd_jax.types.MaskPredictor`. Not thread-safe.

    The prompt encoder and the mask decoder of a population run together. Individuals share embeddings in two cases, both exact:

    - Their image encoder has no axis of individuals. Then every image is encoded once for all of them.
    - The values of their image encoder equal those of ``encoder``, which :meth:`load` compares. Then the embeddings are kept
      for all later models. They are found by the content of the image.

    Other individuals have each image encoded for them alone.
    """

    def __init__(
        self,
        config: SamConfig,
        *,
        encoder: Params | None = None,
        batch_size: int = 4,
        cache_bytes: int = 4 << 30,
        mesh: Mesh | None = None,
        folder: EmbeddingFolder | None = None,
    ) -> None:
        """Args:
        config: the model.
        encoder: the weights of the image encoder (``params["vision"]``) whose embeddings are kept; usually the base's.
        batch_size: images per call.
        cache_bytes: host memory for embeddings; those of further images are computed again for every model.
        mesh: split every batch over all of its devices; each has all weights.
        folder: where embeddings by ``encoder`` are kept for other processes and trainings; None keeps none.

        Raises:
            InputError: the number of devices does not divide the batch size.
        """  # noqa: D205
        if mesh is not None and batch_size % mesh.size:
            raise InputError(
                f"expected a batch size that is a multiple of the {mesh.size} devices, got {batch_size} in SamPredictor; "
                "change it"
            )
        self._config = config
        self._encoder = encoder if encoder is None or mesh is None else _replicated(encoder, mesh)
        self._batch = batch_size
        self._mesh = mesh
        self._folder = folder
        self._stored = self._opened()
        self._embeddings: dict[str, np.ndarray] = {}
        self._bytes_left = cache_bytes
        self._declared = abstract_params(config)
        self._params: Params | None = None
        self._individuals: int | None = None
        self._counts: list[TokenCounts] = []
        self._finite = self._has_base_encoder = np.zeros(0, bool)

    def load(self, params: Params, *, donate: bool) -> None:
        """Loads weights; see :class:`~cycleqd_jax.types.MaskPredictor`.

        Args:
            params: leaves are ``[*shape]``, or ``[individual, *shape]`` for a population.
            donate: not needed: no buffer is reused.

        Raises:
            InputError: leaves are missing, unknown or of another shape than the config says, or populations differ in size.
        """
        del donate
        axes = _axes(params, self._declared)
        sizes = {leaf.shape[0] for leaf, axis in zip(jax.tree.leaves(params), axes, strict=True) if axis == 0}
        if len(sizes) > 1:
            raise InputError(f"expected one number of individuals in all leaves, got {sorted(sizes)}; stack them alike")
        self._individuals = sizes.pop() if sizes else None
        count = self._individuals or 1
        self._params = params if self._mesh is None else _replicated(params, self._mesh)
        self._finite = np.asarray(_are_finite(self._params, axes, count))
        self._counts = [TokenCounts() for _ in range(count)]
        self._has_base_encoder = np.zeros(count, bool)
        if self._encoder is not None:
            vision = self._params["vision"]
            self._has_base_encoder = np.asarray(_are_equal(vision, self._encoder, self._axes("vision"), count))

    def unload(self) -> None:
        """Frees the weights; embeddings of ``encoder`` are kept."""
        self._params = None

    @property
    def batch_size(self) -> int:
        """Images per call."""
        return self._batch

    def resize(self, batch_size: int) -> None:
        """Changes the number of images per call, and frees the weights.

        Args:
            batch_size: the new number; a multiple of the number of devices.
        """
        self._params, self._batch = None, batch_size
        self._stored = self._opened()

    def usage(self) -> list[TokenCounts]:
        """What every individual has needed since its weights were loaded.

        Returns:
            ``computed`` are images whose masks were predicted, ``attended`` images that the encoder embedded or whose embedding
            was read from a folder. Images that were embedded for all individuals count for the first.
        """
        return self._counts

    def predict(self, items: Sequence[SegmentationItem], count: int) -> Iterator[PredictedMasks]:
        """The masks of every item in order; see :class:`~cycleqd_jax.types.MaskPredictor`.

        A batch is computed while the masks of the one before are scaled to the sizes of their images.

        Args:
            items: the images, with their boxes as prompts.
            count: the number of individuals. Where no leaf has an axis of individuals, all of them have the same masks.

        Raises:
            InputError: no weights are loaded, or those of fewer individuals.
        """
        if self._params is None or (self._individuals is not None and self._individuals < count):
            raise InputError(f"expected the weights of {count} individuals, got fewer or none in SamPredictor; load them first")
        computed = count if self._individuals else 1
        self._counts += [TokenCounts() for _ in range(count - len(self._counts))]
        starts = iter(range(0, len(items), self._batch))

        def launch() -> tuple[Sequence[SegmentationItem], tuple[AnyArray, AnyArray]] | None:
            """Reads the next batch and starts its computation."""
            start = next(starts, None)
            if start is None:
                return None
            group = [items[i] for i in range(start, min(start + self._batch, len(items)))]
            return group, self._launch(group, computed)

        launched = launch()
        while launched is not None:
            (group, now), launched = launched, launch()
            logits, finite = (np.asarray(x)[:computed] for x in now)
            for i, item in enumerate(group):
                size = (item.image.shape[0], item.image.shape[1])
                (masks,) = masks_of([logits[:, i]], [size], self._config.vision.image_size)
                for counted in self._counts[:computed]:
                    counted.computed += 1
                flags = finite[:, i] & self._finite[:computed]
                yield PredictedMasks(np.broadcast_to(masks, (count, *size)), np.broadcast_to(flags, count))

    def _opened(self) -> StoredEmbeddings | None:
        """The stored embeddings by ``encoder`` for this number of images per call."""
        if self._folder is None or self._encoder is None:
            return None
        devices = 1 if self._mesh is None else self._mesh.size
        return self._folder.of_encoder(self._encoder, self._config, batch_size=self._batch, devices=devices)

    def _axes(self, *parts: str) -> tuple[int | None, ...]:
        assert self._params is not None
        return _axes({name: self._params[name] for name in parts}, {name: self._declared[name] for name in parts})

    def _launch(self, group: Sequence[SegmentationItem], count: int) -> tuple[AnyArray, AnyArray]:
        """Logits and their finiteness for a batch, which the device may still be computing."""
        assert self._params is not None
        vision, rest = self._params["vision"], {name: self._params[name] for name in ("prompt", "decoder")}
        axes, vision_axes, images = self._axes("prompt", "decoder"), self._axes("vision"), [item.image for item in group]
        boxes = np.stack([self._box(item) for item in group])
        boxes = _placed(_filled(boxes, self._batch), self._mesh)
        if self._has_base_encoder.all() or not any(axis == 0 for axis in vision_axes):
            embeddings = self._embed_known(images, 0) if self._has_base_encoder.all() else self._embed(vision, images, 0)
            return _decode(rest, self._config, _placed(embeddings, self._mesh), boxes, axes)
        found = []
        for i in range(count):
            known = self._has_base_encoder[i]
            embeddings = self._embed_known(images, i) if known else self._embed(_individual(vision, vision_axes, i), images, i)
            alone = _individual(rest, axes, i)
            found.append(_decode(alone, self._config, _placed(embeddings, self._mesh), boxes, (None,) * len(axes)))
        logits, finite = zip(*found, strict=True)
        return np.concatenate(logits), np.concatenate(finite)

    def _box(self, item: SegmentationItem) -> np.ndarray:
        corners = np.asarray(item.box, np.float64).reshape(2, 2)
        size = (item.image.shape[0], item.image.shape[1])
        return to_model(corners, size, self._config.vision.image_size).reshape(1, 4)

    def _embed(
        self, vision: Params, images: Sequence[np.ndarray], individual: int, stored: StoredEmbeddings | None = None
    ) -> np.ndarray:
        """The embeddings of a batch for an individual, or for all, filled with copies."""
        self._counts[individual].attended += len(images)
        found = embed_images(vision, self._config, images, batch_size=self._batch, mesh=self._mesh, stored=stored)
        return _filled(np.stack(list(found)), self._batch)

    def _embed_known(self, images: Sequence[np.ndarray], individual: int) -> np.ndarray:
        """The embeddings of ``encoder`` for a batch; those of new images are kept while there is room."""
        names = [image_digest(image) for image in images]
        missing = {name: image for name, image in zip(names, images, strict=True) if name not in self._embeddings}
        found: dict[str, np.ndarray] = {}
        if missing:
            new = self._embed(self._encoder, list(missing.values()), individual, self._stored)
            found = dict(zip(missing, new, strict=False))
        for name, embedding in found.items():
            if embedding.nbytes <= self._bytes_left:
                self._bytes_left -= embedding.nbytes
                self._embeddings[name] = embedding.copy()
        return _filled(
            np.stack([self._embeddings[name] if name in self._embeddings else found[name] for name in names]), self._batch
        )


@functools.partial(jax.jit, static_argnames="axes")
def _individual(params: Params, axes: tuple[int | None, ...], i: int | Int[Array, ""]) -> Params:
    """The weights of one individual."""
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten([leaf if axis is None else leaf[i] for leaf, axis in zip(leaves, axes, strict=True)])


def _axes(params: Params, declared: Any) -> tuple[int | None, ...]:
    """The axis of individuals of every leaf: 0 or None."""
    found, wanted = dict(tree_paths(params)), dict(tree_paths(declared))
    odd = next((path for path in (*wanted, *found) if path not in found or path not in wanted), None)
    if odd is not None:
        raise InputError(
            f"expected the leaves of the config's model, got {'another' if odd in found else 'no'} leaf {odd!r} in the weights "
            "given to SamPredictor; load weights of this architecture"
        )
    axes: list[int | None] = []
    for path, like in wanted.items():
        leaf = found[path]
        if leaf.shape not in (like.shape, (*leaf.shape[:1], *like.shape)):
            raise InputError(
                f"expected leaf {path!r} of shape {like.shape}, got {leaf.shape} in the weights given to SamPredictor; load "
                "weights of this architecture"
            )
        axes.append(None if leaf.shape == like.shape else 0)
    return tuple(axes)


def _filled(batch: np.ndarray, size: int) -> np.ndarray:
    """A batch of the full size; copies of the last entry fill it."""
    return batch if len(batch) == size else np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), 0)])


def _placed(batch: np.ndarray, mesh: Mesh | None) -> np.ndarray | Array:
    return batch if mesh is None else jax.device_put(batch, NamedSharding(mesh, P(mesh.axis_names)))


def _replicated(tree: Params, mesh: Mesh) -> Params:
    return jax.device_put(tree, NamedSharding(mesh, P()))
