"""GGUF files of random weights, by the gguf package's own writer."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

lib = pytest.importorskip("gguf", reason="the gguf package, which writes the test files, is not installed")
from gguf import quants  # noqa: E402

SIZES = {
    "vocab_size": 48,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 12345.5,
}
Q4_1, Q8_0 = lib.GGMLQuantizationType.Q4_1, lib.GGMLQuantizationType.Q8_0
F16, BF16, F32 = lib.GGMLQuantizationType.F16, lib.GGMLQuantizationType.BF16, lib.GGMLQuantizationType.F32
ARCHITECTURES = {"llama": lib.MODEL_ARCH.LLAMA, "qwen2": lib.MODEL_ARCH.QWEN2, "qwen3": lib.MODEL_ARCH.QWEN3}


def hf_tensors(model_type: str, tied: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under the names of transformers' modules."""
    s = SIZES
    q, kv = s["num_attention_heads"] * s["head_dim"], s["num_key_value_heads"] * s["head_dim"]
    shapes = {"model.embed_tokens.weight": (s["vocab_size"], s["hidden_size"]), "model.norm.weight": (s["hidden_size"],)}
    if not tied:
        shapes["lm_head.weight"] = (s["vocab_size"], s["hidden_size"])
    for i in range(s["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": (s["hidden_size"],),
            "post_attention_layernorm.weight": (s["hidden_size"],),
            "self_attn.q_proj.weight": (q, s["hidden_size"]),
            "self_attn.k_proj.weight": (kv, s["hidden_size"]),
            "self_attn.v_proj.weight": (kv, s["hidden_size"]),
            "self_attn.o_proj.weight": (s["hidden_size"], q),
            "mlp.gate_proj.weight": (s["intermediate_size"], s["hidden_size"]),
            "mlp.up_proj.weight": (s["intermediate_size"], s["hidden_size"]),
            "mlp.down_proj.weight": (s["hidden_size"], s["intermediate_size"]),
        }
        if model_type == "qwen2":
            layer |= {f"self_attn.{x}_proj.bias": (rows,) for x, rows in (("q", q), ("k", kv), ("v", kv))}
        if model_type == "qwen3":
            layer |= {f"self_attn.{x}_norm.weight": (s["head_dim"],) for x in "qk"}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k of the llama architecture."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def write(path: Path, tensors, model_type="llama", kind=F32, keys=(), drop=(), extra=None, rename=()) -> Path:
    """A GGUF file by the gguf package's own writer and table of names.

    ``keys`` are further metadata, ``drop`` and ``rename`` leave keys and tensors out or call them otherwise.
    """
    file = lib.GGUFWriter(path, model_type)
    values = {
        "context_length": SIZES["max_position_embeddings"],
        "embedding_length": SIZES["hidden_size"],
        "block_count": SIZES["num_hidden_layers"],
        "feed_forward_length": SIZES["intermediate_size"],
        "attention.head_count": SIZES["num_attention_heads"],
        "attention.head_count_kv": SIZES["num_key_value_heads"],
        "attention.key_length": SIZES["head_dim"],
    }
    for key, value in values.items():
        if key not in drop:
            file.add_uint32(f"{model_type}.{key}", value)
    file.add_float32(f"{model_type}.attention.layer_norm_rms_epsilon", SIZES["rms_norm_eps"])
    file.add_float32(f"{model_type}.rope.freq_base", SIZES["rope_theta"])
    for key, value in dict(keys).items():
        add = file.add_string if isinstance(value, str) else file.add_uint32
        add(key, value)
    names = lib.get_tensor_name_map(ARCHITECTURES.get(model_type, lib.MODEL_ARCH.LLAMA), SIZES["num_hidden_layers"])
    for name, array in tensors.items():
        heads = {"q": SIZES["num_attention_heads"], "k": SIZES["num_key_value_heads"]}.get(name.split("_proj")[0][-1])
        if model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            array = permute(array, heads)
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs in drop:
            continue
        stored = kind if array.ndim == 2 else F32
        file.add_tensor(dict(rename).get(theirs, theirs), quants.quantize(array, stored), raw_dtype=stored)
    for name, array in (extra or {}).items():
        file.add_tensor(name, array)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def llama3_factors(factor: float, low: float = 1, high: float = 4, length: int = 8192, head_dim: int = 32) -> np.ndarray:
    """What llama.cpp's converter writes to rope_freqs.weight, as it computes it."""
    factors = []
    for frequency in 1 / SIZES["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim):
        wavelength = 2 * math.pi / frequency
        if wavelength < length / high:
            factors.append(1)
        elif wavelength > length / low:
            factors.append(factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)
