"""Type aliases, protocols and errors that all packages share. This package imports no other module of ``cycleqd_jax``.

Shapes are written as in jaxtyping: ``Float[Array, "batch task"]`` is a float array with a row for each individual and a column
for each task. A population adds one leading axis.
"""

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt32

from cycleqd_jax.types.arrays import (
    MAX_CELLS,
    Adapter,
    AdapterRanks,
    AnyArray,
    ArrayLeaf,
    Genome,
    Items,
    LowRank,
    MixedMatrix,
    Params,
    Scores,
    leaf_path,
    stack_trees,
    tree_paths,
)
from cycleqd_jax.types.errors import FailuresError, InputError, NonFiniteError
from cycleqd_jax.types.evaluation import Evaluation, ModelEvaluator
from cycleqd_jax.types.progress import Progress, no_progress
from cycleqd_jax.types.search import GenomeSpace, Lineage, Searcher, SearchState
from cycleqd_jax.types.segmentation import MaskPredictor, PredictedMasks, SegmentationItem, SegmentationTask
from cycleqd_jax.types.tasks import (
    REPORTED,
    SPLITS,
    Episode,
    Generator,
    Message,
    Outcome,
    ProblemSet,
    Reply,
    Score,
    Split,
    Task,
    TokenCounts,
    Tool,
    ToolCall,
    ToolCallFunction,
    ToolFunction,
    Transcript,
)

__all__ = [
    "MAX_CELLS",
    "REPORTED",
    "SPLITS",
    "Adapter",
    "AdapterRanks",
    "AnyArray",
    "Array",
    "ArrayLeaf",
    "Bool",
    "Episode",
    "Evaluation",
    "FailuresError",
    "Float",
    "Generator",
    "Genome",
    "GenomeSpace",
    "InputError",
    "Int",
    "Items",
    "Lineage",
    "LowRank",
    "MaskPredictor",
    "Message",
    "MixedMatrix",
    "ModelEvaluator",
    "NonFiniteError",
    "Outcome",
    "PRNGKeyArray",
    "Params",
    "PredictedMasks",
    "ProblemSet",
    "Progress",
    "PyTree",
    "Reply",
    "Score",
    "Scores",
    "SearchState",
    "Searcher",
    "SegmentationItem",
    "SegmentationTask",
    "Split",
    "Task",
    "TokenCounts",
    "Tool",
    "ToolCall",
    "ToolCallFunction",
    "ToolFunction",
    "Transcript",
    "UInt32",
    "leaf_path",
    "no_progress",
    "stack_trees",
    "tree_paths",
]
