"""Type aliases and protocols that all packages share. This module imports no other module of ``cycleqd_jax``.

Shapes are written as in jaxtyping: ``Float[Array, "batch task"]`` is a float array with a row for each individual and a column
for each task. A population adds one leading axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NotRequired, Protocol, TypedDict, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt32

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
    "Float",
    "Generator",
    "Genome",
    "GenomeSpace",
    "InputError",
    "Int",
    "Items",
    "Lineage",
    "LowRank",
    "Message",
    "MixedMatrix",
    "NonFiniteError",
    "Outcome",
    "PRNGKeyArray",
    "Params",
    "Progress",
    "PyTree",
    "Reply",
    "Score",
    "Scores",
    "SearchState",
    "Searcher",
    "Split",
    "Task",
    "Tool",
    "ToolCall",
    "ToolCallFunction",
    "ToolFunction",
    "leaf_path",
    "no_progress",
    "tree_paths",
]

AnyArray = jax.Array | np.ndarray
"""A JAX or a numpy array. Annotations read ``Float[AnyArray, "batch task"]``."""

ArrayLeaf = jax.Array
"""An array field of a pytree dataclass. JAX also builds such dataclasses with numpy arrays or shapes, and with leading batch
axes. Annotations read ``Float[ArrayLeaf, "*batch task edge"]``."""
if not TYPE_CHECKING:
    ArrayLeaf = jax.Array | np.ndarray | jax.ShapeDtypeStruct

Params = PyTree[AnyArray]
"""The weights of one model: any pytree of arrays."""


class LowRank(NamedTuple):
    """A low-rank update ``a @ b`` of every matrix in a stack, as in LoRA.

    Attributes:
        a: ``[*stack, m, r]``; includes LoRA's scale.
        b: ``[*stack, r, n]``.
    """

    a: Float[AnyArray, "*stack m r"]
    b: Float[AnyArray, "*stack r n"]


class MixedMatrix(NamedTuple):
    """Matrices of several individuals with a shared part; that of individual i is ``w + u @ diag(coefficients[i]) @ vt``.

    In the weights of a population it replaces the stacked matrix of one individual.

    Attributes:
        w: the shared part, ``[layer, in, out]``.
        u: ``[layer, in, r]``.
        vt: ``[layer, r, out]``.
        coefficients: ``[layer, individual, r]``.
    """

    w: Float[Array, "*layer in out"]
    u: Float[Array, "*layer in r"]
    vt: Float[Array, "*layer r out"]
    coefficients: Float[Array, "*layer individual r"]


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An expert as updates of its base model: θ = θ_base + update for every leaf.

    Attributes:
        updates: the changed leaves. The key is the path of a leaf of the base (``"layers/attn/q"``); the value is a
            :class:`LowRank` or an array of the leaf's shape. Leaves without an entry are those of the base.
    """

    updates: Mapping[str, LowRank | AnyArray]


AdapterRanks = Mapping[str, int | None]
"""For the path of every leaf that a LoRA adapter changes: the rank of its update, or None where it brings the whole leaf."""

Genome = PyTree[AnyArray]
"""The genotype of an individual. Its :class:`GenomeSpace` defines the structure and the meaning of the leaves."""

Scores = Float[AnyArray, "batch task"]
"""``scores[b, k]`` is f_k of individual b, in [0, 1]. A row with NaN is a quarantined individual: it could not be evaluated."""

Items = Float[AnyArray, "batch item"]
"""``items[b, i]`` is the score of individual b on problem i, in [0, 1]: the problems of the first task, then those of the
second, and so on. A row of NaN is a quarantined individual."""

Split = Literal["train", "validation", "test"]
"""The search uses the ``train`` problems only. The final model is chosen on the ``validation`` problems. The reported scores
are of the ``test`` problems."""

MAX_CELLS = 1_000_000
"""The most cells of an archive."""

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""All splits."""

REPORTED: tuple[Split, ...] = ("train", "test")
"""The splits on which every row of the results table is scored."""


class InputError(ValueError):
    """An input of the user (a config, a file, a model or data) is not usable.

    The message is one sentence of the form "expected X, got Y in Z; do W". The command line prints it and exits with code 2.
    """


class NonFiniteError(ArithmeticError):
    """The logits of a model are NaN or infinite, so its replies are meaningless.

    Attributes:
        individual: index of the individual in a population; 0 for a single model.
    """

    def __init__(self, message: str, individual: int = 0) -> None:
        super().__init__(message)
        self.individual = individual


# --------------------------------------------------------------------------------------------------------------------
# Search


class Lineage(NamedTuple):
    """The origin of the children of one ``ask``, a pytree.

    The parents, the active task and the key determine a child. A child without parents is determined by its coefficients.

    Attributes:
        parents: ids of the two parents, Int ``[batch, 2]``; -1 for no parent.
        active: index of the active task, whose expert gives the directions of the mutation, Int ``[batch]``; -1 for no task.
        key: raw data of each child's PRNG key, UInt32 ``[batch, 2]``.
        omega: raw crossover weights ω1, ω2, Float ``[batch, 2]``; zero for a child without parents.
        coefficients: the genomes of children without parents, merging coefficients of G groups of layers and K experts, Float
            ``[batch, G, K]``; None for children that have parents.
    """

    parents: Int[Array, "batch 2"]
    active: Int[Array, " batch"]
    key: UInt32[Array, "batch 2"]
    omega: Float[Array, "batch 2"]
    coefficients: Float[Array, "batch g k"] | None = None


@runtime_checkable
class GenomeSpace(Protocol):
    """The genomes that a search can reach, and the operators on them.

    Implementations are pytrees. All methods must be pure and work under ``jax.jit``, and under ``jax.vmap`` over keys and
    genomes.
    """

    @property
    def num_experts(self) -> int:
        """The number K of experts. Expert k is fine-tuned for task k."""
        ...

    def expert(self, k: int) -> Genome:
        """The genome whose weights are those of expert k."""
        ...

    def crossover(self, parent1: Genome, parent2: Genome, omega: Float[Array, 2]) -> Genome:
        """The linear crossover of two genomes with the raw weights ω1, ω2 (see ``operators.crossover_weights``)."""
        ...

    def mutate(self, key: PRNGKeyArray, genome: Genome, active: Int[Array, ""]) -> Genome:
        """The mutation of a child when task ``active`` provides quality; the key is consumed."""
        ...

    def express(self, genome: Genome) -> Params:
        """The weights of the model of ``genome``."""
        ...


@runtime_checkable
class Searcher(Protocol):
    """A black-box optimiser with an ask/tell interface.

    Implementations must be pure: all that changes is in the state, one pytree, and the same arguments give the same results. A
    search that is resumed from a checkpoint relies on it. The search calls ``init`` once, then ``ask`` and ``tell`` in turn.
    """

    def init(self, genomes: Genome, scores: Scores, items: Items | None = None) -> Any:
        """The first state, from the genomes (leading axis ``batch``), scores and items of the initial individuals."""
        ...

    def ask(self, state: Any, key: PRNGKeyArray, n: int) -> tuple[Genome, Lineage, Any]:
        """Makes ``n`` children: their genomes (leading axis ``n``), their lineage and the new state; the key is consumed."""
        ...

    def tell(self, state: Any, genomes: Genome, scores: Scores, lineage: Lineage, items: Items | None = None) -> Any:
        """The new state, from the scores of all children of the last ``ask``; rows with NaN must not count as scores.

        The search loop always passes ``items``. Callers without scores of single problems leave it out.
        """
        ...


@runtime_checkable
class SearchState(Protocol):
    """What the states of all searchers of this package offer to a run, beside being pytrees."""

    def leading(self, count: int) -> tuple[Genome, Scores, Int[AnyArray, " individual"]]:
        """The individuals of the highest averages over all tasks that the search holds, the experts included.

        The final model is chosen among them. Each is there once; of equal averages the smallest id comes first. An individual
        with a score of NaN is never there. The method does not work under ``jax.jit``.

        Args:
            count: the most individuals; fewer are returned where the search holds fewer.

        Returns:
            Genomes (leading axis ``individual``), scores ``[individual, K]`` and ids, from the highest average.

        Raises:
            InputError: ``count`` is below 1.
        """
        ...


# --------------------------------------------------------------------------------------------------------------------
# Tasks and generation


class ToolFunction(TypedDict):
    """The function of a tool: its name, what it does, and the JSON schema of its parameters."""

    name: str
    description: str
    parameters: Mapping[str, Any]


class Tool(TypedDict):
    """A tool that a model may call, in the form of OpenAI's chat API."""

    type: Literal["function"]
    function: ToolFunction


class ToolCallFunction(TypedDict):
    """What a tool call calls: the name of the tool, and its arguments as JSON (an object, if the model made no mistake)."""

    name: str
    arguments: Any


class ToolCall(TypedDict):
    """A tool call of an assistant message."""

    id: str
    type: Literal["function"]
    function: ToolCallFunction


class Message(TypedDict):
    """One chat message.

    The first message of a conversation may have ``tools``, which the model can call (:mod:`cycleqd_jax.tool_calls`). Then
    assistant messages may have ``tool_calls``, and messages of the role ``tool`` hold the results.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tools: NotRequired[Sequence[Tool]]
    tool_calls: NotRequired[Sequence[ToolCall]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of an episode.

    Attributes:
        value: the score, in [0, 1].
        reason: one line for the transcript, such as ``"passed"``, ``"assertion 2 failed"`` or ``"wrong answer: …"``.
    """

    value: float
    reason: str = ""


@runtime_checkable
class Episode(Protocol):
    """One problem, played as a conversation with an environment.

    Methods may block, for example on a sandbox. The calls may come from different threads, but never two at once. An
    implementation whose episodes always end with the first reply may set ``single_turn = True``: its replies are then scored in
    the background. A broken environment raises an error (InfraError); it must not become a score.
    """

    def start(self) -> list[Message]:
        """Sets up the environment and returns the opening messages, of which the last is a user message.

        With the key ``tools`` in the first message the conversation offers tools.
        """
        ...

    def step(self, reply: str) -> list[Message] | Score:
        """Applies the model's reply; returns the messages that follow it, or the score, which ends the episode."""
        ...

    def close(self) -> None:
        """Frees the resources of ``start``. It must be safe to call twice, and before ``start``."""
        ...


@runtime_checkable
class Task(Protocol):
    """A named set of problems, split into train, validation and test.

    Attributes:
        name: its name in configs, journals and tables.
        max_new_tokens: the most tokens of a reply.
    """

    name: str
    max_new_tokens: int

    def episodes(self, split: Split) -> Sequence[Episode]:
        """A new episode for each problem of the split. The order must be the same in every call."""
        ...

    def demonstrations(self, split: Split) -> list[list[Message]]:
        """Conversations of solved problems of the split, for fine-tuning: gold solutions replayed through the episodes."""
        ...


@dataclasses.dataclass(frozen=True)
class Reply:
    """A generated reply.

    Attributes:
        text: without the stop token.
        tokens: number of generated tokens, including the stop token.
        finish: why it ended: ``"stop"`` (a stop token), ``"length"`` (the limit) or ``"refused"`` (the prompt does not fit the
            cache).
        dropped: number of tokens removed from the beginning of the prompt because it was too long.
    """

    text: str
    tokens: int
    finish: Literal["stop", "length", "refused"]
    dropped: int = 0


@dataclasses.dataclass
class TokenCounts:
    """What an engine has computed for one individual; its FLOPs follow from it.

    Attributes:
        prompt: tokens of all prompts. The prompt of a later turn has the turns before it.
        generated: tokens that were generated, including stop tokens.
        computed: tokens that went through the layers. Prompt tokens that are in the cache, from a shared prefix or from the
            previous turn, are not computed again. The last token of a reply is not computed.
        attended: pairs of a computed token and a token that it attends to, itself included.
    """

    prompt: int = 0
    generated: int = 0
    computed: int = 0
    attended: int = 0

    def compute(self, start: int, end: int) -> None:
        """Counts the tokens at positions ``start`` to ``end`` − 1; each attends to all tokens up to itself."""
        self.computed += end - start
        self.attended += (end * (end + 1) - start * (start + 1)) // 2


@runtime_checkable
class Generator(Protocol):
    """Generates replies for many conversations at once, without knowledge of tasks.

    Implementations queue requests in ``submit`` and return complete replies from ``advance``. Which requests share a batch, and
    the order of the replies, must not depend on time: the same calls must give the same replies.
    """

    def submit(self, conversation: Hashable, messages: Sequence[Message], max_new_tokens: int, *, individual: int = 0) -> None:
        """Queues a request for one reply.

        Args:
            conversation: id of the conversation, which must have no other request in progress.
            messages: the whole conversation so far.
            max_new_tokens: the most tokens of the reply.
            individual: index of the individual whose weights generate the reply, if a population is loaded.
        """
        ...

    def advance(self) -> list[tuple[Hashable, Reply]]:
        """Generates some tokens, and returns the complete replies with their conversations.

        The list may be empty while replies are in progress. Without requests the call returns an empty list at once.
        """
        ...

    def release(self, conversation: Hashable) -> None:
        """Ends a conversation: cancels its request, if any, and frees what is cached for its next turn."""
        ...


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of an episode that was played to its end.

    Attributes:
        score: the score.
        messages: the whole conversation.
        tokens: number of generated tokens in all rounds.
        rounds: number of replies.
        dropped: number of prompt tokens that were removed in all rounds because the prompts were too long.
    """

    score: Score
    messages: tuple[Message, ...]
    tokens: int
    rounds: int
    dropped: int = 0


# --------------------------------------------------------------------------------------------------------------------
# Progress

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""``progress(stage, done, total, figures)``: a callback of long stages; ``figures`` are numbers to show, by name."""


def no_progress(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    """A :data:`Progress` that shows nothing."""


def leaf_path(path: tuple[Any, ...]) -> str:
    """Formats a key path of ``jax.tree_util`` as ``"layers/attn/q"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def tree_paths(tree: PyTree) -> list[tuple[str, Any]]:
    """Lists the leaves of a pytree with their paths.

    Args:
        tree: any pytree.

    Returns:
        ``(path, leaf)`` pairs in ``jax.tree`` order; paths read ``"layers/attn/q"``.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(leaf_path(path), leaf) for path, leaf in leaves]
