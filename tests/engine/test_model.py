"""Models with their tokenizers: loaded, saved and asked."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import pytest

from cycleqd_jax.engine import Engine, Model, load_model
from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf
from cycleqd_jax.types import InputError


@pytest.fixture(scope="module")
def model(tokenizer):
    config = llama.LlamaConfig(tokenizer.vocab_size, 32, 48, 2, 4, 2, 8, max_position_embeddings=256)
    return Model(config, llama.init_params(config, jax.random.key(0)), tokenizer)


@pytest.fixture
def folder(model, tmp_path):
    hf.save(tmp_path / "model", model.config, model.params, tokenizer=model.tokenizer)
    return tmp_path / "model"


def test_a_saved_model_loads_as_it_was(folder, tmp_path, hello, assert_identical):
    model = load_model(folder)
    assert (model.config, model.tokenizer.vocab_size) == (hf.load(folder)[0], model.config.vocab_size)
    assert_identical(model.params, hf.load(folder)[1])
    model.save(tmp_path / "again", card="# A model\n")
    again = load_model(str(tmp_path / "again"))
    assert again.config == model.config
    assert_identical(again.params, model.params)
    assert again.tokenizer.encode(hello) == model.tokenizer.encode(hello)
    assert (tmp_path / "again" / "README.md").read_text("utf-8") == "# A model\n"


def test_other_weights_in_another_dtype(folder, tmp_path):
    model = load_model(folder, dtype="bfloat16")
    assert model.params["norm"].dtype == model.config.dtype == "bfloat16"
    zero = dataclasses.replace(model, params=model.params | {"norm": jnp.zeros_like(model.params["norm"])})
    zero.save(tmp_path / "zero")
    assert not load_model(tmp_path / "zero").params["norm"].any()


@pytest.mark.exhaustive
def test_a_gguf_file(smollm2_gguf):
    model = load_model(smollm2_gguf, dtype="bfloat16")
    assert model.config.model_type == "llama"
    assert model.params["embed_tokens"].shape == (model.config.vocab_size, model.config.hidden_size)
    assert model.tokenizer.stop_ids


def test_a_model_without_a_tokenizer_is_refused_before_its_weights_are_read(folder, monkeypatch):
    (folder / "tokenizer_config.json").unlink()
    monkeypatch.setattr(hf, "load", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(InputError, match=r"tokenizer_config.json in .*model, got no such file"):
        load_model(folder)


def test_a_model_that_does_not_exist(tmp_path):
    with pytest.raises(InputError, match=r"got no such folder: .*absent"):
        load_model(tmp_path / "absent")


def test_a_notebook_shows_a_model_in_one_line(model):
    count = llama.num_params(model.config)
    assert repr(model) == f"Model(llama, 2 layers of width 32, {count:,} parameters, float32)"
    assert model == model
    assert model != dataclasses.replace(model)
    assert {model: 1}[model] == 1


@pytest.mark.exhaustive
def test_nothing_is_compiled_for_another_length(model, compilations):
    model = dataclasses.replace(model)
    assert compilations(lambda: model.generate("hi", max_new_tokens=12)) >= 1
    assert compilations(lambda: model.generate("hi there", max_new_tokens=17)) == 0
    assert compilations(lambda: list(model.stream("hi, you there", max_new_tokens=9))) == 0
    other = dataclasses.replace(model, params=llama.init_params(model.config, jax.random.key(2)))
    assert compilations(lambda: other.generate("hello", max_new_tokens=3)) == 0


@pytest.mark.exhaustive
def test_weights_are_copied_once(model, monkeypatch):
    model, loads = dataclasses.replace(model), []
    load = Engine.load
    monkeypatch.setattr(Engine, "load", lambda *given, **options: loads.append(1) or load(*given, **options))
    text = model.generate("hi", max_new_tokens=8)
    assert "".join(model.stream("hi", max_new_tokens=8)) == text
    assert len(loads) == 1
    begun = model.stream("hi", max_new_tokens=8)  # nobody reads it
    assert model.generate("hi", max_new_tokens=8) == text
    assert "".join(begun) == text
    assert len(loads) == 2
    model.generate("hi", max_new_tokens=100)
    assert len(loads) == 3


def test_a_prompt_beyond_the_context(model):
    for ask in (model.generate, model.stream):
        with pytest.raises(
            InputError, match=r"leaves room for a reply in the model's 256 positions, got \d+ tokens; shorten it"
        ):
            ask("x" * 400)
        with pytest.raises(InputError, match=r"a limit of at least 1, got .* limit 0"):
            ask("hi", max_new_tokens=0)


def test_a_pad_token_without_a_row_is_not_used(folder, tmp_path, model):
    shutil.copytree(folder, tmp_path / "padded")
    tokenizer = model.tokenizer.transformers_tokenizer.__class__.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path / "padded")
    padded = load_model(tmp_path / "padded")
    assert padded.tokenizer.pad_id == padded.config.vocab_size
    assert padded.generate("hi", max_new_tokens=4) == load_model(folder).generate("hi", max_new_tokens=4)
