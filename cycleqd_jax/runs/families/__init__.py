"""Families of models: language models and Segment Anything. A run asks its family for what differs between them."""

from cycleqd_jax.config import RunConfig
from cycleqd_jax.runs.families.base import Family, Processor
from cycleqd_jax.runs.families.language import LanguageModels
from cycleqd_jax.runs.families.segmentation import SegmentAnything

__all__ = ["Family", "LanguageModels", "Processor", "SegmentAnything", "family_of"]

_LANGUAGE, _SEGMENTATION = LanguageModels(), SegmentAnything()


def family_of(config: RunConfig) -> Family:
    """The family of a run's models, which the kind of its tasks decides."""
    return _SEGMENTATION if config.segments else _LANGUAGE
