"""``cycleqd segment``: the mask of one image, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cycleqd_jax.cli import main
from cycleqd_jax.models import sam
from cycleqd_jax.models.sam.predictor import SamPredictor

from ..shapes import CONFIGS, ellipses, random_params


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("segment")
    (item,) = ellipses(1)
    Image.fromarray(item.image).save(path / "image.png")
    Image.fromarray(item.image).save(path / "damaged.jpg")
    (path / "damaged.jpg").write_bytes((path / "damaged.jpg").read_bytes()[:-9] + b"\xff\xd9")
    Image.fromarray(item.mask.astype(np.uint8) * np.uint8(255)).save(path / "mask.png")
    sam.save(path / "model", CONFIGS["tiny_vit"], random_params("tiny_vit"))
    return path


def run(folder, *options, image="image.png"):
    return main(["segment", str(folder / "model"), str(folder / image), "--output", str(folder / "out.png"), *options])


def test_the_mask_is_that_of_the_predictor(folder, capsys):
    (item,) = ellipses(1)
    box = [str(round(edge)) for edge in item.box.tolist()]
    options = ("--box", *box, "--truth", str(folder / "mask.png"), "--picture", str(folder / "new" / "picture.png"))
    assert run(folder, *options) == 0, capsys.readouterr().err
    predictor = SamPredictor(CONFIGS["tiny_vit"], batch_size=1)
    predictor.load(random_params("tiny_vit"), donate=False)
    (want,) = predictor.predict([item], 1)
    with Image.open(folder / "out.png") as file:
        found = np.asarray(file)
    (folder / "out.png").unlink()
    assert set(np.unique(found)) <= {0, 255}
    assert ((found > 0) == want.masks[0]).all()
    with Image.open(folder / "new" / "picture.png") as picture:
        assert picture.size == (32, 24)
    shown = capsys.readouterr().out
    assert f"{100 * want.masks[0].mean():.1f} % of the image" in shown
    assert "iou " in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--box", "0", "0", "40", "10"), "expected --box left top right bottom within the 32 × 24 pixels"),
        (("--box", "5", "5", "5", "9"), "expected --box left top right bottom within"),
        (("--truth", "nowhere.png"), "nowhere.png"),
        (("--truth", "{}/damaged.jpg"), "expected an undamaged image file, got image data that end too early in"),
        (("--picture", "{}/out.png"), "expected files to write beside the image and each other, got"),
        (("--picture", "{}/image.png"), "expected files to write beside the image and each other, got"),
        (("--truth", "{}/mask.png", "--picture", "{}/model/../mask.png"), "expected files to write beside the image and each"),
        (("--picture", "{}"), "expected a file to write, got the folder"),
    ],
)
def test_what_is_refused(folder, capsys, options, message):
    before = (folder / "image.png").read_bytes()
    assert run(folder, *(option.format(folder) for option in options)) == 2
    assert message in capsys.readouterr().err
    assert (folder / "image.png").read_bytes() == before
    assert not (folder / "out.png").exists()
