"""Decides whether a result is correct, by the rules of EvalPlus. Runs in the sandbox.

A result must equal the expected one, or be close to it if floats are expected. Some functions have rules of their own. EvalPlus
accepts every result of ``are_equivalent`` and every 0 of ``sum_div``; the rules here accept only the other readings of these
two problems, so that a function that returns a constant fails.
"""

import math

__all__ = ["agrees", "close"]

_RTOL = 1e-7
_FLOAT_ATOL = 1e-6


def agrees(name, arguments, output, expected, atol):
    """Whether ``output`` is correct.

    Args:
        name: name of the function if its problem has a rule of its own, else None.
        arguments: returns a fresh copy of the arguments of the call.
        output: the result of the program.
        expected: the result of the gold program.
        atol: absolute tolerance; with 0, only floats have a tolerance.

    Returns:
        Whether the result is correct, and the tolerance for the next calls: as in EvalPlus, the tolerance of floats holds for
        all calls after the first one with a float.
    """
    if name == "find_zero":
        return abs(_polynomial(arguments()[0], output)) <= atol, atol
    exact = output == expected
    if name in _RULES:
        exact = _RULES[name](exact, arguments(), output, expected)
    if atol == 0 and _floats(expected):
        atol = _FLOAT_ATOL
    if not exact and atol != 0:
        return close(output, expected, atol), atol
    return bool(exact), atol


def close(output, expected, atol):
    """Whether numbers, or nested lists of numbers, of the same type and shape are close in the sense of ``numpy.allclose``."""
    return type(output) is type(expected) and _near(output, expected, atol)


def _near(output, expected, atol):
    if isinstance(expected, list | tuple):
        if not isinstance(output, list | tuple) or len(output) != len(expected):
            return False
        return all(_near(left, right, atol) for left, right in zip(output, expected, strict=True))
    if not (_number(output) and _number(expected)):
        return False
    if output == expected:
        return True
    return bool(abs(output - expected) <= atol + _RTOL * abs(expected)) and abs(expected) != math.inf


def _number(value):
    if isinstance(value, int):
        return abs(value) < 1 << 64  # numpy has no larger integers
    return isinstance(value, float | complex)


def _floats(value):
    if isinstance(value, list | tuple) and value:
        return all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _polynomial(coefficients, x):
    return sum(c * math.pow(x, power) for power, c in enumerate(coefficients))


def _as_sets(exact, arguments, output, expected):
    return set(output) == set(expected)


def _found(exact, arguments, output, expected):
    """Any value but None and False may stand for a match."""
    expected = expected is not None
    return output == expected if isinstance(output, bool) else (output is not None) == expected


def _pyramid(exact, arguments, output, expected):
    """The height may be read as that of the pyramid instead of that of its sides."""
    edge, height = arguments
    return exact or output == round(edge**2 + 2 * edge * math.sqrt((edge / 2) ** 2 + height**2))


def _digit_distance(exact, arguments, output, expected):
    """The distance may be taken digit by digit, with leading zeros on the shorter number."""
    texts = [str(number) for number in arguments]
    width = max(map(len, texts))
    pairs = zip(*(text.zfill(width) for text in texts), strict=True)
    return exact or output == sum(abs(int(a) - int(b)) for a, b in pairs)


def _equal_divisor_sums(exact, arguments, output, expected):
    """The sums may be those of the proper divisors, each counted once."""
    return exact or output == (_proper_sum(arguments[0]) == _proper_sum(arguments[1]))


def _divisor_sum(exact, arguments, output, expected):
    """Numbers below 2 have no proper divisors, although the gold program returns 1."""
    return exact or (arguments[0] < 2 and output == 0)


def _proper_sum(number):
    total = 0
    for low in range(1, math.isqrt(max(number, 0)) + 1):
        if number % low == 0:
            total += sum({low, number // low} - {number})
    return total


_RULES = {
    **dict.fromkeys(
        ("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum", "intersection_array",
         "find_dissimilar", "Diff"),
        _as_sets,
    ),
    **dict.fromkeys(("check_str", "text_match_three", "text_starta_endb"), _found),
    "surface_Area": _pyramid,
    "digit_distance_nums": _digit_distance,
    "are_equivalent": _equal_divisor_sums,
    "sum_div": _divisor_sum,
}  # fmt: skip
