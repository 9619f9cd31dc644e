"""Aliases and contracts shared by every room; this module imports nothing of the package.

Shapes are written as in jaxtyping: ``Float[Array, "batch task"]`` is a float array with a row for every individual and a
column for every task. A *population* is always one more leading axis.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt32

__all__ = [
    "SPLITS",
    "Adapter",
    "AnyArray",
    "Array",
    "ArrayLeaf",
    "Bool",
    "Episode",
    "Float",
    "Generator",
    "Genome",
    "GenomeSpace",
    "Individual",
    "InputError",
    "Int",
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
    "Searcher",
    "Split",
    "Task",
    "leaf_path",
    "no_progress",
    "tree_paths",
]

AnyArray = jax.Array | np.ndarray
"""An array on a device or in the host's memory: annotations read ``Float[AnyArray, "batch task"]``."""

ArrayLeaf = jax.Array | np.ndarray | jax.ShapeDtypeStruct
"""A field of a pytree dataclass. JAX also builds the dataclass with shapes in place of arrays, or with batch axes in front:
annotations read ``Float[ArrayLeaf, "*batch task edge"]``."""

Params = PyTree[AnyArray]
"""Weights of one model: any pytree of arrays."""


class LowRank(NamedTuple):
    """The product ``a @ b`` of two thin matrices, for every matrix of a stack: an update by LoRA.

    Attributes:
        a: ``[*stack, m, r]``, the scale included.
        b: ``[*stack, r, n]``.
    """

    a: Float[AnyArray, "*stack m r"]
    b: Float[AnyArray, "*stack r n"]


class MixedMatrix(NamedTuple):
    """The matrices of several individuals that differ by a low rank from one another: ``w + u @ diag(coefficients[i]) @ vt``.

    Stands where a stacked matrix stands in the weights of one.

    Attributes:
        w: what they share, ``[layer, in, out]``.
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
    """An expert as what it adds to its base: θ = θ_base + update, leaf by leaf.

    Attributes:
        updates: by the path of the base's leaf (``"layers/attn/q"``): a :class:`LowRank`, or an array of the leaf's shape.
            Leaves that are not named are those of the base.
    """

    updates: Mapping[str, LowRank | Array | np.ndarray]


Genome = PyTree[AnyArray]
"""What evolution works on. Only its :class:`GenomeSpace` knows what the leaves mean."""

Scores = Float[AnyArray, "batch task"]
"""``scores[b, k]`` is f_k of individual b, in [0, 1]; a row with a NaN is an individual that could not be evaluated."""

Split = Literal["train", "test"]
"""The search sees ``train`` only; ``test`` is what is reported."""

SPLITS: tuple[Split, Split] = ("train", "test")
"""Both splits, in the order of tables."""


class InputError(ValueError):
    """What the user gave (a config, a file, a model, data) can't be used.

    The message is one sentence: what was expected, what came, where, and what to do. The command line prints it and exits
    with code 2.
    """


class NonFiniteError(ArithmeticError):
    """A model's logits are NaN or infinite: its weights are broken, and none of its replies means anything.

    Attributes:
        individual: index of the individual whose weights are broken, where several are decoded together.
    """

    def __init__(self, message: str, individual: int = 0) -> None:
        super().__init__(message)
        self.individual = individual


# --------------------------------------------------------------------------------------------------------------------
# Search


class Lineage(NamedTuple):
    """Where the children of one ``ask`` come from. A pytree; every leaf has a leading ``batch`` axis.

    Attributes:
        parents: ids of the two parents, Int ``[batch, 2]``; -1 where there is none.
        active: index of the active task, Int ``[batch]``; -1 where there is none.
        key: raw data of the child's own PRNG key, UInt32 ``[batch, 2]``: with the parents it rebuilds the child.
        omega: the crossover's raw weights ω1, ω2, Float ``[batch, 2]``.
    """

    parents: Int[Array, "batch 2"]
    active: Int[Array, " batch"]
    key: UInt32[Array, "batch 2"]
    omega: Float[Array, "batch 2"]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_list(value: Any, *types: type, length: int | None = None) -> bool:
    return isinstance(value, list) and all(type(v) in types for v in value) and length in (None, len(value))


_RECORD: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "id": ("an integer", lambda value: type(value) is int),
    "generation": ("an integer", lambda value: type(value) is int),
    "expert": ("a string or null", _is_text),
    "active": ("a string or null", _is_text),
    "parents": ("two integers", lambda value: _is_list(value, int, length=2)),
    "omega": ("two numbers or null", lambda value: value is None or _is_list(value, int, float, length=2)),
    "key": ("integers or null", lambda value: value is None or _is_list(value, int)),
    "scores": (
        "a number for each task, or null",
        lambda value: value is None or (isinstance(value, dict) and all(map(_is_number, value.values()))),
    ),
    "error": ("a string or null", _is_text),
    "items": (
        "a list of numbers for each task",
        lambda value: isinstance(value, dict) and all(_is_list(v, int, float) for v in value.values()),
    ),
    "seconds": (
        "a number for each stage",
        lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    ),
}
"""Fields of a journal record in their order: what each must be, and the check."""


@dataclasses.dataclass(frozen=True)
class Individual:
    """An expert or a child, as one line of the journal ``history.jsonl`` records it.

    Attributes:
        id: 0 to K − 1 for the experts; children count on from there.
        generation: −1 for an expert, from 0 for a child.
        expert: the task whose expert it is; None for a child.
        active: the task that gave quality when the child was made; None for an expert.
        parents: ids of the two parents; −1 where there is none.
        omega: raw crossover weights ω1, ω2; None for an expert.
        key: raw data of the child's PRNG key; None for an expert.
        scores: f_k by task; None if it was quarantined.
        error: why it was quarantined, or None.
        items: score of every problem, by task; empty if it was quarantined.
        seconds: wall time by stage.
    """

    id: int
    generation: int
    expert: str | None
    active: str | None
    parents: tuple[int, int]
    omega: tuple[float, float] | None
    key: tuple[int, ...] | None
    scores: Mapping[str, float] | None = None
    error: str | None = None
    items: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """The line of the journal, without its newline; NaN and infinity raise a ValueError."""
        return json.dumps({name: getattr(self, name) for name in _RECORD}, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes, place: str) -> Individual:
        """Reads a line of the journal. Unknown fields are ignored.

        Args:
            line: the line.
            place: where it stands, for messages: ``"line 3 of run/history.jsonl"``.

        Raises:
            InputError: the line is not a JSON object with every field, each of its type.
        """
        try:
            raw = json.loads(line)
        except ValueError as error:
            raise InputError(f"expected a journal record in JSON, got {error} in {place}; restore the file") from error
        missing = [name for name in _RECORD if not isinstance(raw, dict) or name not in raw]
        if missing:
            raise InputError(
                f"expected a journal record with {', '.join(_RECORD)}, got none of {', '.join(missing)} in {place}; "
                "restore the file"
            )
        for name, (kind, is_valid) in _RECORD.items():
            if not is_valid(raw[name]):
                raise InputError(f"expected {name} to be {kind}, got {raw[name]!r:.80} in {place}; restore the file")
        return cls(**{name: tuple(v) if isinstance(v := raw[name], list) else v for name in _RECORD})


@runtime_checkable
class GenomeSpace(Protocol):
    """The set of individuals the search can reach. All methods are pure, jittable and vmappable over ``key`` and genomes."""

    @property
    def num_experts(self) -> int:
        """Number K of experts; expert k is the one fine-tuned for task k."""
        ...

    def expert(self, k: int) -> Genome:
        """The genome of expert k."""
        ...

    def crossover(self, parent1: Genome, parent2: Genome, omega: Float[Array, 2]) -> Genome:
        """Linear crossover with raw weights ω1, ω2 (see ``operators.crossover_weights``)."""
        ...

    def mutate(self, key: PRNGKeyArray, genome: Genome, active: Int[Array, ""]) -> Genome:
        """Mutation of a child while task ``active`` provides quality; the key is consumed."""
        ...

    def express(self, genome: Genome) -> Params:
        """The weights of the model that ``genome`` stands for."""
        ...


@runtime_checkable
class Searcher(Protocol):
    """A black-box optimiser as ask/tell. Pure: the state is one pytree, and nothing else remembers anything."""

    def init(self, genomes: Genome, scores: Scores) -> Any:
        """The state after the initial individuals (leading axis ``batch``) have been told."""
        ...

    def ask(self, state: Any, key: PRNGKeyArray, n: int) -> tuple[Genome, Lineage, Any]:
        """``n`` children (leading axis ``n``), their lineage and the new state; the key is consumed."""
        ...

    def tell(self, state: Any, genomes: Genome, scores: Scores, lineage: Lineage) -> Any:
        """The state after the scores of the children of the last ``ask`` are known."""
        ...


# --------------------------------------------------------------------------------------------------------------------
# Tasks and generation


class Message(TypedDict):
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclasses.dataclass(frozen=True)
class Score:
    """The end of an episode.

    Attributes:
        value: in [0, 1].
        reason: one line for the transcript: ``"passed"``, ``"assertion 2 failed"``, ``"wrong answer: …"``.
    """

    value: float
    reason: str = ""


@runtime_checkable
class Episode(Protocol):
    """One problem, played as a conversation. Methods may block (sandboxes); one thread at a time calls them.

    An episode that every first reply ends may say so with an attribute ``single_turn = True``: nothing that is generated waits
    for its score.
    """

    def start(self) -> list[Message]:
        """Sets the environment up and returns the conversation so far, ending with a user message."""
        ...

    def step(self, reply: str) -> list[Message] | Score:
        """Acts on the model's reply: the new messages that follow it, or the score that ends the episode."""
        ...

    def close(self) -> None:
        """Frees what ``start`` took; safe to call twice, and before ``start``."""
        ...


@runtime_checkable
class Task(Protocol):
    """A named set of problems with a train and a test half.

    Attributes:
        name: as in configs, journals and tables.
        max_new_tokens: most tokens a reply may have.
    """

    name: str
    max_new_tokens: int

    def episodes(self, split: Split) -> Sequence[Episode]:
        """A fresh episode per problem of the split, always in the same order."""
        ...

    def demonstrations(self, split: Split) -> list[list[Message]]:
        """Solved conversations of the split, for fine-tuning: gold solutions replayed through the episodes."""
        ...


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a model said.

    Attributes:
        text: without the stop token.
        tokens: how many tokens were generated, the stop token included.
        finish: ``"stop"`` (a stop token), ``"length"`` (the limit) or ``"refused"`` (the prompt does not fit the cache).
        dropped: how many tokens of the prompt's beginning were left out because it was too long.
    """

    text: str
    tokens: int
    finish: Literal["stop", "length", "refused"]
    dropped: int = 0


@runtime_checkable
class Generator(Protocol):
    """Conversations in, replies out, many at once; knows nothing of tasks."""

    def submit(self, conversation: Hashable, messages: Sequence[Message], max_new_tokens: int, *, individual: int = 0) -> None:
        """Queues a request for one reply.

        Args:
            conversation: names the conversation; it must have no other request in progress.
            messages: the whole conversation so far.
            max_new_tokens: most tokens of the reply.
            individual: whose weights decode it, where several individuals are loaded.
        """
        ...

    def advance(self) -> list[tuple[Hashable, Reply]]:
        """Generates for a while; the conversations whose replies are complete, in an order that does not depend on time.

        An empty list says nothing where replies are under way; where none are, it is returned at once.
        """
        ...

    def release(self, conversation: Hashable) -> None:
        """A conversation is over: what is kept of it for its next turn may go."""
        ...


@dataclasses.dataclass(frozen=True)
class Outcome:
    """An episode that was played to its end.

    Attributes:
        score: its score.
        messages: the whole conversation.
        tokens: tokens generated by the model in all rounds.
        rounds: how often the model spoke.
        dropped: tokens of its beginning that the model was not shown, in all rounds.
    """

    score: Score
    messages: tuple[Message, ...]
    tokens: int
    rounds: int
    dropped: int = 0


# --------------------------------------------------------------------------------------------------------------------
# Progress

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""``progress(stage, done, total, figures)``: called by long stages, shown by whoever runs them."""


def no_progress(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    """Shows nothing."""


def leaf_path(path: tuple[Any, ...]) -> str:
    """A key path of ``jax.tree_util`` as ``"layers/attn/q"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def tree_paths(tree: PyTree) -> list[tuple[str, Any]]:
    """The leaves of a pytree with their paths as ``"layers/attn/q"``.

    Args:
        tree: any pytree of dicts, sequences and dataclasses.

    Returns:
        ``(path, leaf)`` pairs in ``jax.tree`` order.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(leaf_path(path), leaf) for path, leaf in leaves]
