"""Segment Anything against transformers' SamModel, in float32."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.models import sam

from .conftest import SIZES

torch = pytest.importorskip("torch")

TOLERANCE = 1e-4


def prompts_of(kind: str, size: int, grid: int, rng) -> sam.Prompts:
    """Two images with three prompts each; a prompt has two points."""
    points = rng.uniform(0, size, (2, 3, 2, 2)).astype(np.float32)
    labels = rng.integers(0, 2, (2, 3, 2)).astype(np.int32)
    labels[0, 0, 1], labels[1, 2, 0] = -1, -10
    boxes = np.sort(rng.uniform(0, size, (2, 3, 2, 2)), axis=2).reshape(2, 3, 4).astype(np.float32)
    masks = rng.normal(size=(2, 4 * grid, 4 * grid)).astype(np.float32)
    return sam.Prompts(
        points=points if "points" in kind else None,
        labels=labels if "points" in kind else None,
        boxes=boxes if "boxes" in kind else None,
        masks=masks if "masks" in kind else None,
    )


def theirs(prompts: sam.Prompts) -> dict:
    return {
        "input_points": None if prompts.points is None else torch.tensor(prompts.points),
        "input_labels": None if prompts.labels is None else torch.tensor(prompts.labels),
        "input_boxes": None if prompts.boxes is None else torch.tensor(prompts.boxes),
        "input_masks": None if prompts.masks is None else torch.tensor(prompts.masks)[:, None],
    }


def channels_last(tensor) -> np.ndarray:
    return tensor.permute(0, 2, 3, 1).numpy()


# test_the_whole_model runs the encoder of "other"
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=pytest.mark.exhaustive) if name == "other" else name for name in SIZES]
)
def test_the_image_encoder(saved, rng, variant):
    model, folder = saved(variant)
    config, params = sam.load(folder)
    size = config.vision.image_size
    pixels = rng.normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        want = channels_last(model.get_image_embeddings(torch.tensor(pixels).permute(0, 3, 1, 2)))
    got = jax.jit(lambda params: sam.encode_images(params, config, pixels))(params)
    assert np.abs(want).max() > 0.5
    np.testing.assert_allclose(got, want, atol=TOLERANCE)


KINDS = ("points", "boxes", "points boxes", "boxes masks", "points boxes masks", "masks")
QUICK = {("other", "points", False), ("plain", "points boxes masks", True), ("bare", "masks", True)}
CASES = [(variant, kind, multimask) for variant in SIZES for kind in KINDS for multimask in (False, True)]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("variant", "kind", "multimask"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.exhaustive) for case in CASES],
)
def test_the_decoder(saved, rng, variant, kind, multimask):
    model, folder = saved(variant)
    config, params = sam.load(folder)
    grid, channels = config.vision.grid, config.vision.output_channels
    embeddings = rng.normal(size=(2, grid, grid, channels)).astype(np.float32)
    prompts = prompts_of(kind, config.vision.image_size, grid, rng)
    with torch.no_grad():
        want = model(
            image_embeddings=torch.tensor(embeddings).permute(0, 3, 1, 2), multimask_output=multimask, **theirs(prompts)
        )
    predict = jax.jit(functools.partial(sam.predict_masks, multimask=multimask), static_argnums=1)
    masks, quality = predict(params, config, embeddings, prompts)
    assert want.pred_masks.abs().max() > 0.3  # the tolerance is small beside the values
    np.testing.assert_allclose(masks, want.pred_masks.numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(quality, want.iou_scores.numpy(), atol=TOLERANCE)


@pytest.mark.exhaustive
@pytest.mark.parametrize("variant", [pytest.param("plain", marks=pytest.mark.exhaustive), "other"])
def test_the_whole_model(saved, rng, variant):
    model, folder = saved(variant)
    config, params = sam.load(folder)
    size = config.vision.image_size
    pixels = rng.normal(size=(2, size, size, 3)).astype(np.float32)
    prompts = prompts_of("points boxes", size, config.vision.grid, rng)
    with torch.no_grad():
        want = model(torch.tensor(pixels).permute(0, 3, 1, 2), multimask_output=True, **theirs(prompts))
    masks, quality = jax.jit(lambda params: sam.forward(params, config, pixels, prompts, multimask=True))(params)
    np.testing.assert_allclose(masks, want.pred_masks.numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(quality, want.iou_scores.numpy(), atol=TOLERANCE)


@pytest.mark.exhaustive
def test_models_that_share_the_encoder_are_decoded_together(saved, rng):
    _, folder = saved()
    config, params = sam.load(folder)
    grid, size = config.vision.grid, config.vision.image_size
    embeddings = rng.normal(size=(2, grid, grid, config.vision.output_channels)).astype(np.float32)
    prompts = prompts_of("boxes", size, grid, rng)
    other = jax.tree.map(lambda leaf: leaf * 0.9, params["decoder"])
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), params["decoder"], other)

    def masks_of(decoder):
        return sam.predict_masks(params | {"decoder": decoder}, config, embeddings, prompts)[0]

    many = jax.jit(jax.vmap(masks_of))(both)
    for i, decoder in enumerate((params["decoder"], other)):
        np.testing.assert_allclose(many[i], jax.jit(masks_of)(decoder), atol=1e-5)


@pytest.mark.exhaustive
def test_half_precision_stays_near(saved, rng):
    _, folder = saved()
    config, params = sam.load(folder)
    half, rounded = sam.load(folder, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {jnp.dtype("bfloat16")}
    size = config.vision.image_size
    pixels = rng.normal(size=(1, size, size, 3)).astype(np.float32)
    encode = jax.jit(sam.encode_images, static_argnums=1)
    want, got = encode(params, config, pixels), encode(rounded, half, pixels)
    assert got.dtype == jnp.bfloat16
    assert np.corrcoef(np.ravel(want), np.ravel(got.astype(jnp.float32)))[0, 1] > 0.995
