"""Search: the loops, its journal, its checkpoints, and digests of genomes and states."""

from cycleqd_jax.search.carried import Carried
from cycleqd_jax.search.checkpoint import (
    Checkpoints,
    DamagedCheckpointError,
    StoredState,
    checkpoint_steps,
    one_process,
    read_checkpoint,
)
from cycleqd_jax.search.digests import tree_digest
from cycleqd_jax.search.journal import Journal
from cycleqd_jax.search.loop import evolve, individuals_within
from cycleqd_jax.search.races import Racing, generation_ids
from cycleqd_jax.search.steady import evolve_steadily
from cycleqd_jax.search.transcripts import Transcripts

__all__ = [
    "Carried",
    "Checkpoints",
    "DamagedCheckpointError",
    "Journal",
    "Racing",
    "StoredState",
    "Transcripts",
    "checkpoint_steps",
    "evolve",
    "evolve_steadily",
    "generation_ids",
    "individuals_within",
    "one_process",
    "read_checkpoint",
    "tree_digest",
]
