"""Embeddings of training images by a frozen image encoder."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from cycleqd_jax.models import sam
from cycleqd_jax.models.sam.embeddings import EmbeddingFolder
from cycleqd_jax.models.sam.predictor import embed_images
from cycleqd_jax.training.images import Draw, flipped
from cycleqd_jax.types import Params, SegmentationItem

__all__ = ["FrozenEncoder"]


class FrozenEncoder:
    """A frozen image encoder; the embeddings of images and flips are kept within a limit of memory.

    Attributes:
        embedded: the number of images that were embedded, repetitions and those read from a folder included.
    """

    def __init__(
        self,
        vision: Params,
        config: sam.SamConfig,
        batch_size: int,
        cache_bytes: int,
        folder: EmbeddingFolder | None = None,
    ) -> None:
        """Args:
        vision: the weights of the image encoder.
        config: the model.
        batch_size: images per call.
        cache_bytes: host memory for embeddings.
        folder: where embeddings are kept for other processes and for evaluations; None keeps none.
        """  # noqa: D205
        self._vision, self._config, self._batch_size, self._cache_bytes = vision, config, batch_size, cache_bytes
        self._stored = None if folder is None else folder.of_encoder(vision, config, batch_size=batch_size)
        self._embeddings: dict[tuple[int, int], np.ndarray] = {}
        self.embedded = 0

    def keep(self, items: Sequence[SegmentationItem], draws: list[list[Draw]]) -> None:
        """Computes and keeps the embedding of every item and flip that is drawn, as far as the limit allows.

        Args:
            items: images with masks and boxes; each is read at most once.
            draws: the draws of all steps.
        """
        grid, dtype = self._config.vision.grid, np.dtype(self._config.dtype)
        size = grid * grid * self._config.vision.output_channels * dtype.itemsize
        wanted = sorted({(draw.item, draw.flip) for drawn in draws for draw in drawn})[: self._cache_bytes // size]

        def images() -> Iterator[np.ndarray]:
            for index, flips in itertools.groupby(wanted, key=lambda pair: pair[0]):
                image = items[index].image
                yield from (flipped(image, flip) for _, flip in flips)

        self._embeddings = dict(zip(wanted, self._embed(images()), strict=True))

    def __call__(self, drawn: Sequence[Draw], images: Sequence[np.ndarray]) -> np.ndarray:
        """The embeddings of flipped images, kept or computed now.

        Args:
            drawn: what a step draws.
            images: the flipped images, in the same order.

        Returns:
            ``[draw, grid, grid, channel]``.
        """
        found = {(draw.item, draw.flip): image for draw, image in zip(drawn, images, strict=True)}
        missing = [pair for pair in found if pair not in self._embeddings]
        new = dict(zip(missing, self._embed(found[pair] for pair in missing), strict=True))
        pairs = [(draw.item, draw.flip) for draw in drawn]
        return np.stack([new[pair] if pair in new else self._embeddings[pair] for pair in pairs])

    def _embed(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for embedding in embed_images(self._vision, self._config, images, batch_size=self._batch_size, stored=self._stored):
            self.embedded += 1
            yield embedding.copy()  # not a view of a whole batch
