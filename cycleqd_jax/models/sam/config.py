"""The configuration of Segment Anything, read from and written as Hugging Face's ``config.json`` of ``SamModel``."""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from cycleqd_jax.models.llama.config import DTYPES
from cycleqd_jax.types import InputError

__all__ = ["MODEL_TYPES", "DecoderConfig", "PromptConfig", "SamConfig", "TinyVitConfig", "VitConfig"]


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """The ViT image encoder; fields are named as in ``vision_config``, with transformers' defaults (ViT-B).

    Attributes:
        hidden_size: channels of the transformer.
        output_channels: channels of the image embedding.
        num_channels: channels of the image.
        image_size: pixels of a side of the square input.
        patch_size: pixels of a side of a patch.
        qkv_bias: whether q, k and v have a bias.
        mlp_dim: hidden units of the MLP; ``mlp_ratio`` times ``hidden_size`` where the file has none.
        use_abs_pos: whether a learned position is added to every patch.
        use_rel_pos: whether attention adds learned positions relative to the query.
        window_size: patches of a side of an attention window.
        global_attn_indexes: the layers that attend to the whole image.
        num_pos_feats: frequencies of the position encoding that prompts and image share.
        initializer_range: standard deviation of random weights.
    """

    TYPE: ClassVar[str] = "sam_vision_model"

    hidden_size: int = 768
    output_channels: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 1024
    patch_size: int = 16
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    mlp_dim: int = 3072
    use_abs_pos: bool = True
    use_rel_pos: bool = True
    window_size: int = 14
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11)
    num_pos_feats: int = 128
    initializer_range: float = 0.02

    @property
    def grid(self) -> int:
        """Patches of a side of the image embedding."""
        return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True)
class TinyVitConfig:
    """MobileSAM's image encoder, a TinyViT; the defaults are those of the published model (TinyViT-5M).

    Transformers has no such encoder, so the names are those of the published code.

    Attributes:
        embed_dims: channels of every stage. The first stage has convolutions, the others windowed attention.
        depths: blocks of every stage.
        num_heads: heads of every stage; the first entry is not used.
        window_sizes: positions of a side of an attention window of every stage; the first entry is not used.
        strides: strides of the convolutions between the stages.
        mlp_ratio: hidden units of an MLP as a multiple of the stage's channels.
        mbconv_expand_ratio: hidden channels of the first stage's blocks as a multiple of its channels.
        image_size: pixels of a side of the square input.
        output_channels: channels of the image embedding.
        num_channels: channels of the image.
        num_pos_feats: frequencies of the position encoding that prompts and image share.
        initializer_range: standard deviation of random weights.
    """

    TYPE: ClassVar[str] = "mobile_sam_vision_model"

    embed_dims: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (2, 4, 5, 10)
    window_sizes: tuple[int, ...] = (7, 7, 14, 7)
    strides: tuple[int, ...] = (2, 2, 1)
    mlp_ratio: float = 4.0
    mbconv_expand_ratio: float = 4.0
    image_size: int = 1024
    output_channels: int = 256
    num_channels: int = 3
    num_pos_feats: int = 128
    initializer_range: float = 0.02

    @property
    def grid(self) -> int:
        """Positions of a side of the image embedding."""
        side = -(-self.image_size // 4)
        for stride in self.strides:  # as convolutions with these strides round
            side = -(-side // stride)
        return side


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """The prompt encoder; fields are named as in ``prompt_encoder_config``.

    Attributes:
        hidden_size: channels of the embeddings.
        image_size: pixels of a side of the square input.
        patch_size: ``image_size`` divided by it is the side of the image embedding.
        mask_input_channels: channels before the last convolution of a mask prompt.
        num_point_embeddings: kinds of points: background, foreground, and a box's two corners.
    """

    hidden_size: int = 256
    image_size: int = 1024
    patch_size: int = 16
    mask_input_channels: int = 16
    num_point_embeddings: int = 4
    layer_norm_eps: float = 1e-6


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The mask decoder; fields are named as in ``mask_decoder_config``.

    Attributes:
        hidden_size: channels of the tokens and of the image embedding.
        mlp_dim: hidden units of the transformer's MLPs.
        attention_downsample_rate: ``hidden_size`` divided by it is the width of the last attention from tokens to image. In the
            layers before, attention between tokens and image has half of ``hidden_size``, as in transformers.
        num_multimask_outputs: masks of an ambiguous prompt; one more token makes the single mask.
        iou_head_depth: linear layers of the head that predicts each mask's intersection over union.
        iou_head_hidden_dim: hidden units of that head.
        layer_norm_eps: of the transformer's layers. Transformers' default is 1e-6, but Meta's code has 1e-5; a config that
            leaves the entry out has transformers' value.
    """

    hidden_size: int = 256
    mlp_dim: int = 2048
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    layer_norm_eps: float = 1e-6


MODEL_TYPES: Mapping[str, tuple[str, type[VitConfig] | type[TinyVitConfig]]] = {
    "sam": ("SamModel", VitConfig),
    "mobile_sam": ("MobileSamModel", TinyVitConfig),
}
"""The supported values of ``model_type``: the architecture's name and the config of its image encoder."""

_Part = TypeVar("_Part", bound=VitConfig | TinyVitConfig | PromptConfig | DecoderConfig)

_ACTS = {"vision_config": "gelu", "prompt_encoder_config": "gelu", "mask_decoder_config": "relu"}
_ZERO = ("initializer_range", "global_attn_indexes")  # may be 0
_EMPTY = ("global_attn_indexes",)


@dataclasses.dataclass(frozen=True)
class SamConfig:
    """A Segment Anything model.

    Attributes:
        vision: the image encoder.
        prompt: the prompt encoder.
        decoder: the mask decoder.
        dtype: the dtype of the weights: float32, bfloat16 or float16. Norms and softmax are float32.
        source: the JSON this was read from. :meth:`to_hf` writes its other entries again.
    """

    vision: VitConfig | TinyVitConfig = VitConfig()
    prompt: PromptConfig = PromptConfig()
    decoder: DecoderConfig = DecoderConfig()
    dtype: str = "float32"
    source: str | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_parts(self.vision, self.prompt, self.decoder, "the model's config")
        if self.dtype not in DTYPES:
            raise _refusal("dtype", f"one of {', '.join(DTYPES)}", self.dtype, "the model's config")

    @property
    def model_type(self) -> str:
        """One of :data:`MODEL_TYPES`."""
        return "sam" if isinstance(self.vision, VitConfig) else "mobile_sam"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str = "config.json") -> SamConfig:
        """Reads the contents of a Hugging Face ``config.json``.

        Args:
            config: the parsed JSON.
            where: the name of the file in messages.

        Raises:
            InputError: the model type or an activation is not supported, or a field has an invalid value.
        """
        kind = config.get("model_type")
        if not isinstance(kind, str) or kind not in MODEL_TYPES:
            raise _refusal("model_type", f"one of {', '.join(MODEL_TYPES)}", kind, where)
        sections = {name: _section(config, name, where) for name in _ACTS}
        vision = dict(sections["vision_config"])
        if kind == "sam" and vision.get("mlp_dim") is None:
            size, ratio = (vision.get(name, default) for name, default in (("hidden_size", 768), ("mlp_ratio", 4.0)))
            _check("hidden_size", size, 1, where)
            _check("mlp_ratio", ratio, 1.0, where)
            vision["mlp_dim"] = int(size * ratio)
        parts = (
            _read(MODEL_TYPES[kind][1], vision, where),
            _read(PromptConfig, sections["prompt_encoder_config"], where),
            _read(DecoderConfig, sections["mask_decoder_config"], where),
        )
        _check_parts(*parts, where)
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
        if dtype not in DTYPES:
            raise _refusal("dtype", f"one of {', '.join(DTYPES)}", dtype, where)
        return cls(*parts, dtype=dtype, source=json.dumps(config))

    def to_hf(self) -> dict[str, Any]:
        """The contents of ``config.json``; entries that were read but not interpreted are written again unchanged."""
        before: dict[str, Any] = json.loads(self.source) if self.source else {}
        written: dict[str, Any] = dict(before)
        written.setdefault("architectures", [MODEL_TYPES[self.model_type][0]])
        written["model_type"] = self.model_type
        parts = {"vision_config": self.vision, "prompt_encoder_config": self.prompt, "mask_decoder_config": self.decoder}
        for name, part in parts.items():
            own = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(part).items()}
            if self.source is None:
                own |= {"hidden_act": _ACTS[name]}
                own |= {"model_type": part.TYPE} if isinstance(part, VitConfig | TinyVitConfig) else {}
                written[name] = own
            else:  # defaults that the file leaves out stay out
                section = dict(before.get(name) or {})
                default = {key: list(v) if isinstance(v, tuple) else v for key, v in vars(type(part)()).items()}
                ratio = isinstance(part, VitConfig) and "mlp_dim" not in section
                section |= {
                    key: value
                    for key, value in own.items()
                    if (key in section or value != default[key]) and not (ratio and key == "mlp_dim")
                }
                if section or name in before:
                    written[name] = section
        key = "torch_dtype" if "torch_dtype" in before else "dtype"
        if key in before or self.dtype != "float32" or self.source is None:
            written[key] = self.dtype
        return written

    def replace(self, **changes: Any) -> SamConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


# --------------------------------------------------------------------------------------------------------------------
# Reading and checking


def _section(config: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    value = config.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _refusal(name, "an object", value, where)
    act = value.get("hidden_act", _ACTS[name])
    if act != _ACTS[name]:
        raise _refusal(f"{name}.hidden_act", repr(_ACTS[name]), act, where)
    return value


def _read(kind: type[_Part], values: Mapping[str, Any], where: str) -> _Part:
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        value = values.get(field.name, field.default)
        if value is None:
            value = field.default
        _check(field.name, value, field.default, where)
        fields[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**fields)


def _check(name: str, value: Any, like: Any, where: str) -> None:
    """Raises unless a value has the type of ``like`` and is positive."""
    least = 0 if name in _ZERO else 1
    if isinstance(like, bool):
        fine, what = isinstance(value, bool), "true or false"
    elif isinstance(like, int):
        fine, what = type(value) is int and value >= least, "a positive integer"
    elif isinstance(like, float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fine, what = number and (0 < value < float("inf") or (value == 0 and name in _ZERO)), "a positive number"
    else:
        fine = isinstance(value, list | tuple) and all(type(item) is int and item >= least for item in value)
        fine, what = fine and (len(value) > 0 or name in _EMPTY), "a list of positive integers"
    if not fine:
        raise _refusal(name, what, value, where)


def _check_parts(vision: VitConfig | TinyVitConfig, prompt: PromptConfig, decoder: DecoderConfig, where: str) -> None:
    """Raises where the parts do not fit each other."""
    for part in (vision, prompt, decoder):
        default = type(part)()
        for name, value in vars(part).items():
            _check(name, value, getattr(default, name), where)

    def equal(name: str, value: int, other: str, wanted: int) -> None:
        if value != wanted:
            raise _refusal(name, f"the {other}, {wanted}", value, where)

    def multiple(name: str, value: int, other: str, of: int) -> None:
        if value % of:
            raise _refusal(name, f"a multiple of {other}, {of}", value, where)

    equal("prompt_encoder_config.hidden_size", prompt.hidden_size, "image encoder's output_channels", vision.output_channels)
    equal("mask_decoder_config.hidden_size", decoder.hidden_size, "image encoder's output_channels", vision.output_channels)
    equal("num_pos_feats", vision.num_pos_feats, "half of hidden_size", prompt.hidden_size // 2)
    equal("prompt_encoder_config.image_size", prompt.image_size, "image encoder's image_size", vision.image_size)
    equal("num_point_embeddings", prompt.num_point_embeddings, "number of kinds of points", 4)
    equal("prompt_encoder_config.patch_size", prompt.image_size // prompt.patch_size, "side of the embedding", vision.grid)
    multiple("mask_input_channels", prompt.mask_input_channels, "four", 4)
    multiple("mask_decoder_config.hidden_size", decoder.hidden_size, "eight", 8)
    for rate in (2, decoder.attention_downsample_rate):
        width = decoder.hidden_size // rate
        multiple("the width of the decoder's attention", width, "num_attention_heads", decoder.num_attention_heads)
    if decoder.iou_head_depth < 2:
        raise _refusal("iou_head_depth", "at least 2", decoder.iou_head_depth, where)
    if isinstance(vision, VitConfig):
        multiple("hidden_size", vision.hidden_size, "num_attention_heads", vision.num_attention_heads)
        multiple("image_size", vision.image_size, "patch_size", vision.patch_size)
        if any(index >= vision.num_hidden_layers for index in vision.global_attn_indexes):
            raise _refusal("global_attn_indexes", "indexes of layers", vision.global_attn_indexes, where)
        return
    stages = len(vision.embed_dims)
    for name in ("depths", "num_heads", "window_sizes"):
        equal(f"the length of {name}", len(getattr(vision, name)), "number of stages", stages)
    equal("the length of strides", len(vision.strides), "number of stages less one", stages - 1)
    multiple("image_size", vision.image_size, "four", 4)
    for size, heads in zip(vision.embed_dims[1:], vision.num_heads[1:], strict=True):
        multiple("embed_dims", size, "num_heads", heads)


def _refusal(name: str, expected: str, got: Any, where: str) -> InputError:
    return InputError(
        f"expected {name} to be {expected} in {where}, got {reprlib.repr(got)}; correct the config or choose another checkpoint"
    )
