"""The encoding of values between a program and its judge, and the comparison of results."""

from __future__ import annotations

import collections
import json
import math
import re
import socket
import threading
import time
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd_jax.tasks.judges import inside, values
from cycleqd_jax.tasks.judges.oracles import agrees, close
from cycleqd_jax.tasks.judges.values import Opaque, decode, encode


def test_a_call_has_its_own_limit_for_its_arguments():
    ours, theirs = socket.socketpair()
    judge, program = inside.Link(ours), inside.Link(theirs)
    program.send(1)
    assert judge.receive(time.monotonic() + 0.3) == 1

    def answer():
        time.sleep(0.6)  # longer than the limit of the call before
        program.receive()

    thread = threading.Thread(target=answer)
    thread.start()
    judge.send("x" * 5_000_000, time.monotonic() + 30)
    thread.join()
    with pytest.raises(inside.Late):
        judge.send("x" * 5_000_000, time.monotonic() + 0.1)
    ours.close()
    theirs.close()


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.complex_numbers(allow_nan=False)
    | st.binary()
    | st.fractions()
    | st.decimals(allow_nan=False)
)
HASHABLE = st.recursive(LEAVES, lambda s: st.lists(s).map(tuple) | st.frozensets(s), max_leaves=8)
VALUES = st.recursive(
    LEAVES,
    lambda s: (
        st.lists(s)
        | st.lists(s).map(tuple)
        | st.dictionaries(HASHABLE, s)
        | st.sets(HASHABLE)
        | st.lists(s).map(collections.deque)
    ),
    max_leaves=20,
)


def across(value):
    return decode(json.loads(json.dumps(encode(value))))


@pytest.mark.exhaustive
@given(VALUES)
@settings(max_examples=100, deadline=None)
def test_data_is_decoded_unchanged(value):
    copy = across(value)
    assert copy == value
    assert type(copy) is type(value)


def test_derived_classes_are_decoded_as_built_in_ones():
    class Mine(int):
        def __eq__(self, other):
            return True

        __hash__ = None  # type: ignore[assignment]

    class Named(str):
        def __str__(self):
            return "other"

    pair = collections.namedtuple("pair", "a b")
    assert across([Mine(3), Named("x"), pair(1, 2)]) == [3, "x", (1, 2)]
    assert type(across(Mine(3))) is int
    assert across(collections.Counter("aab")) == {"a": 2, "b": 1}
    assert across(range(3)) == range(3)
    assert across({1: 2}.keys()) == {1}
    assert [*across(iter([1, 2]))] == [1, 2]
    assert across(math.nan) != 0
    assert across(10**5000) == 10**5000
    assert across("\ud800") == "\ud800"


@pytest.mark.parametrize("value", [re.match("a", "a"), print, int, object(), {}.values(), NotImplemented])
def test_values_that_are_not_data_equal_nothing(value):
    copy = across(value)
    assert isinstance(copy, Opaque)
    assert copy not in (value, None, True, across(value))


def test_large_lists_are_digested(monkeypatch):
    monkeypatch.setattr(values, "_MOST_ITEMS", 100)
    big = [(n, str(n)) for n in range(200)]
    assert across(big) == across(list(big))
    assert across(big) != across([*big[:-1], (199, "198")])
    assert across(big) != across(tuple(big))
    assert across(big) != big
    assert len(json.dumps(encode(big))) < 200
    with pytest.raises(ValueError, match="too large"):
        encode(set(range(200)))


@pytest.mark.parametrize(
    "message", [{}, ["x"], [], [3], ["d", 1], ["s", ["l"]], ["n", "?"], ["n"], ["b", "zz"], ["c", "x"], ["f", 1, 0], [["l"]]]
)
def test_invalid_messages_are_refused(message):
    with pytest.raises((ValueError, TypeError, IndexError, ArithmeticError)):
        decode(message)


# ------------------------------------------------------------------------------------------------ oracles


def right(output, expected, atol=0.0, name=None, arguments=()):
    return agrees(name, lambda: [*arguments], output, expected, atol)[0]


@pytest.mark.parametrize(
    ("output", "expected", "atol", "verdict"),
    [
        (3, 3, 0, True),
        (3.0, 3, 0, True),
        (True, 1, 0, True),
        ([1], (1,), 0, False),
        (0.1 + 0.2, 0.3, 0, True),
        (0.3001, 0.3, 0, False),
        (0.30005, 0.3, 1e-4, True),
        ([0.1 + 0.2], [0.3], 0, True),
        ((0.1 + 0.2,), [0.3], 0, False),
        ([0.3, 1.0], [0.3], 0, False),
        (1, 1.0000001, 0, False),  # equal to a float as a float only
        (math.inf, math.inf, 0, True),
        (math.inf, 1.0, 0, False),
        (1.0, math.inf, 0, False),
        (math.nan, math.nan, 0, False),
        (None, 1.0, 0, False),
        ("1.0", 1.0, 1e-4, False),
        ([[0.1 + 0.2]], [[0.3]], 1e-6, True),
        ([[0.1 + 0.2]], [[0.3]], 0, False),  # as in EvalPlus, floats deeper down are compared exactly
        (1 + 1e-9j, 1 + 0j, 1e-4, True),
        (10**20, 10**20 + 1, 1e-4, False),
        ({1: 0.1 + 0.2}, {1: 0.3}, 1e-4, False),
    ],
)
def test_tolerance(output, expected, atol, verdict):
    assert right(output, expected, atol) is verdict


def test_the_tolerance_of_floats_holds_for_later_calls():
    assert agrees(None, list, 1, 1, 0) == (True, 0)
    assert agrees(None, list, 1.0, 1.0, 0) == (True, 1e-6)
    assert agrees(None, list, 1.0, 1.0, 1e-4) == (True, 1e-4)


NUMBERS = st.floats(width=32) | st.integers(-(2**40), 2**40) | st.complex_numbers(max_magnitude=1e6)
PAIRS = st.tuples(NUMBERS, NUMBERS) | NUMBERS.flatmap(
    lambda n: st.tuples(st.just(n), st.sampled_from([0.0, 1e-7, 9e-7, 1.1e-6, 1e-5, 1.0]).map(lambda d: n + d))
)


@pytest.mark.exhaustive
@given(st.lists(PAIRS, min_size=1, max_size=4), st.sampled_from([1e-6, 1e-4]))
@settings(max_examples=300, deadline=None)
def test_close_equals_numpys_allclose(pairs, atol):
    output, expected = map(list, zip(*pairs, strict=True))
    with np.errstate(all="ignore"):
        reference = bool(np.allclose(output, expected, rtol=1e-7, atol=atol))
    margins = [abs(abs(a - b) - (atol + 1e-7 * abs(b))) for a, b in pairs if np.isfinite(a) and np.isfinite(b)]
    if all(margin > 1e-9 * max(1, abs(b)) for margin, (_, b) in zip(margins, pairs, strict=False)):
        assert close(output, expected, atol) == reference


def test_rules_of_special_problems():
    assert right((5, 4), (4, 5), name="similar_elements")
    assert not right((5, 3), (4, 5), name="similar_elements")
    match = Opaque("Match")
    assert right(match, match, name="check_str")
    assert right(True, match, name="check_str")
    assert right(None, None, name="check_str")
    assert not right(match, None, name="check_str")
    assert not right(False, match, name="check_str")
    assert right(35, 99, name="surface_Area", arguments=(3, 4))
    assert right(247, 99, name="digit_distance_nums", arguments=(1, 248)) is False
    assert right(2 + 4 + 7, 99, name="digit_distance_nums", arguments=(1, 248))
    assert right(True, False, name="are_equivalent", arguments=(23, 47))
    assert right(False, False, name="are_equivalent", arguments=(23, 47))
    assert not right(True, False, name="are_equivalent", arguments=(36, 57))
    assert right(0, 1, name="sum_div", arguments=(1,))
    assert not right(0, 7, name="sum_div", arguments=(8,))
    assert right(-0.5, 99, 1e-4, "find_zero", ([1, 2],))
    assert not right(-0.49, 99, 1e-4, "find_zero", ([1, 2],))
    with pytest.raises(TypeError):
        right(None, 99, 1e-4, "find_zero", ([1, 2],))


def test_fractions_and_decimals():
    assert right(Fraction(1, 2), 0.5)
    assert right(Decimal("0.5"), 0.5)
    assert not right(Decimal("0.5000000001"), 0.5)
