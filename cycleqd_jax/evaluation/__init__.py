"""Evaluation: models play episodes or predict masks of all tasks, and workers turn genomes into scores."""

from cycleqd_jax.evaluation.episodes import rollout
from cycleqd_jax.evaluation.evaluator import EvaluationCancelled, Evaluator, Load
from cycleqd_jax.evaluation.faults import FaultPolicy, GuardedWorker, in_less_memory, is_transient, out_of_memory
from cycleqd_jax.evaluation.segmentation import SegmentationEvaluator
from cycleqd_jax.evaluation.stages import evaluate_in_stages
from cycleqd_jax.evaluation.workers import (
    GenomeEvaluator,
    LazyWorker,
    PopulationWorker,
    Relatives,
    SerialWorker,
    Source,
    Stages,
    StreamEvaluator,
    Worker,
    WorkerPool,
)
from cycleqd_jax.types import Evaluation

__all__ = [
    "Evaluation",
    "EvaluationCancelled",
    "Evaluator",
    "FaultPolicy",
    "GenomeEvaluator",
    "GuardedWorker",
    "LazyWorker",
    "Load",
    "PopulationWorker",
    "Relatives",
    "SegmentationEvaluator",
    "SerialWorker",
    "Source",
    "Stages",
    "StreamEvaluator",
    "Worker",
    "WorkerPool",
    "evaluate_in_stages",
    "in_less_memory",
    "is_transient",
    "out_of_memory",
    "rollout",
]
