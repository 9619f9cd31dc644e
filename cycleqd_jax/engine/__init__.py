"""Decoding: token ids in, token ids out; the same behind a chat template; and one reply as it is generated."""

from cycleqd_jax.engine.chat import ChatGenerator
from cycleqd_jax.engine.generate import Engine, Generation, NonFiniteError, default_buckets
from cycleqd_jax.engine.stream import Detokenizer, Piece, stream_reply, stream_tokens

__all__ = [
    "ChatGenerator",
    "Detokenizer",
    "Engine",
    "Generation",
    "NonFiniteError",
    "Piece",
    "default_buckets",
    "stream_reply",
    "stream_tokens",
]
