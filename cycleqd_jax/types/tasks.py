"""Contracts of tasks, episodes and generators."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NotRequired, Protocol, TypedDict, runtime_checkable

__all__ = [
    "REPORTED",
    "SPLITS",
    "Episode",
    "Generator",
    "Likelihood",
    "LikelihoodTask",
    "Message",
    "Outcome",
    "ProblemSet",
    "Question",
    "Reply",
    "Score",
    "Scorer",
    "Split",
    "Task",
    "TokenCounts",
    "Tool",
    "ToolCall",
    "ToolCallFunction",
    "ToolFunction",
    "Transcript",
]

Split = Literal["train", "validation", "test"]
"""The search uses the ``train`` problems only. The final model is chosen on the ``validation`` problems. The reported scores
are of the ``test`` problems."""

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""All splits."""

REPORTED: tuple[Split, ...] = ("train", "test")
"""The splits on which every row of the results table is scored."""


Transcript = Mapping[str, Sequence[Sequence[Sequence[int]]]]
"""The replies of one model: by task, for each episode in order, the token ids of its replies. An entry may be empty."""


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

    def demonstrations(self, split: Split, start: int = 0) -> list[list[Message]]:
        """Conversations of solved problems of the split, for fine-tuning: gold solutions replayed through the episodes.

        Args:
            split: the problems.
            start: how many of the first problems are left out.
        """
        ...


@runtime_checkable
class ProblemSet(Protocol):
    """All that a run needs of its tasks besides their evaluation.

    Attributes:
        name: its name in configs, journals and tables.
    """

    name: str

    def problems(self, split: Split | None) -> Sequence[str]:
        """A digest of every problem, in order.

        Args:
            split: the problems; None is the train and the validation problems together.
        """
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
        ids: the generated tokens; empty if the generator has none to show.
    """

    text: str
    tokens: int
    finish: Literal["stop", "length", "refused"]
    dropped: int = 0
    ids: tuple[int, ...] = ()


@dataclasses.dataclass
class TokenCounts:
    """What an engine has computed for one individual; its FLOPs follow from it.

    Models that segment images count in images: ``computed`` are the images whose masks were predicted, ``attended`` those that
    the image encoder embedded. The other fields are 0.

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

    def submit(
        self,
        conversation: Hashable,
        messages: Sequence[Message],
        max_new_tokens: int,
        *,
        individual: int = 0,
        drafts: Sequence[Sequence[int]] = (),
    ) -> None:
        """Queues a request for one reply.

        Args:
            conversation: id of the conversation, which must have no other request in progress.
            messages: the whole conversation so far.
            max_new_tokens: the most tokens of the reply.
            individual: index of the individual whose weights generate the reply, if a population is loaded.
            drafts: token ids of replies that this one may repeat in part, the likeliest first. They must not change the reply;
                an implementation may ignore them. Callers leave them out where there are none.
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


class Likelihood(NamedTuple):
    """How likely a continuation is after its context.

    Attributes:
        logprob: the sum of the natural logarithms of its tokens' probabilities. Lengths are not taken into account.
        tokens: the tokens of the continuation.
        greedy: whether every token is the likeliest after those before it; of equally likely ones, the first counts.
        dropped: tokens cut from the beginning of the context, because the pair was too long.
    """

    logprob: float
    tokens: int
    greedy: bool
    dropped: int = 0


@dataclasses.dataclass(frozen=True)
class Question:
    """A problem that is answered by comparing log-likelihoods.

    Attributes:
        context: the text before the answer, with solved problems before it, if there are any.
        choices: the possible continuations of the context, with their leading space.
        answer: the index of the right one.
    """

    context: str
    choices: tuple[str, ...]
    answer: int


@runtime_checkable
class Scorer(Protocol):
    """Computes log-likelihoods of texts, without knowledge of tasks. The batch of a pair must not change its result."""

    def score(self, pairs: Sequence[tuple[str, str]], *, individual: int = 0) -> list[Likelihood]:
        """The log-likelihood of every continuation, given its context.

        Args:
            pairs: contexts and continuations.
            individual: index of the individual whose weights are used, if a population is loaded.

        Raises:
            InputError: a continuation has no token, or more than the model has positions.
            NonFiniteError: the logits of the individual are not finite.
        """
        ...


@runtime_checkable
class LikelihoodTask(Task, Protocol):
    """A task whose problems are answered by log-likelihoods, beside the episodes that demonstrations are made of."""

    def questions(self, split: Split) -> Sequence[Question]:
        """A question for each problem of the split, in the order of the episodes."""
        ...

    def outcome(self, question: Question, likelihoods: Sequence[Likelihood]) -> Outcome:
        """The result of a question.

        Args:
            question: the question.
            likelihoods: the likelihoods of its choices, in order.
        """
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
        replies: the token ids of every reply, if the generator shows them.
    """

    score: Score
    messages: tuple[Message, ...]
    tokens: int
    rounds: int
    dropped: int = 0
    replies: tuple[tuple[int, ...], ...] = ()
