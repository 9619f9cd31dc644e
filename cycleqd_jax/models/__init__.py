"""Models as pure functions of a tree of weights, with their tokenizers and files."""

from cycleqd_jax.models.model import Model, load_model

__all__ = ["Model", "load_model"]
