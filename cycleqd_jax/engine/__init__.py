"""Decoding and scoring: token ids to token ids or log-likelihoods, conversations to replies, one reply as it is generated."""

from cycleqd_jax.engine.attention import Attention
from cycleqd_jax.engine.chat import ChatGenerator
from cycleqd_jax.engine.detokenizer import REPLACEMENT, Detokenizer, ReplyText
from cycleqd_jax.engine.engine import Engine
from cycleqd_jax.engine.layout import EngineLayout
from cycleqd_jax.engine.model import Model, load_model
from cycleqd_jax.engine.requests import Generation, Statistics
from cycleqd_jax.engine.scores import TokenLogprobs, rolling_windows
from cycleqd_jax.engine.stream import Piece, stream_reply, stream_tokens
from cycleqd_jax.engine.text import TextScorer
from cycleqd_jax.types import Likelihood

__all__ = [
    "REPLACEMENT",
    "Attention",
    "ChatGenerator",
    "Detokenizer",
    "Engine",
    "EngineLayout",
    "Generation",
    "Likelihood",
    "Model",
    "Piece",
    "ReplyText",
    "Statistics",
    "TextScorer",
    "TokenLogprobs",
    "load_model",
    "rolling_windows",
    "stream_reply",
    "stream_tokens",
]
