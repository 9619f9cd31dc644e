"""Folders of Segment Anything: what transformers writes is read and written again byte for byte, and faults are named."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cycleqd_jax.models import sam
from cycleqd_jax.models.sam import images
from cycleqd_jax.types import InputError

from ...shapes import CONFIGS, random_params
from .conftest import SIZES


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved()[1], tmp_path / "model")


@pytest.mark.exhaustive
@pytest.mark.parametrize("variant", SIZES)
def test_what_transformers_wrote_is_written_again_byte_for_byte(saved, tmp_path, variant):
    source = saved(variant)[1]
    side = json.loads((source / "config.json").read_text())["vision_config"]["image_size"]
    (source / "preprocessor_config.json").write_text(f'{{"size":\t{{"longest_edge": {side}}}}}')
    config, params = sam.load(source)
    sam.save(tmp_path / "copy", config, params, processor=source)
    assert sorted(path.name for path in source.iterdir()) == sorted(path.name for path in (tmp_path / "copy").iterdir())
    for path in source.iterdir():
        assert path.read_bytes() == (tmp_path / "copy" / path.name).read_bytes(), path.name
    sam.save(tmp_path / "copy", config, params, processor=source)  # an existing model is replaced


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "preprocessor_config.json",
            '{"image_mean": [0.5, 0.5, 0.5]}',
            r"expected image_mean \[0\.485, .*got \[0\.5, 0\.5, 0\.5\] in",
        ),
        ("preprocessor_config.json", '{"image_std": [0.229, 0.224]}', r"expected image_std .*, got \[0\.229, 0\.224\] in"),
        ("preprocessor_config.json", '{"size": {"longest_edge": 512}}', "expected size {'longest_edge': 32}, .*got .*512.* in"),
        ("preprocessor_config.json", '{"pad_size": {"height": 64, "width": 64}}', "expected pad_size .*got .*64.* in"),
        ("preprocessor_config.json", '{"do_normalize": false}', "expected do_normalize True, .*got False in"),
        ("processor_config.json", '{"image_processor": {"rescale_factor": 1.0}}', "expected rescale_factor 0.0039.*got 1.0 in"),
        ("processor_config.json", "[]", "expected a JSON object in"),
    ],
)
def test_images_that_are_prepared_in_another_way_are_refused(tmp_path, file, content, message):
    sam.save(tmp_path / "model", CONFIGS["vit"], random_params("vit"))
    (tmp_path / "model" / file).write_text(content)
    for read in (sam.read_config, sam.load):
        with pytest.raises(InputError, match=f"{message} .*{file}"):
            read(tmp_path / "model")
    (tmp_path / "model" / file).write_text(json.dumps({"image_mean": list(images.MEAN), "size": {"longest_edge": 32}}))
    assert sam.read_config(tmp_path / "model") == CONFIGS["vit"]


def small_config():
    vision = sam.VitConfig(
        hidden_size=16, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, mlp_dim=24,
        window_size=2, global_attn_indexes=(1,), num_pos_feats=8,
    )  # fmt: skip
    prompt = sam.PromptConfig(hidden_size=16, image_size=32, patch_size=8)
    return sam.SamConfig(vision, prompt, sam.DecoderConfig(hidden_size=16, mlp_dim=24, num_attention_heads=2))


def test_new_parameters_have_the_shapes_of_the_config():
    config = small_config()
    params = jax.eval_shape(lambda: sam.init_params(config, jax.random.key(0)))
    assert sam.num_params(config) == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), sam.abstract_params(config)
    )
    axes = jax.tree.leaves(sam.logical_axes(config), is_leaf=lambda node: isinstance(node, tuple))
    assert [len(axis) for axis in axes] == [leaf.ndim for leaf in jax.tree.leaves(params)]


@pytest.mark.exhaustive
def test_our_model_opens_in_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import SamModel

    config = small_config()
    params = sam.init_params(config, jax.random.key(0))
    sam.save(tmp_path / "model", config, params)
    assert sam.load(tmp_path / "model")[0] == config
    model, info = SamModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    pixels = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        want = model.get_image_embeddings(torch.tensor(pixels).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    got = jax.jit(sam.encode_images, static_argnums=1)(params, config, pixels)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_every_kernel_is_a_matrix_for_the_operators(saved):
    from cycleqd_jax.operators import is_matrix
    from cycleqd_jax.types import tree_paths

    _, params = sam.load(saved()[1])
    kinds = {path: is_matrix(path, leaf) for path, leaf in tree_paths(params)}
    assert all(kinds[path] for path in kinds if path.endswith("/kernel"))
    others = {path for path, matrix in kinds.items() if matrix and not path.endswith("/kernel")}
    positions = {f"vision/{kind}_positions/{axis}" for kind in ("window", "global") for axis in "hw"}
    assert others == positions | {"vision/pos_embed", "prompt/frequencies", "decoder/mask_tokens"}


@pytest.mark.exhaustive
def test_shards_and_dtypes(folder, tmp_path, assert_identical):
    config, params = sam.load(folder)
    sam.save(tmp_path / "shards", config, params, dtype="bfloat16", max_shard_bytes=20_000)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    half, rounded = sam.load(tmp_path / "shards")
    assert half.dtype == "bfloat16"
    assert_identical(rounded, jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params))


def test_weights_are_placed_where_the_caller_wants_them(folder, assert_identical):
    from cycleqd_jax.sharding import make_mesh, shardings

    mesh = make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
    _, params = sam.load(folder)
    _, placed = sam.load(
        folder, shardings=lambda config: shardings(mesh, sam.abstract_params(config), sam.logical_axes(config))
    )
    assert_identical(placed, params)
    kernel = placed["vision"]["layers"]["attn"]["qkv"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 16, 48)


def rewrite(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


SHARED = "shared_image_embedding.positional_embedding"
COPY = "prompt_encoder.shared_embedding.positional_embedding"


def test_the_copy_of_the_position_encoding_must_be_equal(folder, assert_identical):
    _, params = sam.load(folder)
    rewrite(folder, lambda tensors: tensors.update({COPY: tensors[SHARED].copy()}))
    assert_identical(sam.load(folder)[1], params)
    rewrite(folder, lambda tensors: tensors.update({COPY: tensors[SHARED] + 1}))
    with pytest.raises(InputError, match=f"expected {COPY} to equal {SHARED}"):
        sam.load(folder)


QKV = "vision_encoder.layers.0.attn.qkv.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(QKV), f"got no {QKV} \\(1 missing, 0 unknown\\)"),
        (lambda tensors: tensors.update(other=np.ones(2, np.float32)), "got the unknown other \\(0 missing, 1 unknown\\)"),
        (lambda tensors: tensors.update({QKV: np.ones((2, 2), np.float32)}), f"of {QKV}, got \\[2, 2\\]"),
        (lambda tensors: tensors[QKV].fill(np.nan), f"got NaN or Inf in tensor {QKV}"),
        (lambda tensors: tensors.update({QKV: tensors[QKV].astype(np.int32)}), f"got I32 for {QKV}"),
    ],
)
def test_other_weights_are_refused(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(InputError, match=message) as error:
        sam.load(folder)
    assert str(folder) in str(error.value)


def test_weights_beyond_the_dtype_are_refused(folder, tmp_path):
    rewrite(folder, lambda tensors: tensors[QKV].fill(1e6))
    with pytest.raises(InputError, match=f"larger ones in tensor {QKV}"):
        sam.load(folder, dtype="float16")
    config, params = sam.load(folder)
    with pytest.raises(InputError, match=f"got NaN or Inf in tensor {QKV} as float16"):
        sam.save(tmp_path / "half", config, params, dtype="float16")


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        (None, "model_type", "llama", "expected model_type to be one of sam, mobile_sam"),
        (None, "model_type", None, "expected model_type to be one of sam, mobile_sam"),
        (None, "vision_config", [], "expected vision_config to be an object"),
        (None, "dtype", "int8", "expected dtype to be one of float32"),
        ("vision_config", "hidden_act", "relu", "expected vision_config.hidden_act to be 'gelu', .*got 'relu'"),
        ("vision_config", "hidden_size", 31, "expected hidden_size to be a multiple of num_attention_heads, 2"),
        ("vision_config", "hidden_size", "32", "expected hidden_size to be a positive integer"),
        ("vision_config", "image_size", [64, 64], "expected image_size to be a positive integer"),
        ("vision_config", "global_attn_indexes", [3], "expected global_attn_indexes to be indexes of layers"),
        ("vision_config", "global_attn_indexes", [0.5], "expected global_attn_indexes to be a list of positive integers"),
        ("vision_config", "layer_norm_eps", -1.0, "expected layer_norm_eps to be a positive number"),
        ("vision_config", "use_rel_pos", 1, "expected use_rel_pos to be true or false"),
        ("vision_config", "output_channels", 64, "expected prompt_encoder_config.hidden_size to be the image encoder's"),
        ("prompt_encoder_config", "image_size", 32, "expected prompt_encoder_config.image_size to be the image encoder's"),
        ("mask_decoder_config", "iou_head_depth", 1, "expected iou_head_depth to be at least 2"),
        ("mask_decoder_config", "num_attention_heads", 3, "expected the width of the decoder's attention to be a multiple"),
    ],
)
def test_another_config_is_refused(folder, section, name, value, message):
    config = json.loads((folder / "config.json").read_text())
    (config if section is None else config[section])[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    message = message.replace(", .*got", f" in {folder / 'config.json'}, got")
    with pytest.raises(InputError, match=message) as error:
        sam.load(folder)
    assert str(folder / "config.json") in str(error.value)


def test_a_file_may_leave_defaults_out():
    config = sam.SamConfig.from_hf({"model_type": "sam", "vision_config": {"hidden_size": 384, "num_attention_heads": 6}})
    assert config.vision.mlp_dim == 4 * 384
    assert config.decoder.layer_norm_eps == 1e-6
    assert config.to_hf() == {
        "model_type": "sam",
        "architectures": ["SamModel"],
        "vision_config": {"hidden_size": 384, "num_attention_heads": 6},
    }


@pytest.mark.parametrize("size", [32, 36, 40])
def test_the_grid_is_that_of_the_embedding(size):
    usual = CONFIGS["tiny_vit"]
    vision, prompt = (dataclasses.replace(part, image_size=size) for part in (usual.vision, usual.prompt))
    prompt = dataclasses.replace(prompt, patch_size=size // vision.grid)
    config = dataclasses.replace(usual, vision=vision, prompt=prompt)
    params = jax.eval_shape(lambda: sam.init_params(config, jax.random.key(0)))
    images = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    found = jax.eval_shape(lambda p, x: sam.encode_images(p, config, x), params, images)
    assert found.shape[1:3] == (config.vision.grid, config.vision.grid)
