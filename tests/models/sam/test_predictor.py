"""The predictor: masks of a population equal those of its individuals, and embeddings are shared where that is exact."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from cycleqd_jax.models import sam
from cycleqd_jax.models.sam.images import masks_of, preprocess, to_model
from cycleqd_jax.models.sam.predictor import SamPredictor
from cycleqd_jax.types import InputError, MaskPredictor

from ...shapes import CONFIGS, ellipses, random_params

CONFIG = CONFIGS["tiny_vit"]


@pytest.fixture(scope="module")
def models():
    return [random_params("tiny_vit", seed) for seed in range(3)]


@pytest.fixture(scope="module")
def items():
    return [*ellipses(3), *ellipses(2, 1, (40, 20))]


def masks(predictor, params, items, count=1):
    predictor.load(params, donate=False)
    return [one.masks for one in predictor.predict(items, count)]


def with_decoders(models, vision):
    """A population with one image encoder."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    return {**stacked, "vision": vision}


def test_masks_are_those_of_the_model(models, items):
    predictor = SamPredictor(CONFIG, batch_size=2)
    assert isinstance(predictor, MaskPredictor)
    found = masks(predictor, models[0], items)
    for item, got in zip(items, found, strict=True):
        height, width = item.mask.shape
        box = to_model(item.box.reshape(2, 2), (height, width), 32).reshape(1, 1, 4)
        pixels = preprocess(item.image, 32).pixels[None]
        logits, _ = jax.jit(sam.forward, static_argnums=1)(models[0], CONFIG, pixels, sam.Prompts(boxes=box))
        (want,) = masks_of([logits[0, 0]], [(height, width)], 32)
        assert got.shape == (1, height, width)
        assert (got != want).mean() < 0.01


@pytest.mark.exhaustive
def test_a_population_that_shares_the_known_encoder(models, items, encoded):
    predictor = SamPredictor(CONFIG, encoder=models[0]["vision"], batch_size=2)
    together = masks(predictor, with_decoders(models, models[0]["vision"]), items, 3)
    assert encoded == [2, 2, 2]
    for i, model in enumerate(models):
        alone = masks(predictor, {**model, "vision": jax.tree.map(jnp.copy, models[0]["vision"])}, items)
        assert all((a[0] != b[i]).mean() < 0.01 for a, b in zip(alone, together, strict=True))
    assert encoded == [2, 2, 2]  # embeddings were kept: the values of the encoder are the same
    assert len(masks(predictor, with_decoders(models, models[0]["vision"]), items, 2)[0]) == 2
    assert not all(np.array_equal(a[0], a[1]) for a in together)


@pytest.mark.exhaustive
def test_a_population_without_an_axis_has_the_same_masks(models, items):
    """Experts that change nothing: all leaves are shared, so nothing says how many individuals there are."""
    predictor = SamPredictor(CONFIG, encoder=models[0]["vision"], batch_size=2)
    predictor.load(models[0], donate=False)
    alone, together = list(predictor.predict(items, 1)), list(predictor.predict(items, 3))
    for one, three in zip(alone, together, strict=True):
        np.testing.assert_array_equal(three.masks, np.repeat(one.masks, 3, axis=0))
        assert three.finite.tolist() == [True] * 3


@pytest.mark.exhaustive
def test_other_encoders_have_embeddings_of_their_own(models, items, encoded):
    predictor = SamPredictor(CONFIG, encoder=models[0]["vision"], batch_size=2)
    plain = SamPredictor(CONFIG, batch_size=2)
    known = masks(predictor, models[0], items[:2])
    other = masks(predictor, models[1], items[:2])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), models[0], models[1])
    del encoded[:]
    both = masks(predictor, stacked, items[:2], 2)
    assert encoded == [2]  # the second individual's; those of the first were kept
    for a, b, c in zip(known, other, both, strict=True):
        assert (c[0] != a[0]).mean() < 0.01
        assert (c[1] != b[0]).mean() < 0.01
    one_shared = masks(plain, with_decoders(models[:2], models[1]["vision"]), items[:2], 2)
    assert all((a[1] != b[0]).mean() < 0.01 for a, b in zip(one_shared, other, strict=True))


def test_one_changed_weight_is_another_encoder(models, items, encoded):
    predictor = SamPredictor(CONFIG, encoder=models[0]["vision"], batch_size=2)
    masks(predictor, models[0], items[:2])
    vision = jax.tree.map(jnp.copy, models[0]["vision"])
    bias = vision["stage1"]["blocks"]["attn"]["qkv"]["bias"]
    vision["stage1"]["blocks"]["attn"]["qkv"]["bias"] = bias.at[-1, -1].add(1e-6)
    masks(predictor, {**models[0], "vision": vision}, items[:2])
    masks(predictor, models[0], items[:2])
    assert encoded == [2, 2]


def test_embeddings_beyond_the_room_are_computed_again(models, items, encoded):
    one = 4 * 4 * 16 * 4
    predictor = SamPredictor(CONFIG, encoder=models[0]["vision"], batch_size=2, cache_bytes=2 * one)
    first = masks(predictor, models[0], items)
    again = masks(predictor, models[0], items)
    assert encoded == [2, 2, 2, 2, 2]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.exhaustive
def test_weights_and_logits_that_are_not_finite_are_named(models, items):
    predictor = SamPredictor(CONFIG, encoder=models[0]["vision"], batch_size=2)
    stacked = with_decoders(models, models[0]["vision"])
    unused = stacked["decoder"]["iou"]["proj_out"]["bias"].at[1, 0].set(jnp.nan)
    stacked["decoder"]["iou"]["proj_out"]["bias"] = unused
    scale = stacked["decoder"]["upscale2"]["kernel"]
    stacked["decoder"]["upscale2"]["kernel"] = scale.at[2].set(3e38)
    predictor.load(stacked, donate=False)
    assert [one.finite.tolist() for one in predictor.predict(items, 3)] == [[True, False, False]] * len(items)
    predictor.load({**models[0], "vision": jax.tree.map(lambda leaf: leaf * jnp.nan, models[0]["vision"])}, donate=True)
    assert [one.finite.tolist() for one in predictor.predict(items[:1], 1)] == [[False]]


@pytest.mark.exhaustive
def test_nothing_is_compiled_for_the_next_models(models, items, compilations):
    predictor = SamPredictor(CONFIG, encoder=models[0]["vision"], batch_size=2)
    masks(predictor, with_decoders(models, models[0]["vision"]), items, 3)
    others = with_decoders(models[::-1], models[0]["vision"])
    assert compilations(lambda: masks(predictor, others, [*items[:3], *ellipses(1, 3, (27, 33))], 3)[0]) == 0


@pytest.mark.exhaustive
def test_batches_split_over_devices(models, items):
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    spread = SamPredictor(CONFIG, encoder=models[0]["vision"], batch_size=4, mesh=mesh)
    plain = SamPredictor(CONFIG, encoder=models[0]["vision"], batch_size=4)
    stacked = with_decoders(models, models[0]["vision"])
    for a, b in zip(masks(spread, stacked, items, 3), masks(plain, stacked, items, 3), strict=True):
        assert (a != b).mean() < 0.01
    with pytest.raises(InputError, match="a multiple of the 4 devices, got 6"):
        SamPredictor(CONFIG, batch_size=6, mesh=mesh)


@pytest.mark.exhaustive
def test_weights_of_other_models_are_refused(models, items):
    predictor = SamPredictor(CONFIG)
    with pytest.raises(InputError, match="expected the weights of 1 individuals, got fewer or none"):
        list(predictor.predict(items, 1))
    predictor.load(with_decoders(models[:2], models[0]["vision"]), donate=False)
    with pytest.raises(InputError, match="expected the weights of 3 individuals"):
        list(predictor.predict(items, 3))
    with pytest.raises(InputError, match="got no leaf 'decoder/final_attn/k/bias' in the weights given to SamPredictor"):
        predictor.load({"vision": models[0]["vision"], "prompt": models[0]["prompt"]}, donate=False)
    with pytest.raises(InputError, match="got another leaf 'extra' in the weights given to SamPredictor"):
        predictor.load({**models[0], "extra": jnp.zeros(2)}, donate=False)
    with pytest.raises(InputError, match="got no leaf 'vision/"):
        predictor.load(random_params("vit"), donate=False)
    wide = {**models[0], "prompt": jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), models[0]["prompt"])}
    wide["decoder"] = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), models[0]["decoder"])
    with pytest.raises(InputError, match=r"expected one number of individuals in all leaves, got \[2, 3\]"):
        predictor.load(wide, donate=False)
    shape = {**models[0], "prompt": {**models[0]["prompt"], "no_mask": jnp.zeros((1, 3))}}
    with pytest.raises(InputError, match=r"expected leaf 'prompt/no_mask' of shape \(1, 16\), got \(1, 3\) in the weights"):
        predictor.load(shape, donate=False)
    predictor.load(models[0], donate=False)
    predictor.unload()
    with pytest.raises(InputError, match="load them first"):
        list(predictor.predict(items, 1))


def test_images_are_counted(models, items):
    predictor = SamPredictor(CONFIG, encoder=models[0]["vision"], batch_size=2)
    masks(predictor, with_decoders(models, models[0]["vision"]), items, 3)
    assert [(one.computed, one.attended) for one in predictor.usage()] == [(5, 5), (5, 0), (5, 0)]
    masks(predictor, models[0], items)
    assert [(one.computed, one.attended) for one in predictor.usage()] == [(5, 0)]
    masks(predictor, models[1], items)
    assert [(one.computed, one.attended) for one in predictor.usage()] == [(5, 5)]


@pytest.mark.exhaustive
def test_smaller_batches_have_the_same_masks(models, items):
    predictor = SamPredictor(CONFIG, batch_size=4)
    want = masks(predictor, models[0], items)
    predictor.resize(2)
    assert predictor.batch_size == 2
    with pytest.raises(InputError, match="load them first"):
        next(predictor.predict(items, 1))
    for one, other in zip(masks(predictor, models[0], items), want, strict=True):
        assert (one != other).mean() < 0.01
