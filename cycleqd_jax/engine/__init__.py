"""Decoding: token ids in, token ids out; and the same behind a chat template."""

from cycleqd_jax.engine.chat import ChatGenerator
from cycleqd_jax.engine.generate import Engine, Generation, NonFiniteError, default_buckets

__all__ = ["ChatGenerator", "Engine", "Generation", "NonFiniteError", "default_buckets"]
