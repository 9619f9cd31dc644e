"""The configuration of Llama and related families, read from and written as Hugging Face's ``config.json``."""

from __future__ import annotations

import dataclasses
import functools
import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cycleqd_jax.types import InputError

__all__ = ["DTYPES", "FAMILIES", "Llama3RopeScaling", "LlamaConfig"]

DTYPES = ("float32", "bfloat16", "float16")
"""The dtypes of weights that are supported."""


class _Family(NamedTuple):
    architecture: str
    # The first four are transformers' defaults, for keys that config.json leaves out.
    context: int  # max_position_embeddings
    kv_heads: int | None  # None: as many as heads
    head_dim: int | None  # None: hidden_size / heads
    window: int | None  # sliding_window; Llama ignores it, and Qwen unless use_sliding_window is on
    bias: str | None = None  # the key that switches on the biases of q, k, v and o, if there is one
    qkv_bias: bool = False  # q, k and v always have a bias
    mlp_bias: bool = False  # there is a key that switches on the biases of the MLP
    qk_norm: bool = False


FAMILIES: Mapping[str, _Family] = {
    "llama": _Family("LlamaForCausalLM", 2048, None, None, None, bias="attention_bias", mlp_bias=True),
    "mistral": _Family("MistralForCausalLM", 131072, 8, None, 4096),
    "qwen2": _Family("Qwen2ForCausalLM", 32768, 32, None, 4096, qkv_bias=True),
    "qwen3": _Family("Qwen3ForCausalLM", 32768, 32, 128, 4096, bias="attention_bias", qk_norm=True),
}
"""The supported values of ``model_type``: their differences and transformers' defaults."""

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_SIZES += ("num_key_value_heads", "head_dim", "max_position_embeddings")
_SWITCHES = ("tie_word_embeddings", "attention_bias", "attention_out_bias", "mlp_bias", "qk_norm")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """Llama 3.1's scaling of the low RoPE frequencies; fields are named as in Hugging Face's config."""

    factor: Any  # from JSON, which may hold anything: LlamaConfig checks that these are numbers
    low_freq_factor: Any
    high_freq_factor: Any
    original_max_position_embeddings: Any


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The shape of a model and its dtype policy; fields are named as in Hugging Face's ``config.json``.

    Attributes:
        model_type: one of :data:`FAMILIES`.
        attention_bias: whether q, k and v have a bias (Qwen2 always; Llama and Qwen3 where the config says so).
        attention_out_bias: whether o has a bias (Llama and Qwen3, where q, k and v have one).
        mlp_bias: whether gate, up and down have a bias (Llama, where the config says so).
        qk_norm: whether q and k of every head are normed before RoPE (Qwen3).
        sliding_window: the number of tokens that a layer attends to (Mistral 7B v0.1). It has no effect on shorter texts;
            longer ones are refused.
        bos_token_id: the id in the file. It is not used in any computation. This id and the next two may lie outside the
            vocabulary.
        dtype: the dtype of the weights: float32, bfloat16 or float16.
        compute_dtype: the dtype of activations; ``None`` is the dtype of the weights. Norms, softmax and logits are always
            float32. The operands of matrix products have this dtype, or bfloat16 where the weights are bfloat16; sums are
            float32.
        source: the JSON this was read from. :meth:`to_hf` writes its other entries again.
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
        _check(vars(self), "the model's config")

    @property
    def context_length(self) -> int:
        """The most tokens of one text: the model's positions, or its sliding window if that is shorter."""
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str = "config.json") -> LlamaConfig:
        """Reads the contents of a Hugging Face ``config.json``.

        Args:
            config: the parsed JSON, in the layout of transformers 4 or 5.
            where: the name of the file in messages.

        Raises:
            InputError: the model type, or an option that changes the computation, is not supported; or a field is missing or
                has an invalid value.
        """
        advice = "choose a plain checkpoint of a supported family"
        refuse = functools.partial(_refusal, where=where, advice=advice)

        def given(name: str, default: Any) -> Any:
            value = config.get(name)
            return default if value is None else value

        kind = config.get("model_type")
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise refuse("model_type", f"one of {', '.join(FAMILIES)}", kind)
        family = FAMILIES[kind]
        if config.get("quantization_config"):
            raise refuse("quantization_config", "nothing", config["quantization_config"])
        if config.get("hidden_act", "silu") not in ("silu", "swish"):
            raise refuse("hidden_act", "'silu'", config["hidden_act"])
        required = _SIZES[:5]
        for name in required:
            if config.get(name) is None:
                raise InputError(f"expected {name!r} in {where}, got none; restore the model's config")
            _check_size(name, config[name], where)
        for name in ("tie_word_embeddings", "use_sliding_window", "attention_bias", "mlp_bias"):
            _check_switch(name, given(name, False), where)

        theta, scaling = _read_rope(config, family.context, where, refuse)
        layers = given("layer_types", [])
        if not isinstance(layers, list):
            raise _refusal("layer_types", "a list", layers, where)
        for layer in layers:
            if layer not in ("full_attention", "sliding_attention"):
                raise refuse("layer_types", "full_attention or sliding_attention", layer)
        window = config.get("sliding_window", family.window)
        if kind == "llama" or (kind.startswith("qwen") and not _slides(config, layers, where)):
            window = None  # present, but not used

        heads = config["num_attention_heads"]
        bias = bool(family.bias and config.get(family.bias))
        eos = config.get("eos_token_id")
        try:
            source = json.dumps(config)
        except RecursionError as error:
            raise InputError(
                f"expected a plain model config in {where}, got JSON that is nested too deeply; restore it"
            ) from error
        fields = {
            **{name: config[name] for name in required},
            "model_type": kind,
            # an explicit null means the number of heads, as in transformers
            "num_key_value_heads": given("num_key_value_heads", heads)
            if "num_key_value_heads" in config
            else family.kv_heads or heads,
            "head_dim": given("head_dim", family.head_dim or config["hidden_size"] // heads),
            "max_position_embeddings": given("max_position_embeddings", family.context),
            "rms_norm_eps": given("rms_norm_eps", 1e-6),
            "rope_theta": theta,
            "rope_scaling": scaling,
            "tie_word_embeddings": given("tie_word_embeddings", False),
            "initializer_range": given("initializer_range", 0.02),
            "bos_token_id": config.get("bos_token_id"),
            "eos_token_id": tuple(eos) if isinstance(eos, list) else eos,
            "pad_token_id": config.get("pad_token_id"),
            "dtype": str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch."),
            "compute_dtype": None,
            "attention_bias": family.qkv_bias or bias,
            "attention_out_bias": bias,
            "mlp_bias": family.mlp_bias and given("mlp_bias", False),
            "qk_norm": family.qk_norm,
            "sliding_window": window,
        }
        _check(fields, where)
        return cls(**fields, source=source)

    def to_hf(self) -> dict[str, Any]:
        """The contents of ``config.json`` for transformers 4 and 5 and the tools built on them.

        Entries that :meth:`from_hf` read but did not interpret are written again unchanged. Bos, eos and pad ids outside the
        vocabulary, which may have been cut since, become null, because transformers refuses to build such a model.
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
        for name in _TOKENS:
            value = getattr(self, name)
            kept = [i for i in (value if isinstance(value, tuple) else (value,)) if i is not None and 0 <= i < self.vocab_size]
            fields[name] = (kept if isinstance(value, tuple) else kept[0]) if kept else None
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
        for name in ("rope_parameters", "dtype"):  # transformers 5's keys, unknown to transformers 4 and vLLM
            before.pop(name, None)
        return {"hidden_act": "silu", **before, "architectures": [family.architecture], **fields, "torch_dtype": dtype}

    def replace(self, **changes: Any) -> LlamaConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


# --------------------------------------------------------------------------------------------------------------------
# Reading and checking


def _slides(config: Mapping[str, Any], layers: Sequence[str], where: str) -> bool:
    """Whether any layer of a Qwen model has a window; without ``layer_types``, those from ``max_window_layers`` on have one."""
    first = 28 if config.get("max_window_layers") is None else config["max_window_layers"]
    if not isinstance(first, int):
        raise _refusal("max_window_layers", "an integer", first, where)
    slides = "sliding_attention" in layers if layers else first < config["num_hidden_layers"]
    return bool(config.get("use_sliding_window")) and slides


def _read_rope(
    config: Mapping[str, Any], context: int, where: str, refuse: Callable[[str, str, Any], InputError]
) -> tuple[float, Llama3RopeScaling | None]:
    """The base of the RoPE frequencies and their scaling, in the layout of transformers 4 or 5.

    ``context`` is the default of ``max_position_embeddings``.
    """
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"  # transformers' precedence
    rope = config.get(key) or {}
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        raise refuse(key, "one object for all layers", rope)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise refuse(key, "rope_type 'default' or 'llama3'", rope)
    for name, values in (("partial_rotary_factor", config), (key, rope)):
        if values.get("partial_rotary_factor") not in (None, 1.0):
            raise refuse(name, "a partial_rotary_factor of 1.0", values["partial_rotary_factor"])
    theta = next((value for value in (rope.get("rope_theta"), config.get("rope_theta")) if value is not None), 10000.0)
    _check_number("rope_theta", theta, where)
    if kind == "default":
        return float(theta), None
    fields = [field.name for field in dataclasses.fields(Llama3RopeScaling)]
    # transformers' default
    positions = context if config.get("max_position_embeddings") is None else config["max_position_embeddings"]
    rope = {"original_max_position_embeddings": positions, **rope}
    if any(name not in rope for name in fields):
        raise refuse(key, f"all of {', '.join(fields)}", rope)
    scaling = Llama3RopeScaling(**{name: rope[name] for name in fields})
    _check_scaling(key, scaling, where)
    return float(theta), scaling


def _check(fields: Mapping[str, Any], where: str) -> None:
    """Raises for values that a :class:`LlamaConfig` must not have."""
    for name in _SIZES:
        _check_size(name, fields[name], where)
    for name in ("rms_norm_eps", "rope_theta"):
        _check_number(name, fields[name], where)
    _check_number("initializer_range", fields["initializer_range"], where, zero=True)
    for name in _SWITCHES:
        _check_switch(name, fields[name], where)
    heads, kv_heads = fields["num_attention_heads"], fields["num_key_value_heads"]
    if heads % kv_heads:
        raise InputError(
            f"expected num_attention_heads to be a multiple of num_key_value_heads in {where}, got {heads} and {kv_heads}; "
            "correct the config"
        )
    if fields["head_dim"] % 2:
        raise _refusal("head_dim", "an even head_dim (RoPE rotates pairs)", fields["head_dim"], where)
    if fields["sliding_window"] is not None:
        _check_size("sliding_window", fields["sliding_window"], where)
    if fields["rope_scaling"] is not None:
        _check_scaling("rope_scaling", fields["rope_scaling"], where)
    for name in _TOKENS:
        value = fields[name]
        many = name == "eos_token_id" and isinstance(value, tuple)
        if value is not None and not all(isinstance(i, int) and not isinstance(i, bool) for i in (value if many else (value,))):
            expected = "the id of a token or a list of ids" if name == "eos_token_id" else "the id of a token"
            raise _refusal(name, expected, list(value) if many else value, where)
    for name, known in (("dtype", DTYPES), ("compute_dtype", (*DTYPES, None)), ("model_type", tuple(FAMILIES))):
        if fields[name] not in known:
            raise _refusal(name, f"one of {', '.join(filter(None, known))}", fields[name], where)


def _check_size(name: str, value: Any, where: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
        raise _refusal(name, "a positive integer", value, where)


def _check_number(name: str, value: Any, where: str, zero: bool = False) -> None:
    # abs: larger integers overflow a float
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    if not number or not (value >= 0 if zero else value > 0):
        raise _refusal(name, "a nonnegative number" if zero else "a positive number", value, where)


def _check_switch(name: str, value: Any, where: str) -> None:
    if not isinstance(value, bool):
        raise _refusal(name, "true or false", value, where)


def _check_scaling(key: str, scaling: Llama3RopeScaling, where: str) -> None:
    for name in ("factor", "low_freq_factor", "high_freq_factor"):
        _check_number(f"{key}.{name}", getattr(scaling, name), where)
    _check_size(f"{key}.original_max_position_embeddings", scaling.original_max_position_embeddings, where)
    if not scaling.low_freq_factor < scaling.high_freq_factor:
        expected = f"a value above the low_freq_factor {scaling.low_freq_factor!r}"
        raise _refusal(f"{key}.high_freq_factor", expected, scaling.high_freq_factor, where)


def _refusal(name: str, expected: str, value: Any, where: str, advice: str = "correct the config") -> InputError:
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = shown.maxlong = 100
    shown.maxdict = 10
    return InputError(f"expected {expected} for {name!r} in {where}, got {shown.repr(value)}; {advice}")
