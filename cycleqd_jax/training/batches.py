"""Batches of conversations: their order, their padding, and the shares of several tasks in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from cycleqd_jax.models import llama
from cycleqd_jax.types import InputError

__all__ = ["Dispatch", "Example", "check_examples", "dispatches", "mixture"]

Example = tuple[Sequence[int], Sequence[int]]
"""The token ids of a conversation, and a mask: 1 for a token to learn (of a reply), otherwise 0."""

_MULTIPLE, _GROUPED_MULTIPLE = 16, 32  # sequences are padded to a multiple of this, for few shapes and few compilations
_OFF_CPUS_MULTIPLE = 128  # compiling for another length takes longer there than computing padding
_WINDOW = 16  # batches; their examples are sorted by length together


class Dispatch(NamedTuple):
    """The batches of consecutive steps, padded to the same length; steps beyond ``count`` are empty.

    Attributes:
        tokens: token ids, right-padded with 0.
        mask: 1 for a token to learn, otherwise 0.
        count: the number of steps.
        seen: the number of tokens, without padding.
        attended: the number of pairs of a token and a token that it attends to.
    """

    tokens: Int[np.ndarray, "step batch time"]
    mask: Float[np.ndarray, "step batch time"]
    count: int
    seen: int
    attended: int


def dispatches(
    examples: Sequence[Example],
    steps: int,
    batch_size: int,
    *,
    steps_per_dispatch: int = 16,
    group_by_length: bool = False,
    seed: int = 0,
) -> Iterator[Dispatch]:
    """The batches of a training. Examples are taken from consecutive random permutations.

    Args:
        examples: tokenised conversations, checked by :func:`check_examples`.
        steps: number of steps.
        batch_size: conversations per step.
        steps_per_dispatch: steps of one dispatch.
        group_by_length: batch conversations of similar length, one step per dispatch, to reduce padding.
        seed: the seed of the order.
    """
    indices = list(_batches(examples, steps, batch_size, group_by_length, seed))
    size = 1 if group_by_length else min(steps_per_dispatch, steps)
    multiple = _GROUPED_MULTIPLE if group_by_length else _MULTIPLE
    if jax.default_backend() != "cpu":
        multiple = _OFF_CPUS_MULTIPLE
    for first in range(0, steps, size):
        chosen = indices[first : first + size]
        lengths = [len(examples[i][0]) for batch in chosen for i in batch]
        shape = (size, batch_size, -(-max(lengths) // multiple) * multiple)
        tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        for step, batch in enumerate(chosen):
            for row, i in enumerate(batch):
                ids, learned = examples[i]
                tokens[step, row, : len(ids)] = ids
                mask[step, row, : len(ids)] = learned
        attended = sum(length * (length + 1) // 2 for length in lengths)
        yield Dispatch(tokens, mask, len(chosen), sum(lengths), attended)


def _batches(
    examples: Sequence[Example], steps: int, batch_size: int, group_by_length: bool, seed: int
) -> Iterator[np.ndarray]:
    """The indices of the examples of every step, Int ``[batch]``, from consecutive random permutations.

    With ``group_by_length`` the examples of a window of steps are sorted by length and cut into batches, and the batches are
    shuffled.
    """
    rng = np.random.default_rng(seed)
    order = np.empty(0, np.int64)
    left = steps
    while left:
        now = min(left, _WINDOW) if group_by_length else 1
        left -= now
        while len(order) < now * batch_size:
            order = np.concatenate([order, rng.permutation(len(examples))])
        chosen, order = np.split(order, [now * batch_size])
        if group_by_length:
            chosen = chosen[np.argsort([len(examples[i][0]) for i in chosen], kind="stable")]
        batches = chosen.reshape(now, batch_size)
        yield from rng.permutation(batches) if group_by_length else batches


def mixture(examples: Mapping[str, Sequence[Example]], shares: Mapping[str, float], count: int, seed: int = 0) -> list[Example]:
    """Examples of several tasks, each with its share of the number, rounded by the largest remainder.

    The examples of a task are taken from consecutive random permutations, so that the numbers of their uses differ by one at
    most.

    Args:
        examples: tokenised conversations of every task.
        shares: the share of each task in the result; only ratios matter.
        count: the number of examples: with steps × batch size, a training takes each of them once.
        seed: the seed of the choice.

    Returns:
        The examples, sorted by task.

    Raises:
        InputError: a share is negative, none is positive, or a task with a positive share has no example.

    >>> from cycleqd_jax.training import mixture
    >>> mixture({"a": [([1, 2], [0, 1])], "b": [([3, 4], [0, 1])]}, {"a": 2.0, "b": 1.0}, count=4)
    [([1, 2], [0, 1]), ([1, 2], [0, 1]), ([1, 2], [0, 1]), ([3, 4], [0, 1])]
    """
    total = sum(shares.values())
    for task, share in shares.items():
        if share < 0 or not total > 0:
            raise InputError(f"expected shares of at least 0, one of them above 0, got {dict(shares)}; correct them")
        if share > 0 and not examples[task]:
            raise InputError(f"expected training examples of the task {task!r}, got none; check the training data")
    exact = {task: share / total * count for task, share in shares.items()}
    counts = {task: int(number) for task, number in exact.items()}
    by_remainder = sorted((task for task in shares if shares[task] > 0), key=lambda task: counts[task] - exact[task])
    for task in by_remainder[: count - sum(counts.values())]:
        counts[task] += 1
    rng = np.random.default_rng(seed)
    chosen: list[Example] = []
    for task, number in counts.items():
        order = np.empty(0, np.int64)
        while len(order) < number:
            order = np.concatenate([order, rng.permutation(len(examples[task]))])
        chosen += [examples[task][i] for i in order[:number]]
    return chosen


def check_examples(examples: Sequence[Example], config: llama.LlamaConfig) -> None:
    """Checks that a model can learn from examples.

    Args:
        examples: tokenised conversations.
        config: the model.

    Raises:
        InputError: there is none; or one has fewer than two tokens, no token to learn, too many tokens for the model, or ids
            that it does not have.
    """
    if not examples:
        raise InputError("expected at least one training example, got none; check the training data")
    for number, (ids, mask) in enumerate(examples):
        if len(ids) != len(mask) or len(ids) < 2 or not any(mask[1:]):
            raise InputError(
                "expected at least 2 tokens, as many mask values and a token to learn after the first, got "
                f"{len(ids)} tokens and {len(mask)} mask values, {sum(map(bool, mask))} of them 1, in training example "
                f"{number}; correct the data"
            )
        if len(ids) > config.context_length:
            raise InputError(
                f"expected at most context_length = {config.context_length} tokens, got {len(ids)} in training example "
                f"{number}; shorten the data or enlarge the model's context"
            )
        if not 0 <= min(ids) <= max(ids) < config.vocab_size:
            raise InputError(
                f"expected token ids from 0 to {config.vocab_size - 1}, got {min(ids)} to {max(ids)} in training example "
                f"{number}; use the model's own tokenizer"
            )
