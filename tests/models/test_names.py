"""Names of tensors: those of wrapped models are understood, and where names do not match, both sides are shown."""

from __future__ import annotations

import re
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cycleqd_jax.models.files import hf
from cycleqd_jax.models.files.checkpoint import open_checkpoint
from cycleqd_jax.models.files.names import plain_name, recognise
from cycleqd_jax.models.inspection import inspect_model
from cycleqd_jax.types import InputError

WEIGHTS = "model.safetensors"


@pytest.fixture
def model(tmp_path, make_config, make_params):
    config = make_config(num_hidden_layers=2)
    hf.save(tmp_path / "m", config, make_params(config))
    return tmp_path / "m"


@pytest.fixture
def tied(tmp_path, make_config, make_params):
    config = make_config(num_hidden_layers=1, tie_word_embeddings=True)
    hf.save(tmp_path / "m", config, make_params(config))
    return tmp_path / "m"


def rename(folder, change):
    tensors = load_file(folder / WEIGHTS)
    save_file({change(name): tensor for name, tensor in tensors.items()}, folder / WEIGHTS)


WRAPPED = {
    "torch.compile": lambda n: f"_orig_mod.{n}",
    "compiled blocks": lambda n: re.sub(r"(layers\.\d+)\.", r"\1._orig_mod.", n),
    "data parallel": lambda n: f"module.{n}",
    "compiled and parallel": lambda n: f"module._orig_mod.{n}",
    "fsdp": lambda n: re.sub(r"(layers\.\d+)\.", r"\1._fsdp_wrapped_module.", f"_fsdp_wrapped_module.{n}"),
    "checkpointed": lambda n: re.sub(r"(layers\.\d+)\.", r"\1._checkpoint_wrapped_module.", n),
    "merged by PEFT": lambda n: f"base_model.model.{n}",
    "without model": lambda n: n.removeprefix("model."),
    "model twice": lambda n: f"model.{n}",
    "a saved module": lambda n: n.replace("lm_head.", "lm_head.modules_to_save.default."),
    "the base of an adapter": lambda n: "base_model.model." + n.replace("_proj.weight", "_proj.base_layer.weight"),
    "another prefix of all": lambda n: f"policy.{n}",
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_names_of_wrapped_models_are_understood(model, kind):
    before = hf.load(model)[1]
    rename(model, WRAPPED[kind])
    after = hf.load(model)[1]
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


def test_a_name_that_comes_twice_is_not_guessed(model):
    tensors = load_file(model / WEIGHTS)
    save_file(tensors | {"_orig_mod.model.norm.weight": tensors["model.norm.weight"]}, model / WEIGHTS)
    with pytest.raises(InputError, match=r"got an unknown _orig_mod\.model\.norm\.weight in .*\(missing: 0, unknown: 1\)"):
        open_checkpoint(model)
    norm = tensors.pop("model.norm.weight")
    save_file(tensors | {"_orig_mod.model.norm.weight": norm, "module.model.norm.weight": norm}, model / WEIGHTS)
    with pytest.raises(
        InputError, match=r"got no model\.norm\.weight and an unknown _orig.*, module.*\(missing: 1, unknown: 2\)"
    ):
        open_checkpoint(model)


def test_what_no_model_computes_with_is_left_out(model):
    before, tensors = hf.load(model)[1], load_file(model / WEIGHTS)
    embedding = tensors.pop("model.embed_tokens.weight")
    tensors["model.embed_tokens.modules_to_save.default.weight"] = embedding
    tensors["model.embed_tokens.original_module.weight"] = embedding * 2
    save_file(tensors | {"model.rotary_emb.original_inv_freq": np.ones(4, np.float32)}, model / WEIGHTS)
    after = hf.load(model)[1]
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


def test_names_of_both_sides_are_shown(model):
    rename(model, lambda n: n.replace("self_attn.", "attention."))
    with pytest.raises(
        InputError, match=r"got no .*self_attn.*and 5 more and an unknown .*\.attention\..*and 5 more in .*give the"
    ):
        open_checkpoint(model)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda t: t.pop("lm_head.weight"), r"got no lm_head\.weight \(missing: 1.*set tie_word_embeddings to true"),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.lora_A.default.weight": np.ones((2, 32), np.float32)}),
            r"an unknown .*lora_A.*merge the adapter into its base",
        ),
        (
            lambda t: t.update({"v_head.summary.weight": np.ones((1, 32), np.float32)}),
            r"an unknown v_head\.summary\.weight .*remove such tensors if the model works without them",
        ),
    ],
)
def test_the_way_out_is_named(model, spoil, named):
    tensors = load_file(model / WEIGHTS)
    spoil(tensors)
    save_file(tensors, model / WEIGHTS)
    with pytest.raises(InputError, match=named):
        open_checkpoint(model)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["lm_head.weight", "_orig_mod.lm_head.weight"])
def test_one_name_of_a_shared_tensor_is_enough(tied, name):
    before = hf.load(tied)[1]
    rename(tied, lambda n: name if "embed_tokens" in n else n)
    assert np.array_equal(hf.load(tied)[1]["embed_tokens"], before["embed_tokens"])
    assert open_checkpoint(tied).nbytes == sum(4 * leaf.size for leaf in jax.tree.leaves(before))


def test_inspect_refuses_what_loading_refuses(tied, tmp_path, make_config, make_params):
    tensors = load_file(tied / WEIGHTS)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] * 2}, tied / WEIGHTS)
    for args in ((str(tied),), (str(tied), str(tied))):
        with pytest.raises(InputError, match=r"expected lm_head\.weight to equal .*; set tie_word_embeddings to false"):
            inspect_model(*args)
    config = make_config(num_hidden_layers=1, tie_word_embeddings=True)
    hf.save(tmp_path / "base", config, make_params(config))
    hf.save(tmp_path / "other", config.replace(rope_theta=1e4), make_params(config))
    _, warning = inspect_model(str(tmp_path / "other"), str(tmp_path / "base")).warnings
    assert warning.startswith("a run with this base refuses the model as an expert: expected rope_theta 500000.0 of the base")


def test_inspect_names_tensors_of_another_dtype(tmp_path, make_config, make_params):
    config = make_config(num_hidden_layers=1)
    hf.save(tmp_path / "m", config, make_params(config), dtype="bfloat16")
    assert inspect_model(str(tmp_path / "m")).warnings == ()
    tensors = load_file(tmp_path / "m" / WEIGHTS)
    tensors = {n: t.astype(np.float32) if "layernorm" in n else t for n, t in tensors.items()}
    save_file(tensors, tmp_path / "m" / WEIGHTS)
    (warning,) = inspect_model(str(tmp_path / "m")).warnings
    assert warning.startswith("2 tensors, such as model.layers.0.input_layernorm.weight, are stored in another dtype")


def test_inspect_warns_of_a_model_that_equals_its_base(tmp_path, make_config, make_params):
    config = make_config(num_hidden_layers=1)
    params = make_params(config)
    hf.save(tmp_path / "base", config, params)
    hf.save(tmp_path / "same", config, params)
    base, same = str(tmp_path / "base"), str(tmp_path / "same")
    assert inspect_model(same, base).warnings == (f"the model equals {base} bit for bit; check that it was trained and saved",)
    tensors = load_file(tmp_path / "same" / WEIGHTS)
    tensors["model.norm.weight"][0] = np.nextafter(tensors["model.norm.weight"][0], np.float32(2))
    save_file(tensors, tmp_path / "same" / WEIGHTS)
    assert inspect_model(same, base).warnings == ()
    hf.save(tmp_path / "same", config, jax.tree.map(lambda leaf: -leaf, params))
    (warning,) = inspect_model(same, base).warnings
    assert warning == f"the model is probably not a fine-tuning of {base}: the distance is too large"


def test_names_that_stand_for_nothing_stay():
    assert plain_name("module.base_model.model.model.layers.3.mlp.up_proj.weight") == "layers.3.mlp.up_proj.weight"
    expected = ["model.norm.weight", "lm_head.weight"]
    assert recognise(["norm.weight", "score.weight"], expected) == {
        "norm.weight": "model.norm.weight",
        "score.weight": "score.weight",
    }


def test_many_names_are_recognised_in_one_pass():
    names = [f"model.layers.{i}.weight" for i in range(40_000)]
    start = time.process_time()
    found = recognise([f"module.{name}" for name in names], names)
    assert time.process_time() - start < 5
    assert list(found.values()) == names
