"""Models with their tokenizers, loaded and saved as one value."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import pytest

from cycleqd_jax.models.files import hf
from cycleqd_jax.models.model import Model, load_model
from cycleqd_jax.types import InputError


@pytest.fixture
def folder(tmp_path, make_config, make_params, tokenizer):
    config = make_config(vocab_size=tokenizer.vocab_size)
    hf.save(tmp_path / "model", config, make_params(config), tokenizer=tokenizer)
    return tmp_path / "model"


def test_a_saved_model_loads_as_it_was(folder, tmp_path, conversations, assert_identical):
    model = load_model(folder)
    assert (model.config, model.tokenizer.vocab_size) == (hf.load(folder)[0], model.config.vocab_size)
    assert_identical(model.params, hf.load(folder)[1])
    model.save(tmp_path / "again", card="# A model\n")
    again = load_model(str(tmp_path / "again"))
    assert again.config == model.config
    assert_identical(again.params, model.params)
    assert again.tokenizer.encode(conversations[0]) == model.tokenizer.encode(conversations[0])
    assert (tmp_path / "again" / "README.md").read_text("utf-8") == "# A model\n"


def test_other_weights_in_another_dtype(folder, tmp_path):
    model = load_model(folder, dtype="bfloat16")
    assert model.params["norm"].dtype == model.config.dtype == "bfloat16"
    zero = dataclasses.replace(model, params=model.params | {"norm": jnp.zeros_like(model.params["norm"])})
    zero.save(tmp_path / "zero")
    assert not load_model(tmp_path / "zero").params["norm"].any()


def test_a_subclass_loads_itself(folder):
    class Talking(Model):
        def hello(self) -> str:
            return self.tokenizer.decode(self.tokenizer.encode([{"role": "user", "content": "Hello"}]))

    assert "Hello" in Talking.load(folder).hello()


def test_a_gguf_file(smollm2_gguf):
    model = load_model(smollm2_gguf, dtype="bfloat16")
    assert model.config.model_type == "llama"
    assert model.params["embed_tokens"].shape == (model.config.vocab_size, model.config.hidden_size)
    assert model.tokenizer.stop_ids


def test_a_model_without_a_tokenizer_is_refused_before_its_weights_are_read(folder):
    (folder / "tokenizer_config.json").unlink()
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match=r"tokenizer_config.json in .*model, got no such file"):
        load_model(folder)


def test_a_model_that_does_not_exist(tmp_path):
    with pytest.raises(InputError, match=r"got no such folder: .*absent"):
        load_model(tmp_path / "absent")
