"""Every family against transformers, on random small configs: heads, head sizes, rope, tying, biases, eps, windows."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.llama.config import FAMILIES, LlamaConfig
from cycleqd_jax.types import InputError

from ..lazy import Lazy

torch = Lazy("torch", reason="transformers' models need torch")

TOLERANCE = 2e-4
CASES = 4


def random_config(family: str, seed: int) -> dict:
    """A Hugging Face config that transformers can build, small but unusual.

    Every value of a choice occurs once in as many seeds as it has values; which values meet is random.
    """
    rng = np.random.default_rng([*family.encode()])

    def pick(*values):
        return values[rng.permutation(len(values))[seed % len(values)]]

    kv_heads, head_dim, groups = pick(1, 2, 3, 2), pick(4, 6, 8, 16), pick(1, 2, 4, 3)
    heads, per_head = kv_heads * groups, pick(4, 6, 8, 10)
    rope = {"rope_theta": pick(100.0, 10000.0, 500000.0)}
    (low, high), factor, original = pick((1.0, 4.0), (2.0, 3.0)), pick(2.0, 8.0, 32.0), pick(8, 64)
    if pick(True, False):
        rope["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }
    config = {
        "model_type": family,
        "vocab_size": pick(64, 97),
        "hidden_size": heads * (head_dim if family == "qwen2" else per_head),
        "intermediate_size": pick(20, 56),
        "num_hidden_layers": pick(1, 2, 3, 2),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": 64,
        "rms_norm_eps": pick(1e-6, 1e-5, 1e-2),
        "tie_word_embeddings": pick(True, False),
        "initializer_range": 0.2,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        **rope,
    }
    if family in ("llama", "qwen3"):
        config["attention_bias"] = pick(True, False)
    if family == "llama":
        config["mlp_bias"] = pick(True, False)
    if family == "mistral":
        config["sliding_window"] = pick(None, 48)
    if family.startswith("qwen"):
        config |= {"sliding_window": 4, "use_sliding_window": False}  # there, and ignored
        config |= pick({}, {"use_sliding_window": True, "sliding_window": 48, "max_window_layers": 1})
    return config


def test_the_configs_cover_every_switch():
    for family in FAMILIES:
        configs = [LlamaConfig.from_hf(random_config(family, seed)) for seed in range(CASES)]
        for switch in ("tie_word_embeddings", "rope_scaling"):
            assert {bool(getattr(config, switch)) for config in configs} == {True, False}, (family, switch)
        assert len({config.num_hidden_layers for config in configs}) == 3
        grouped = [config.num_key_value_heads for config in configs if config.num_key_value_heads < config.num_attention_heads]
        assert max(grouped) > 1, family
        assert min(grouped) == 1, family
        if family in ("llama", "qwen3"):
            assert {config.attention_out_bias for config in configs} == {True, False}
        if family != "llama":
            assert {config.sliding_window for config in configs} == {None, 48} or family == "qwen2"
    plain = LlamaConfig.from_hf(random_config("llama", 0) | {"attention_bias": False, "mlp_bias": False})
    assert not any((plain.attention_bias, plain.mlp_bias, plain.qk_norm))


# As published, but for the sizes.
PUBLISHED = {
    "Llama-2-7b": {"model_type": "llama", "num_key_value_heads": 4, "max_position_embeddings": 4096, "pretraining_tp": 1},
    "Llama-3-8B": {"model_type": "llama", "num_key_value_heads": 2, "rope_theta": 500000.0, "rope_scaling": None},
    "Llama-3.2-1B": {
        "model_type": "llama",
        "num_key_value_heads": 2,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "Mistral-7B-v0.3": {"model_type": "mistral", "num_key_value_heads": 2, "rope_theta": 1000000.0, "sliding_window": None},
    "Qwen2.5-0.5B": {
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "max_window_layers": 21,
        "tie_word_embeddings": True,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_theta": 1000000,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "sliding_window": None,
    },
    "SmolLM2-135M": {
        "model_type": "llama",
        "num_key_value_heads": 2,
        "rope_interleaved": False,
        "rope_theta": 100000,
        "rope_scaling": None,
        "tie_word_embeddings": True,
    },
}


QUICK = {"Llama-3.2-1B", "Mistral-7B-v0.3", "Qwen3-0.6B"}
"""A scaled RoPE with a tied head, a family of Llama's layers, and norms of queries and keys."""


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.exhaustive) for name in PUBLISHED]
)
def test_published_models_in_small(tmp_path, name):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    raw = {"initializer_range": 0.2, "rms_norm_eps": 1e-5, "torch_dtype": "float32"} | PUBLISHED[name] | sizes
    ids = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    theirs = transformers_model(raw | ids, 0)
    theirs.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps(raw), encoding="utf-8")  # as it was published, by transformers 4
    config, params = hf.load(tmp_path / "m")
    tokens = np.random.default_rng(0).integers(0, 64, (2, 50)).astype(np.int32)
    with torch.no_grad():
        want = theirs(torch.tensor(tokens).long()).logits.numpy()
    got = jax.jit(functools.partial(llama.forward, config=config))(params, tokens=tokens)
    np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=0)


def transformers_model(config: dict, seed: int):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    fields = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **fields), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # norms that are not one and biases that are not zero
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
            assert parameter.abs().max() > 0, name
    return model


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(1, CASES))])
# test_llama.py has models of Llama, and a test of published models has one of Mistral
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.exhaustive) if name in ("llama", "mistral") else name for name in FAMILIES]
)
def test_logits_are_those_of_transformers(tmp_path, step_by_step, family, seed):
    theirs = transformers_model(random_config(family, seed), seed)
    theirs.save_pretrained(tmp_path / "m", max_shard_size="20KB" if seed % 2 else "1GB")
    config, params = hf.load(tmp_path / "m")
    assert config.model_type == family
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, config.vocab_size, (3, 40)).astype(np.int32)
    with torch.no_grad():
        want = theirs(torch.tensor(tokens).long()).logits.numpy()
    assert np.abs(want).max() > 0.5

    got = jax.jit(functools.partial(llama.forward, config=config))(params, tokens=tokens)
    np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=0)

    # Ragged prompts in a padded prefill, then cached steps, every sequence from its own end.
    lengths, steps = np.asarray([5, 1, 12]), 10
    attention = ("products", "xla")[seed % 2]
    prompt, stepped = step_by_step(attention, params, config, tokens, lengths, steps, 12)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(prompt[row, :length], want[row, :length], atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(stepped[row], want[row, length : length + steps], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_byte_equal(tmp_path, family, dtype):
    from safetensors import safe_open

    model = transformers_model(random_config(family, 7), 7).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "theirs")
    config, params = hf.load(tmp_path / "theirs")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}
    hf.save(tmp_path / "ours", config, params, max_shard_bytes=20_000)

    def tensors(folder):
        found = {}
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as content:
                found |= {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        return found

    theirs, ours = tensors(tmp_path / "theirs"), tensors(tmp_path / "ours")
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert tensor.dtype == ours[name].dtype
        assert tensor.shape == ours[name].shape
        assert tensor.view(torch.uint8).equal(ours[name].view(torch.uint8)), name

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(again) is type(model)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert again(tokens).logits.equal(model(tokens).logits)


def test_what_is_not_computed_with_is_written_again():
    raw = random_config("qwen3", 0) | {
        "max_window_layers": 5,
        "attention_dropout": 0.25,
        "rope_parameters": {"rope_theta": 7.0},
    }
    written = LlamaConfig.from_hf(raw).to_hf()
    assert (written["max_window_layers"], written["attention_dropout"]) == (5, 0.25)
    assert written["rope_theta"] == 7.0
    assert "rope_parameters" not in written
    assert LlamaConfig.from_hf(written) == LlamaConfig.from_hf(raw)


@pytest.mark.exhaustive
def test_texts_beyond_the_window_are_refused():
    config = LlamaConfig.from_hf(random_config("mistral", 0) | {"sliding_window": 8})
    assert config.context_length == 8
    params = llama.init_params(config, jax.random.key(0))
    llama.hidden_states(params, config, jnp.zeros((1, 8), jnp.int32))
    with pytest.raises(InputError, match="sliding_window = 8 tokens, got 9"):
        llama.hidden_states(params, config, jnp.zeros((1, 9), jnp.int32))
    assert LlamaConfig.from_hf({**random_config("mistral", 1), "sliding_window": None}).context_length == 64


def test_defaults_of_a_config_are_those_of_transformers():
    from transformers import AutoConfig

    for family in FAMILIES:
        full = AutoConfig.for_model(family, vocab_size=100, hidden_size=256, intermediate_size=64, num_attention_heads=32)
        short = {"vocab_size": 100, "hidden_size": 256, "intermediate_size": 64, "num_attention_heads": 32}
        short |= {"model_type": family, "num_hidden_layers": full.num_hidden_layers}
        ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        assert LlamaConfig.from_hf(short) == LlamaConfig.from_hf(full.to_dict()).replace(**ids), family
