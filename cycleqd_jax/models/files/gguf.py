"""GGUF files of llama.cpp as Hugging Face's config, tensors and tokenizer.

Only the header of a file is read at first; tensors are memory-mapped and dequantised row by row on request. Names differ from
Hugging Face's. So does the order of the rows of q and k in the llama architecture: llama.cpp's RoPE rotates neighbouring
elements, Hugging Face's rotates the two halves of a head.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from cycleqd_jax.models.files.gguf_file import Header, corrupt, read_header
from cycleqd_jax.models.files.gguf_tokenizer import gguf_tokenizer
from cycleqd_jax.models.files.safetensors import DTYPES
from cycleqd_jax.types import InputError

__all__ = ["GgufTensor", "gguf_tokenizer", "read_gguf"]

_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_MORE_LAYER_NAMES = {
    "llama": {},
    "qwen2": {f"attn_{x}.bias": f"self_attn.{x}_proj.bias" for x in "qkv"},
    "qwen3": {f"attn_{x}_norm.weight": f"self_attn.{x}_norm.weight" for x in "qk"},
}
_HEAD, _ROPE_FACTORS = "output.weight", "rope_freqs.weight"
_F32, _F16, _BF16 = 0, 1, 30
_PLAIN = {_F32: "F32", _F16: "F16", _BF16: "BF16"}


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file, which :meth:`read` reads.

    Attributes:
        file: the path of the file.
        dtype: the dtype that :meth:`read` returns, by safetensors' names: F32, F16 and BF16 as stored, F32 for quantised types.
        shape: the shape in Hugging Face's layout, ``[out, in]`` for matrices.
        stored: the stored type, by ggml's names, such as ``Q4_1``.
        offset: the position of its first byte in the file.
        row_bytes: bytes of a row of the last dimension.
        heads: the number of heads whose two halves are interleaved in the file; 0 for other tensors.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    stored: str
    offset: int
    row_bytes: int
    heads: int = 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of the first dimension, in Hugging Face's order; no other row of a matrix is read."""
        if stop <= start:
            return np.empty((0, *self.shape[1:]), DTYPES[self.dtype])
        rows = self.shape[0] if len(self.shape) > 1 else 1
        blocks = np.memmap(self.file, np.uint8, "r", self.offset, (rows, self.row_bytes))
        if len(self.shape) == 1:
            return self._decode(np.array(blocks))[0, start:stop]
        if self.heads:
            # Row (head, half, i) of Hugging Face is row (head, i, half) of llama.cpp.
            row = np.arange(start, stop)
            size = rows // self.heads
            head, half, i = row // size, row % size // (size // 2), row % (size // 2)
            return self._decode(blocks[head * size + 2 * i + half])
        return self._decode(np.array(blocks[start:stop]))

    def _decode(self, blocks: np.ndarray) -> np.ndarray:
        if self.stored == self.dtype:
            return blocks.view(DTYPES[self.dtype])
        gguf = _gguf()
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks for NaN and infinity
            return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[self.stored])


def read_gguf(path: str | Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """Reads the header of a GGUF file.

    Args:
        path: a file of the llama (Llama, Mistral, SmolLM2, …), qwen2 or qwen3 architecture, in any type that the gguf package
            can dequantise.

    Returns:
        The contents of a Hugging Face ``config.json`` for the model, and its tensors by Hugging Face's names. ``torch_dtype``
        is the type of the matrices if all have the same unquantised type, else float32.

    Raises:
        InputError: the gguf package is not installed; the file is corrupt or one of several parts; its architecture, the type
            of a tensor or an option of the model is not supported; or a key or tensor is missing, unknown, or of another shape.
    """
    gguf = _gguf()
    header = read_header(Path(path))
    if header.metadata.get("split.count", 1) != 1:
        raise InputError(
            f"expected a whole model, got one of {header.metadata['split.count']} parts in {header.path}; join them with "
            "llama.cpp's llama-gguf-split --merge"
        )
    architecture = header.get("general.architecture", str)
    if architecture not in _MORE_LAYER_NAMES:
        raise InputError(
            f"expected one of {', '.join(_MORE_LAYER_NAMES)} for general.architecture in {header.path}, got {architecture!r}; "
            "choose a model of a supported architecture"
        )
    layers = header.get(f"{architecture}.block_count", int)
    if not 0 < layers <= len(header.tensors):
        raise corrupt(header.path, f"{len(header.tensors)} tensors for {layers} layers")
    names = {f"blk.{i}.{ours}": f"model.layers.{i}.{theirs}" for i in range(layers) for ours, theirs in _LAYER_NAMES.items()}
    names |= {
        f"blk.{i}.{ours}": f"model.layers.{i}.{theirs}"
        for i in range(layers)
        for ours, theirs in _MORE_LAYER_NAMES[architecture].items()
    }
    names |= _TOP_NAMES
    missing = [name for name in names if name not in header.tensors and name != _HEAD]
    unknown = [name for name in header.tensors if name not in names and name != _ROPE_FACTORS]
    if missing or unknown:
        what = f"no tensor {missing[0]}" if missing else f"an unknown tensor {unknown[0]}"
        raise InputError(
            f"expected the tensors of a plain {architecture} model with {layers} layers in {header.path}, got {what} "
            f"(tensors that do not match: {len(missing) + len(unknown)}); use a dense checkpoint, converted by llama.cpp"
        )
    config = _config(header, architecture, layers)
    heads = {}
    if architecture == "llama":
        heads = {"attn_q.weight": config["num_attention_heads"], "attn_k.weight": config["num_key_value_heads"]}
    tensors: dict[str, GgufTensor] = {}
    for ours, theirs in names.items():
        if ours in header.tensors:
            permuted = heads.get(ours.split(".", 2)[-1], 0)
            tensors[theirs] = _tensor(gguf, header, ours, permuted, config["head_dim"])
    matrices = {tensor.stored for tensor in tensors.values() if len(tensor.shape) == 2}
    plain = {"F16": "float16", "BF16": "bfloat16"}
    config["torch_dtype"] = plain.get(next(iter(matrices)), "float32") if len(matrices) == 1 else "float32"
    return config, tensors


def _gguf() -> Any:
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise InputError(
            "expected the gguf package for files of llama.cpp, got none; run pip install 'cycleqd_jax[gguf]'"
        ) from error
    return gguf


def _tensor(gguf: Any, header: Header, ours: str, heads: int, head_dim: int) -> GgufTensor:
    entry = header.tensors[ours]
    rank = 1 if "norm." in ours or ours.endswith(".bias") else 2
    if len(entry.shape) != rank or 0 in entry.shape or (heads and entry.shape[0] != heads * head_dim):
        expected = f"{heads * head_dim} rows ({heads} heads of {head_dim})" if heads else f"{rank} nonzero dimensions"
        raise InputError(
            f"expected {expected} for the tensor {ours} in {header.path}, got shape {list(entry.shape)}; convert it again"
        )
    try:
        kind = gguf.GGMLQuantizationType(entry.kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if entry.kind not in _PLAIN:
            gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise InputError(
            f"expected a type that the gguf package can dequantise for the tensor {ours} in {header.path}, got ggml type "
            f"{entry.kind} ({error}); use another quantisation or a newer gguf package"
        ) from error
    if entry.shape[-1] % block:
        raise corrupt(header.path, f"{entry.shape[-1]} columns in blocks of {block} for the tensor {ours}")
    row_bytes = entry.shape[-1] // block * block_bytes
    end = entry.offset + row_bytes * math.prod(entry.shape[:-1])
    if end > header.size:
        raise corrupt(header.path, f"{header.size} bytes where the tensor {ours} ends at {end}")
    dtype = _PLAIN.get(entry.kind, "F32")
    return GgufTensor(header.path, dtype, entry.shape, kind.name, entry.offset, row_bytes, heads)


# --------------------------------------------------------------------------------------------------------------------
# Config


def _config(header: Header, architecture: str, layers: int) -> dict[str, Any]:
    def get(key: str, kind: type, default: object = ...) -> Any:
        return header.get(f"{architecture}.{key}", kind, default)

    def refuse(key: str, expected: str) -> InputError:
        return InputError(
            f"expected {expected} for {architecture}.{key} in {header.path}, got {get(key, object)!r}; choose "
            "a model without this option"
        )

    heads, hidden = get("attention.head_count", int), get("embedding_length", int)
    if heads < 1:
        raise refuse("attention.head_count", "a positive number")
    head_dim = get("attention.key_length", int, get("rope.dimension_count", int, hidden // heads))
    for key in ("rope.dimension_count", "attention.value_length"):
        if get(key, int, head_dim) != head_dim:
            raise refuse(key, f"the head size {head_dim}")
    if get("rope.scaling.type", str, "none") != "none":
        raise refuse("rope.scaling.type", "'none' (Llama 3's is stored as the tensor rope_freqs.weight)")
    if get("expert_count", int, 0) != 0:
        raise refuse("expert_count", "0")
    theta = _decimal(get("rope.freq_base", float, 10000.0))
    if not 0 < theta < math.inf:
        raise refuse("rope.freq_base", "a positive number")
    config: dict[str, Any] = {
        "architectures": [{"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[architecture] + "ForCausalLM"],
        "model_type": architecture,
        "hidden_act": "silu",
        "attention_bias": False,
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": get("feed_forward_length", int),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        "max_position_embeddings": get("context_length", int),
        "rms_norm_eps": _decimal(get("attention.layer_norm_rms_epsilon", float)),
        "rope_theta": theta,
        "tie_word_embeddings": _HEAD not in header.tensors,
    }
    if architecture == "llama":
        config["mlp_bias"] = False
    else:
        config["use_sliding_window"] = False
    if _ROPE_FACTORS in header.tensors:
        config["rope_scaling"] = _rope_scaling(header, theta, head_dim)
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = header.get(f"tokenizer.ggml.{key}_token_id", int, None)
        if token is not None:
            config[f"{name}_token_id"] = token
    return config


def _decimal(value: float) -> float:
    """The shortest decimal of a stored float32: 1e-05 instead of 9.999999747378752e-06."""
    with np.errstate(all="ignore"):
        return float(str(np.float32(value)))


def _rope_scaling(header: Header, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3.1's RoPE scaling, from the factors by which llama.cpp divides the frequencies.

    The factors determine the three lengths of the scaling up to a common scale; all published models have the same lengths.
    """
    entry = header.tensors[_ROPE_FACTORS]
    refused = InputError(
        f"expected the factors of Llama 3's RoPE scaling (1 to 4 turns over 8192 positions) in the tensor {_ROPE_FACTORS} of "
        f"{header.path}, got others; convert the model from its original checkpoint"
    )
    if entry.kind != _F32 or entry.shape != (head_dim // 2,) or entry.offset + 2 * head_dim > header.size:
        raise refused
    stored = np.array(np.memmap(header.path, "<f4", "r", entry.offset, entry.shape), np.float64)
    low, high, length, factor = 1.0, 4.0, 8192, float(stored.max())
    turns = length * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    if not factor > 1 or not np.allclose(1 / (smooth + (1 - smooth) / factor), stored, rtol=1e-5, atol=0):
        raise refused
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }
