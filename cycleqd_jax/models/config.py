"""What a model is: Llama and the relatives that differ from it by a few switches, read from Hugging Face's ``config.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from cycleqd_jax.types import InputError

__all__ = ["DTYPES", "FAMILIES", "Llama3RopeScaling", "LlamaConfig"]

DTYPES = ("float32", "bfloat16", "float16")
"""The dtypes that weights may have."""


class _Family(NamedTuple):
    architecture: str
    context: int  # max_position_embeddings where config.json has none; likewise the next ones
    kv_heads: int | None  # None: as many as heads
    head_dim: int | None  # None: hidden_size / heads
    window: int | None
    bias: str | None = None  # the key that switches biases of q, k, v and o on; None: q, k and v have them always or never
    qkv_bias: bool = False
    mlp_bias: bool = False  # whether there is a switch for it
    qk_norm: bool = False


FAMILIES: Mapping[str, _Family] = {
    "llama": _Family("LlamaForCausalLM", 2048, None, None, None, bias="attention_bias", mlp_bias=True),
    "mistral": _Family("MistralForCausalLM", 131072, 8, None, 4096),
    "qwen2": _Family("Qwen2ForCausalLM", 32768, 32, None, None, qkv_bias=True),
    "qwen3": _Family("Qwen3ForCausalLM", 32768, 32, 128, None, bias="attention_bias", qk_norm=True),
}
"""What sets the supported ``model_type`` apart, with transformers' defaults."""


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """Llama 3.1's stretching of the low RoPE frequencies; the fields are Hugging Face's."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The shape of a model and its dtype policy; fields are named as in Hugging Face's ``config.json``.

    Attributes:
        model_type: one of :data:`FAMILIES`.
        attention_bias: q, k and v have a bias (Qwen2 always, Llama and Qwen3 where the config says so).
        attention_out_bias: so has o (Llama and Qwen3, with the others).
        mlp_bias: so have gate, up and down (Llama, where the config says so).
        qk_norm: q and k of every head are normed before RoPE (Qwen3).
        sliding_window: tokens a layer sees (Mistral 7B v0.1). Up to as many tokens it makes no difference; longer texts are
            refused.
        dtype: of the weights: float32, bfloat16 or float16.
        compute_dtype: of activations and matrix products; ``None`` is that of the weights. Norms, softmax and logits are
            float32 always.
        source: the JSON this was read from, for what is not computed with but must be written again.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: Llama3RopeScaling | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    dtype: str = "float32"
    compute_dtype: str | None = None
    model_type: str = "llama"
    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    source: str | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self)[:8]:
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"expected a positive integer for the model's {field.name}, got {value!r}: correct the config")
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
                raise InputError(f"expected a positive number for the model's {name}, got {value!r}: correct the config")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"expected num_attention_heads to be a multiple of num_key_value_heads, got {self.num_attention_heads} and "
                f"{self.num_key_value_heads}: correct the model's config"
            )
        if self.head_dim % 2:
            raise InputError(f"expected an even head_dim (RoPE turns pairs), got {self.head_dim}: correct the model's config")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise InputError(f"expected a positive sliding_window, got {self.sliding_window}: correct the model's config")
        for name, known in (("dtype", DTYPES), ("compute_dtype", (*DTYPES, None)), ("model_type", tuple(FAMILIES))):
            value = getattr(self, name)
            if value not in known:
                raise InputError(
                    f"expected one of {', '.join(filter(None, known))} for the model's {name}, got {value!r}: choose one"
                )

    @property
    def context_length(self) -> int:
        """Most tokens of one text: the model's positions, or its sliding window where that is shorter."""
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str = "config.json") -> LlamaConfig:
        """Reads the contents of a Hugging Face ``config.json``.

        Args:
            config: the parsed JSON, in the layout of transformers 4 or 5.
            where: the file, for messages.

        Raises:
            InputError: the model type, or an option that changes the computation, is not supported; or a field is missing.
        """

        def refuse(name: str, expected: str, value: Any) -> InputError:
            return InputError(
                f"expected {expected} for {name!r} in {where}, got {value!r}: this model can't be computed here, choose a "
                "plain checkpoint of a supported family"
            )

        kind = config.get("model_type")
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise refuse("model_type", f"one of {', '.join(FAMILIES)}", kind)
        family = FAMILIES[kind]
        if config.get("quantization_config"):
            raise refuse("quantization_config", "nothing", config["quantization_config"])
        if config.get("hidden_act", "silu") not in ("silu", "swish"):
            raise refuse("hidden_act", "'silu'", config["hidden_act"])
        required = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        for name in required:
            if config.get(name) is None:
                raise InputError(f"expected {name!r} in {where}, got none: the model's config is incomplete, restore it")

        def given(name: str, default: Any) -> Any:
            value = config.get(name)
            return default if value is None else value

        rope_key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
        rope = config.get(rope_key) or {}
        if not isinstance(rope, Mapping):
            raise refuse(rope_key, "an object", rope)
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type not in ("default", "llama3"):
            raise refuse(rope_key, "rope_type 'default' or 'llama3'", rope)
        for name, values in (("partial_rotary_factor", config), (rope_key, rope)):
            if values.get("partial_rotary_factor", 1.0) != 1.0:
                raise refuse(name, "a partial_rotary_factor of 1.0", values["partial_rotary_factor"])
        scaling = None
        if rope_type == "llama3":
            fields = [field.name for field in dataclasses.fields(Llama3RopeScaling)]
            missing = [name for name in fields if name not in rope]
            if missing:
                raise refuse(rope_key, f"all of {', '.join(fields)}", rope)
            scaling = Llama3RopeScaling(**{name: rope[name] for name in fields})

        window = config.get("sliding_window", family.window)
        if kind.startswith("qwen") and not config.get("use_sliding_window", False):
            window = None  # there, but not used
        layers = set(config.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
        if layers:
            raise refuse("layer_types", "full_attention or sliding_attention", sorted(layers)[0])

        heads = config["num_attention_heads"]
        bias = bool(family.bias and config.get(family.bias))
        eos = config.get("eos_token_id")
        return cls(
            **{name: config[name] for name in required},
            model_type=kind,
            num_key_value_heads=given("num_key_value_heads", family.kv_heads or heads),
            head_dim=given("head_dim", family.head_dim or config["hidden_size"] // heads),
            max_position_embeddings=given("max_position_embeddings", family.context),
            rms_norm_eps=given("rms_norm_eps", 1e-6),
            rope_theta=float(rope.get("rope_theta", given("rope_theta", 10000.0))),
            rope_scaling=scaling,
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            initializer_range=given("initializer_range", 0.02),
            bos_token_id=config.get("bos_token_id"),
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
            pad_token_id=config.get("pad_token_id"),
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch."),
            attention_bias=family.qkv_bias or bias,
            attention_out_bias=bias,
            mlp_bias=family.mlp_bias and bool(config.get("mlp_bias")),
            qk_norm=family.qk_norm,
            sliding_window=window,
            source=json.dumps(config),
        )

    def to_hf(self) -> dict[str, Any]:
        """The ``config.json`` that transformers 4 and 5 (and what builds on them) read as this model.

        What :meth:`from_hf` read and does not compute with is written again as it was.
        """
        family = FAMILIES[self.model_type]
        fields = dataclasses.asdict(self)
        for name in (
            "source",
            "compute_dtype",
            "attention_bias",
            "attention_out_bias",
            "mlp_bias",
            "qk_norm",
            "sliding_window",
        ):
            fields.pop(name)
        dtype = fields.pop("dtype")
        if isinstance(self.eos_token_id, tuple):
            fields["eos_token_id"] = list(self.eos_token_id)
        if self.rope_scaling is not None:
            fields["rope_scaling"] = {"rope_type": "llama3", **fields["rope_scaling"]}
        if family.bias:
            fields[family.bias] = self.attention_bias
        if family.mlp_bias:
            fields["mlp_bias"] = self.mlp_bias
        if self.model_type != "llama":
            fields["sliding_window"] = self.sliding_window
        if self.model_type.startswith("qwen"):
            fields["use_sliding_window"] = self.sliding_window is not None
        before = json.loads(self.source) if self.source else {}
        for name in ("rope_parameters", "dtype"):  # transformers 5's spelling, which 4 and vLLM don't know
            before.pop(name, None)
        return {"hidden_act": "silu", **before, "architectures": [family.architecture], **fields, "torch_dtype": dtype}

    def replace(self, **changes: Any) -> LlamaConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)
