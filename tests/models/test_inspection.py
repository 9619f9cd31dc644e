"""The facts about models and adapters as values; ``cycleqd inspect`` prints them."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.inspection import AdapterFacts, ModelFacts, inspect_model
from cycleqd_jax.types import InputError

CONFIG = llama.LlamaConfig(97, 32, 48, 2, 4, 2, 8, max_position_embeddings=64)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "base"
    hf.save(folder, CONFIG, llama.init_params(CONFIG, jax.random.key(0)))
    return folder


@pytest.fixture
def adapter(tmp_path):
    """A LoRA adapter of rank 2 on one matrix, with α = 4."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 32)).astype(np.float32), rng.normal(size=(48, 2)).astype(np.float32)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_{}.weight"
    save_file({name.format("A"): a, name.format("B"): b}, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"], "layers_to_transform": [1]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    return tmp_path, 2.0 * b @ a


def test_a_model_without_tokenizer_and_base(base):
    facts = inspect_model(str(base))
    assert isinstance(facts, ModelFacts)
    assert facts.architecture.parameters == llama.num_params(CONFIG)
    assert facts.architecture.tensors["layers/attn/k"].shape == [2, 16, 32]
    assert "tokenizer" in str(facts.tokenizer)
    assert facts.task_vector is None


def test_the_distance_of_a_model_from_itself_is_0(base):
    norms = inspect_model(str(base), str(base)).task_vector
    assert norms is not None
    assert (norms.total.norm, norms.total.relative) == (0.0, 0.0)
    assert sorted(norms.by_layer) == [0, 1]


def test_an_adapter(base, adapter):
    folder, update = adapter
    facts = inspect_model(str(folder), str(base))
    assert isinstance(facts, AdapterFacts)
    assert facts.ranks == {"layers/mlp/up": 2}
    assert facts.task_vector.total.norm == pytest.approx(np.linalg.norm(update), rel=1e-5)
    assert facts.task_vector.by_layer[0].norm == 0


def test_an_adapter_without_a_base(adapter):
    with pytest.raises(InputError, match=r"expected the base of the adapter, got no base in .*; give the base with --base"):
        inspect_model(str(adapter[0]))
