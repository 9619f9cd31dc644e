"""Batches of several tasks: shares, uses of every conversation, and dispatches."""

from __future__ import annotations

import collections
import doctest

import numpy as np
import pytest

from cycleqd_jax.training import batches
from cycleqd_jax.training.batches import dispatches, mixture
from cycleqd_jax.types import InputError

EXAMPLES = {task: [([start + i, 1], [0, 1]) for i in range(size)] for task, start, size in (("a", 0, 7), ("b", 100, 3))}


@pytest.mark.parametrize(
    ("shares", "count", "expected"),
    [
        ({"a": 1, "b": 1}, 10, (5, 5)),
        ({"a": 1, "b": 1}, 11, (6, 5)),  # ties by order
        ({"a": 0.2, "b": 0.8}, 128, (26, 102)),
        ({"a": 3, "b": 0}, 20, (20, 0)),
        ({"b": 1.0}, 4, (0, 4)),
        ({"a": 1, "b": 999}, 10, (0, 10)),
    ],
)
def test_shares(shares, count, expected):
    chosen = mixture(EXAMPLES, shares, count, seed=3)
    uses = collections.Counter(ids[0] for ids, _ in chosen)
    assert (sum(uses[i] for i in range(7)), sum(uses[100 + i] for i in range(3))) == expected
    for examples in EXAMPLES.values():
        of_each = [uses[ids[0]] for ids, _ in examples]
        assert max(of_each) - min(of_each) <= 1


def test_a_mixture_depends_on_its_seed():
    shares = {"a": 1.0, "b": 1.0}
    assert mixture(EXAMPLES, shares, 5, seed=1) == mixture(EXAMPLES, shares, 5, seed=1)
    assert mixture(EXAMPLES, shares, 5, seed=1) != mixture(EXAMPLES, shares, 5, seed=2)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"a": 0.0, "b": 0.0}, r"shares of at least 0, one of them above 0, got {'a': 0.0, 'b': 0.0}"),
        ({"a": 2.0, "b": -1.0}, r"got {'a': 2.0, 'b': -1.0}; correct them"),
        ({"a": 1.0, "c": 1.0}, "training examples of the task 'c', got none"),
    ],
)
def test_refused_shares(shares, message):
    with pytest.raises(InputError, match=message):
        mixture({**EXAMPLES, "c": []}, shares, 8)


def test_a_training_takes_every_example_of_a_mixture_once():
    chosen = mixture(EXAMPLES, {"a": 1.0, "b": 2.0}, 5 * 6)
    seen: collections.Counter[int] = collections.Counter()
    for dispatch in dispatches(chosen, 5, 6, steps_per_dispatch=2, seed=4):
        assert dispatch.tokens.shape == dispatch.mask.shape == (2, 6, 16)
        assert not dispatch.tokens[dispatch.count :].any()
        assert dispatch.seen == 12 * dispatch.count
        seen.update(dispatch.tokens[: dispatch.count, :, 0].ravel().tolist())
        np.testing.assert_array_equal(dispatch.mask[: dispatch.count, :, 1], 1)
    assert seen == collections.Counter(ids[0] for ids, _ in chosen)


@pytest.mark.parametrize(
    ("backend", "grouped", "width"), [("cpu", False, 48), ("cpu", True, 64), ("gpu", False, 128), ("gpu", True, 128)]
)
def test_batches_are_padded_to_few_lengths(monkeypatch, backend, grouped, width):
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    examples = [([1] * 33, [0] * 32 + [1])] * 4
    for dispatch in dispatches(examples, 4, 2, group_by_length=grouped):
        assert dispatch.tokens.shape[1:] == (2, width)
        assert dispatch.mask.sum() == 2 * dispatch.count
        assert not dispatch.tokens[..., 33:].any()


def test_examples_in_docstrings():
    failed, tried = doctest.testmod(batches)
    assert tried
    assert not failed
