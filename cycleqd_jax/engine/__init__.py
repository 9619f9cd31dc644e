"""Decoding: from token ids to token ids, from conversations to replies, and one reply as it is generated."""

from cycleqd_jax.engine.attention import Attention
from cycleqd_jax.engine.chat import ChatGenerator
from cycleqd_jax.engine.engine import Engine
from cycleqd_jax.engine.layout import EngineLayout
from cycleqd_jax.engine.model import Model, load_model
from cycleqd_jax.engine.requests import Generation, Statistics
from cycleqd_jax.engine.stream import Detokenizer, Piece, stream_reply, stream_tokens

__all__ = [
    "Attention",
    "ChatGenerator",
    "Detokenizer",
    "Engine",
    "EngineLayout",
    "Generation",
    "Model",
    "Piece",
    "Statistics",
    "load_model",
    "stream_reply",
    "stream_tokens",
]
