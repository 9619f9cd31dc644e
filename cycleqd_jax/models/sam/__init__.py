"""Segment Anything: image encoders (ViT and MobileSAM's TinyViT), prompt encoder, mask decoder, and their folders.

All functions are pure functions of a tree of weights. Images are ``[batch, height, width, channel]``. Image embeddings do not
depend on prompts, so models that share the encoder share them.
"""

from cycleqd_jax.models.sam.config import DecoderConfig, PromptConfig, SamConfig, TinyVitConfig, VitConfig
from cycleqd_jax.models.sam.files import load, read_config, save
from cycleqd_jax.models.sam.model import (
    abstract_params,
    encode_images,
    forward,
    init_params,
    logical_axes,
    num_params,
    predict_masks,
)
from cycleqd_jax.models.sam.prompts import Prompts

__all__ = [
    "DecoderConfig",
    "PromptConfig",
    "Prompts",
    "SamConfig",
    "TinyVitConfig",
    "VitConfig",
    "abstract_params",
    "encode_images",
    "forward",
    "init_params",
    "load",
    "logical_axes",
    "num_params",
    "predict_masks",
    "read_config",
    "save",
]
