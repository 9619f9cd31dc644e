"""Small Segment Anything models and synthetic images of ellipses, which several folders of tests need."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cycleqd_jax.models import sam
from cycleqd_jax.types import Params, SegmentationItem, leaf_path

SIZE = 16
_PROMPT = sam.PromptConfig(hidden_size=SIZE, image_size=32, patch_size=8, mask_input_channels=SIZE)
_DECODER = sam.DecoderConfig(SIZE, mlp_dim=SIZE, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=SIZE)
CONFIGS = {
    "vit": sam.SamConfig(
        sam.VitConfig(
            hidden_size=SIZE, output_channels=SIZE, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
            window_size=4, global_attn_indexes=(1,), num_pos_feats=SIZE // 2, mlp_dim=SIZE,
        ),
        _PROMPT,
        _DECODER,
    ),
    "tiny_vit": sam.SamConfig(
        sam.TinyVitConfig(
            embed_dims=(SIZE, SIZE), depths=(1, 2), num_heads=(1, 2), window_sizes=(1, 3), strides=(2,), mlp_ratio=1.0,
            mbconv_expand_ratio=1.0, image_size=32, output_channels=SIZE, num_pos_feats=SIZE // 2,
        ),
        _PROMPT,
        _DECODER,
    ),
}  # fmt: skip
"""Models whose matrices mostly have one shape, so that few programs are compiled."""


def random_params(kind: str, seed: int = 0) -> Params:
    """Random weights drawn by numpy, which compiles nothing: norms near one, positive variances."""
    rng = np.random.default_rng(seed)

    def leaf(path: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
        name, noise = leaf_path(path), rng.normal(size=like.shape)
        if name.endswith(("scale", "var")):
            return jnp.asarray(1 + 0.1 * np.abs(noise), jnp.float32)
        return jnp.asarray(noise * (0.25 if "kernel" in name else 0.1), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, sam.abstract_params(CONFIGS[kind]))


def ellipses(count: int, seed: int = 0, shape: tuple[int, int] = (24, 32), name: str = "image") -> list[SegmentationItem]:
    """Bright ellipses on a dark, noisy ground; the box is that of the ellipse."""
    rng = np.random.default_rng(seed)
    height, width = shape
    rows, columns = np.mgrid[:height, :width]
    items = []
    for i in range(count):
        y, x = rng.uniform(0.35, 0.65, 2) * shape
        a, b = rng.uniform(0.15, 0.3, 2) * shape
        mask = ((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1
        image = np.where(mask[..., None], rng.integers(150, 250, 3), 40) + rng.integers(-20, 20, (*shape, 3))
        inside_rows, inside_columns = np.nonzero(mask)
        box = [inside_columns.min(), inside_rows.min(), inside_columns.max(), inside_rows.max()]
        items.append(SegmentationItem(f"{name} {i}", np.clip(image, 0, 255).astype(np.uint8), mask, np.array(box, np.float32)))
    return items


class CountedItems(Sequence[SegmentationItem]):
    """Items that record each read by name. Reads by checks of annotations are not recorded."""

    def __init__(self, items: Sequence[SegmentationItem], reads: list[str] | None = None) -> None:
        self._items = items
        self.reads = [] if reads is None else reads

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return CountedItems(self._items[index], self.reads)
        item = self._items[index]
        if not sys._getframe(1).f_code.co_filename.startswith("<@beartype"):
            self.reads.append(item.name)
        return item


def iou(mask: np.ndarray, item: SegmentationItem) -> float:
    """The intersection over union with the item's mask."""
    return float((mask & item.mask).sum() / (mask | item.mask).sum())


class ShapeTask:
    """A :class:`~cycleqd_jax.types.SegmentationTask` of ellipses."""

    def __init__(self, name: str, count: int = 5, seed: int = 0, shape: tuple[int, int] = (24, 32)) -> None:
        self.name = name
        self._made = {
            split: ellipses(count, seed + offset, shape, f"{name} {split}")
            for offset, split in enumerate(("train", "validation", "test"))
        }

    def items(self, split):
        return self._made[split]

    def score(self, mask, item):
        return iou(mask, item)
