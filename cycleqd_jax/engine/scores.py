"""Log-likelihoods of given texts: what callers ask, what they get, and how continuations of one context are packed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from cycleqd_jax.engine.requests import whole_numbers
from cycleqd_jax.types import InputError, Likelihood

__all__ = [
    "TOP",
    "Bundle",
    "Found",
    "Part",
    "Target",
    "TokenLogprobs",
    "bundles_of",
    "checked_pairs",
    "checked_texts",
    "joined",
    "rolling_windows",
    "token_logprobs",
    "totals",
]

TOP = 20
"""The maximum number of alternatives of a token whose log-probabilities are computed."""


class TokenLogprobs(NamedTuple):
    """How likely each token of a text is after those before it.

    Attributes:
        logprobs: the natural logarithm of the probability of each token but the first.
        top: for each token but the first the likeliest tokens at its place and their log-probabilities, the likeliest first.
    """

    logprobs: tuple[float, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]


class Found(NamedTuple):
    """What was computed for a target.

    Attributes:
        pair: the number of its pair.
        logprob: its log-likelihood.
        greedy: whether it is the likeliest token.
        top: the likeliest tokens at its place and their log-likelihoods, the likeliest first.
    """

    pair: int
    logprob: float
    greedy: bool
    top: tuple[tuple[int, float], ...]


class Target(NamedTuple):
    """A token whose log-likelihood is computed.

    Attributes:
        at: the place of the token before it in the packed tokens.
        token: its id.
        pair: the number of its pair.
    """

    at: int
    token: int
    pair: int


class Part(NamedTuple):
    """What one chunk of a bundle holds.

    Attributes:
        trunk: the bundle's own columns of the context, which follow the shared columns.
        branch: for each token of the chunk the column with which its continuation begins; 0 for the context.
        targets: the wanted tokens; ``at`` counts from the chunk's first token.
    """

    trunk: int
    branch: tuple[int, ...]
    targets: tuple[Target, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """Continuations of one context, packed into one sequence: the context, then every continuation without its last token.

    Attributes:
        context: the trunk.
        tokens: all tokens.
        branch: for each token the place at which its continuation begins; 0 for the context.
        targets: the wanted tokens, ordered by ``at``.
    """

    context: tuple[int, ...]
    tokens: tuple[int, ...]
    branch: tuple[int, ...]
    targets: tuple[Target, ...]

    @classmethod
    def of(cls, context: tuple[int, ...], continuations: Sequence[tuple[int, tuple[int, ...]]]) -> Bundle:
        """Packs continuations, each with the number of its pair."""
        tokens, branch = [*context], [0] * len(context)
        first = [Target(len(context) - 1, continuation[0], pair) for pair, continuation in continuations]
        others: list[Target] = []
        for pair, continuation in continuations:
            start = len(tokens)
            others += [Target(start + i, token, pair) for i, token in enumerate(continuation[1:])]
            tokens += continuation[:-1]
            branch += [start] * (len(continuation) - 1)
        return cls(context, tuple(tokens), tuple(branch), (*first, *others))

    def parts(self, shared: int, size: int) -> list[Part]:
        """The chunks of ``size`` tokens after the first ``shared`` ones, which are a part of the context."""
        trunk = len(self.context) - shared
        parts = []
        for start in range(shared, len(self.tokens), size):
            branch = (max(column - shared, 0) for column in self.branch[start : start + size])
            here = (target for target in self.targets if start <= target.at < start + size)
            parts.append(Part(trunk, tuple(branch), tuple(target._replace(at=target.at - start) for target in here)))
        return parts


def checked_pairs(
    pairs: Sequence[tuple[Sequence[object], Sequence[object]]], *, vocab_size: int, max_len: int
) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Contexts and continuations as they are scored, and the tokens cut from the beginning of each context.

    The last token of a continuation is not an input of the model, so a pair may have ``max_len + 1`` tokens.

    Raises:
        InputError: an empty context or continuation, an id outside the vocabulary, a continuation of more than ``max_len``
            tokens, or a number that is not whole.
    """
    found = []
    for number, (context, continuation) in enumerate(pairs):
        before, after = (whole_numbers("tokens", ids) for ids in (context, continuation))
        if not before or not after:
            raise InputError(
                f"expected a context and a continuation of at least one token each, got {len(before)} and {len(after)} tokens "
                f"in pair {number}; begin an empty context with the bos token, and drop an empty continuation"
            )
        low, high = min(*before, *after), max(*before, *after)
        if not 0 <= low <= high < vocab_size:
            raise InputError(
                f"expected token ids below {vocab_size}, got {low} to {high} in pair {number}; check that the tokenizer "
                "belongs to the model"
            )
        if len(after) > max_len:
            raise InputError(
                f"expected a continuation of at most max_len = {max_len} tokens, got {len(after)} in pair {number}; shorten "
                "it, or score it with Engine.score_rolling"
            )
        dropped = max(len(before) + len(after) - 1 - max_len, 0)
        found.append((before[dropped:], after, dropped))
    return found


def bundles_of(pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...], int]], *, most: int, max_len: int) -> list[Bundle]:
    """Bundles of the pairs that have the same context, ordered by their contexts.

    Args:
        pairs: contexts and continuations of :func:`checked_pairs`.
        most: the most continuations of a bundle.
        max_len: the most tokens of a bundle.
    """
    contexts: dict[tuple[int, ...], list[int]] = {}
    for number, (context, _, _) in enumerate(pairs):
        contexts.setdefault(context, []).append(number)
    bundles = []
    for context, numbers in sorted(contexts.items()):
        part: list[tuple[int, tuple[int, ...]]] = []
        length = len(context)
        for number in numbers:
            continuation = pairs[number][1]
            if part and (len(part) == most or length + len(continuation) - 1 > max_len):
                bundles.append(Bundle.of(context, part))
                part, length = [], len(context)
            part.append((number, continuation))
            length += len(continuation) - 1
        bundles.append(Bundle.of(context, part))
    return bundles


def totals(pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...], int]], found: Iterable[Found]) -> list[Likelihood]:
    """The likelihood of each pair.

    Args:
        pairs: contexts and continuations of :func:`checked_pairs`.
        found: one for every target.
    """
    logprobs: list[list[float]] = [[] for _ in pairs]
    greedy = [True] * len(pairs)
    for one in found:
        logprobs[one.pair].append(one.logprob)
        greedy[one.pair] &= one.greedy
    return [
        Likelihood(math.fsum(logprobs[i]), len(continuation), greedy[i], dropped)
        for i, (_, continuation, dropped) in enumerate(pairs)
    ]


def checked_texts(
    texts: Sequence[Sequence[object]], top: object, *, vocab_size: int, max_len: int
) -> tuple[list[tuple[tuple[int, ...], tuple[int, ...], int]], list[int], int]:
    """Texts as pairs of the first token and the others, and how many alternatives of each token are computed.

    Returns:
        The pairs of the texts that have two tokens or more, as of :func:`checked_pairs`; the numbers of these texts; and the
        number of alternatives.

    Raises:
        InputError: an empty text, one of more than ``max_len + 1`` tokens, an id outside the vocabulary, more than :data:`TOP`
            alternatives, or a number that is not whole.
    """
    (most,) = whole_numbers("alternatives", [top])
    if not 0 <= most <= min(TOP, vocab_size):
        raise InputError(f"expected 0 to {min(TOP, vocab_size)} alternatives of each token, got {most}; correct the number")
    ids = [whole_numbers("tokens", text) for text in texts]
    for number, text in enumerate(ids):
        if not 1 <= len(text) <= max_len + 1 or not 0 <= min(text) <= max(text) < vocab_size:
            raise InputError(
                f"expected 1 to {max_len + 1} token ids below {vocab_size}, got {len(text)} tokens or others in text {number}; "
                "correct it"
            )
    numbers = [number for number, text in enumerate(ids) if len(text) > 1]
    return [(ids[number][:1], ids[number][1:], 0) for number in numbers], numbers, most


def token_logprobs(count: int, numbers: Sequence[int], found: Iterable[Found], top: int) -> list[TokenLogprobs]:
    """The log-probabilities of the tokens of each text.

    Args:
        count: how many texts there are.
        numbers: the numbers of the texts with two tokens or more (:func:`checked_texts`).
        found: one for every target; those of one pair in the order of its tokens.
        top: alternatives of each token.
    """
    parts: list[list[Found]] = [[] for _ in range(count)]
    for one in found:
        parts[numbers[one.pair]].append(one)
    return [TokenLogprobs(tuple(o.logprob for o in part), tuple(o.top[:top] for o in part)) for part in parts]


def joined(parts: Sequence[Likelihood]) -> Likelihood:
    """The likelihood of a text, of those of its windows."""
    logprob = math.fsum(part.logprob for part in parts)
    return Likelihood(logprob, sum(part.tokens for part in parts), all(part.greedy for part in parts))


def rolling_windows(tokens: Sequence[int], first: int, max_len: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Contexts and continuations that together score every token of a text once, as lm-evaluation-harness divides it.

    The first window has ``max_len`` tokens after the token ``first``. Every other window has the next ``max_len`` tokens after
    one token of context. The last one has fewer new tokens, and the more context.

    Args:
        tokens: the text; none gives no window.
        first: the context of the first window, the bos token as a rule.
        max_len: the most input tokens of a window.

    >>> from cycleqd_jax.engine import rolling_windows
    >>> [*rolling_windows([1, 2, 3, 4, 5], first=0, max_len=3)]
    [((0,), (1, 2, 3)), ((2, 3), (4, 5))]
    """
    padded = (first, *tokens)
    for start in range(0, len(tokens), max_len):
        end = min(start + max_len, len(tokens))
        begin = 0 if start == 0 else max(end - max_len, 0)
        yield padded[begin : start + 1], padded[start + 1 : end + 1]
