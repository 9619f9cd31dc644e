"""Decoding: token ids in, token ids out; the same behind a chat template; and one reply as it is generated."""

from cycleqd_jax.engine.cache import Attention
from cycleqd_jax.engine.chat import ChatGenerator
from cycleqd_jax.engine.engine import Engine, Generation, Statistics
from cycleqd_jax.engine.stream import Detokenizer, Piece, stream_reply, stream_tokens

__all__ = [
    "Attention",
    "ChatGenerator",
    "Detokenizer",
    "Engine",
    "Generation",
    "Piece",
    "Statistics",
    "stream_reply",
    "stream_tokens",
]
