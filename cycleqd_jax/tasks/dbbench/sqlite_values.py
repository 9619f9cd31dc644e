"""MySQL's comparisons and conversions for SQLite. Runs in the sandbox, see ``sqlite_server.py``.

The functions receive values that the translation has already converted: texts as ``str``, numbers as ``int`` or ``float``.
Decimal numbers are floats; the translation has their number of digits after the point. Unless a function states
otherwise, it is not called with NULL: the result is then NULL.
"""

import decimal
import functools
import math
import re
import signal
import time
import unicodedata

LONGEST_TEXT = 4_000_000
DEADLINE = [math.inf]  # when the statement in progress has to end
FUNCTIONS = {}
VARYING = set()  # names of functions whose result is not a function of their arguments
NULL_AWARE = set()  # names of functions that are called with NULL
LOCALE_DIGITS = decimal.Context(prec=60, rounding=decimal.ROUND_HALF_UP)


class Fault(Exception):
    """An error of a function, with the message that MySQL would show."""


def sql(name, *, nulls=False, varying=False):
    """Registers a function under a name."""

    def add(function):
        FUNCTIONS[name] = function
        if nulls:
            NULL_AWARE.add(name)
        if varying:
            VARYING.add(name)
        return function

    return add


class Pattern:
    """A regular expression that is compiled when it is first used: a database process starts for every episode."""

    def __init__(self, pattern):
        self.pattern = pattern

    @functools.cached_property
    def match(self):
        """``re.Pattern.match``."""
        return re.compile(self.pattern, re.ASCII).match


def fitting(length):
    """Raises an error for a text that is too long."""
    if length > LONGEST_TEXT:
        raise Fault(f"1235 (42000): This version of MySQL doesn't yet support 'texts of more than {LONGEST_TEXT} bytes'")


# ------------------------------------------------------------------------------------------------ comparison


class Weights(dict):
    """The weight of every character in the collation utf8mb4_general_ci, computed when it is first needed."""

    def __missing__(self, code):
        weight = 0xFFFD if code > 0xFFFF else SPECIAL.get(code)
        if weight is None:
            base = chr(code)
            if code < 0x500 or 0x1E00 <= code < 0x2000:
                base = UNICODE.normalize("NFD", base)[0]
            upper = base.upper()
            # Characters that are newer than the collation have no upper case in it.
            newer = "Cn" in (UNICODE.category(chr(code)), UNICODE.category(upper[0]))
            weight = ord(base) if newer or len(upper) > 1 else ord(upper)
        self[code] = weight
        return weight


UNICODE = unicodedata.ucd_3_2_0
OWN = """
    19e 340 341 343 344 374 37e 385 387 3d9 3f5 48b 4c6 4ca 4ce 501 503 505 507 509 50b 50d 50f 1fbb 1fc1 1fc9
    1fcb 1fcd 1fce 1fcf 1fd3 1fdb 1fdd 1fde 1fdf 1fe3 1feb 1fed 1fee 1fef 1ff9 1ffb 1ffd 419
"""
# Weights that do not follow the rule of Weights, as MariaDB 10.11 gives them; those of OWN are the characters themselves.
SPECIAL = {int(code, 16): int(code, 16) for code in OWN.split()} | {
    0xDF: 0x53, 0x3F2: 0x3A3, 0x1F71: 0x1FBB, 0x1F73: 0x1FC9, 0x1F75: 0x1FCB, 0x1F77: 0x1FDB, 0x1F79: 0x1FF9,
    0x1F7B: 0x1FEB, 0x1F7D: 0x1FFB, 0x439: 0x419,
}  # fmt: skip
WEIGHTS = Weights()


@functools.lru_cache(4096)
def key(text):
    """A text that sorts as ``text`` does in utf8mb4_general_ci, apart from spaces at the end."""
    return text.upper() if text.isascii() else text.translate(WEIGHTS)


def padded_order(first, second):
    """-1, 0 or 1; the shorter text counts as if filled with spaces."""
    if first == second:
        return 0
    length = max(len(first), len(second))
    first, second = first.ljust(length), second.ljust(length)
    return (first > second) - (first < second)


def order(first, second):
    """Compares two texts as utf8mb4_general_ci does."""
    return padded_order(key(first), key(second))


def sort_key(text):
    """A key by which texts are grouped."""
    return key(text).rstrip(" ")


@sql("m_key")
def grouping_key(text):
    """A text that is equal for texts that MySQL groups together."""
    return sort_key(text)


@sql("m_like")
def like(text, pattern, escape, exact):
    """LIKE: ``%`` matches any text, ``_`` any character."""
    fold = (lambda character: character) if exact else key
    parts, index = [], 0
    while index < len(pattern):
        character = pattern[index]
        if character == escape and escape and index + 1 < len(pattern):
            index += 1
            parts.append((False, fold(pattern[index])))
        elif character in "%_":
            parts.append((True, character))
        else:
            parts.append((False, fold(character)))
        index += 1
    text = [fold(character) for character in text]
    at = part = 0
    back = None
    while at < len(text):
        if part < len(parts) and parts[part] == (True, "%"):
            back = part, at
            part += 1
        elif part < len(parts) and (parts[part][0] or parts[part][1] == text[at]):
            part += 1
            at += 1
        elif back is not None:
            back = back[0], back[1] + 1
            part, at = back[0] + 1, back[1]
        else:
            return 0
    return int(all(left == (True, "%") for left in parts[part:]))


@functools.lru_cache(256)
def compiled(pattern, exact):
    """A regular expression of MySQL as one of Python."""
    if not exact and re.search(r"\[:(?:upper|lower):\]", pattern):  # these classes distinguish case
        raise Fault("1235 (42000): This version of MySQL doesn't yet support '[:upper:] and [:lower:] without regard to case'")
    for posix, python in (
        ("[[:<:]]", r"\b(?=\w)"), ("[[:>:]]", r"\b(?<=\w)"), ("[:alpha:]", "a-zA-Z"), ("[:digit:]", "0-9"),
        ("[:alnum:]", "a-zA-Z0-9"), ("[:upper:]", "A-Z"), ("[:lower:]", "a-z"), ("[:space:]", r"\s"),
        ("[:punct:]", r"!-/:-@\[-`{-~"), ("[:blank:]", r" \t"), ("[:xdigit:]", "0-9a-fA-F"), ("[:word:]", r"\w"),
    ):  # fmt: skip
        pattern = pattern.replace(posix, python)
    if re.search(r"\[:\w+:\]|\\[hHRKXGQEpPC]|\(\?[R0-9&|C*]|\(\*", pattern):
        raise Fault("1235 (42000): This version of MySQL doesn't yet support 'this regular expression'")
    pattern = re.sub(r"\\z", r"\\Z", pattern)
    try:
        return re.compile(pattern, 0 if exact else re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise Fault(f"1139 (42000): Got error '{error}' from regexp") from None


def timed(work, text, pattern):
    """The result of ``work()``, which searches ``text``, or an error when the statement's time is over.

    Python's regular expressions notice signals, so a timer can end a search that would take hours.
    """
    if not text.isascii() and re.search(r"\[:(?:alpha|alnum|punct|word|upper|lower):\]", pattern):
        raise Fault("1235 (42000): This version of MySQL doesn't yet support 'classes of characters beyond ASCII'")
    left = DEADLINE[0] - time.monotonic()
    if left == math.inf:
        return work()

    def stop(*_):
        raise Fault("3024 (HY000): Query execution was interrupted, maximum statement execution time exceeded")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(left, 1e-6))
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@sql("m_regexp")
def regexp(text, pattern, exact):
    """REGEXP."""
    return int(timed(lambda: compiled(pattern, exact).search(text), text, pattern) is not None)


@sql("m_regexp_replace")
def regexp_replace(text, pattern, replacement):
    r"""REGEXP_REPLACE: ``\1`` is the first group."""

    def one(match):
        return re.sub(r"\\(.)", lambda m: (match[int(m[1])] or "") if m[1].isdecimal() else m[1], replacement)

    try:
        result = timed(lambda: compiled(pattern, False).sub(one, text), text, pattern)
    except IndexError:
        return None
    fitting(len(result))
    return result


@sql("m_regexp_substr")
def regexp_substr(text, pattern):
    """REGEXP_SUBSTR."""
    match = timed(lambda: compiled(pattern, False).search(text), text, pattern)
    return match.group() if match else ""


@sql("m_regexp_instr")
def regexp_instr(text, pattern):
    """REGEXP_INSTR."""
    match = timed(lambda: compiled(pattern, False).search(text), text, pattern)
    return match.start() + 1 if match else 0


# ------------------------------------------------------------------------------------------------ conversion

NUMBER = Pattern(r"[ \t\n\v\f\r]*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")
INTEGER = Pattern(r"[ \t\n\v\f\r]*([+-]?\d+)")


@sql("m_num")
def number(text):
    """The number at the begin of a text, as a float; 0 if there is none."""
    match = NUMBER.match(text)
    value = float(match[1]) if match else 0.0
    return value if math.isfinite(value) else math.copysign(1.7976931348623157e308, value)


@sql("m_int")
def integer(value):
    """A text or a number as a 64-bit integer."""
    if isinstance(value, str):
        match = INTEGER.match(value)
        value = int(match[1][:40]) if match else 0
    elif isinstance(value, float):
        value = int(decimal.Decimal(repr(value)).to_integral_value(decimal.ROUND_HALF_UP))
    return max(-(2**63), min(2**63 - 1, value))


@sql("m_rint")
def rint(value):
    """A double as an integer: halves to the even neighbour."""
    return max(-(2**63), min(2**63 - 1, round(value)))


@sql("m_unsigned")
def unsigned(value):
    """CAST … AS UNSIGNED."""
    value = integer(value)
    if value < 0:
        raise Fault("1235 (42000): This version of MySQL doesn't yet support 'unsigned integers above 9223372036854775807'")
    return value


@sql("m_natural")
def natural(value):
    """The result of arithmetic with an UNSIGNED integer."""
    if value < 0:
        raise Fault("1690 (22003): BIGINT UNSIGNED value is out of range")
    return value


def quantized(value, scale):
    """A number as ``Decimal`` with ``scale`` digits after the point; halves away from zero."""
    value = decimal.Decimal(repr(value) if isinstance(value, float) else value)
    return value.quantize(decimal.Decimal(1).scaleb(-scale), context=LOCALE_DIGITS)


@sql("m_dec")
def decimal_text(value, scale):
    """The text of a decimal number."""
    value = quantized(value, scale)
    return format(value if value else abs(value), "f")


@sql("m_exact")
def exact(value):
    """A decimal number without the noise of binary arithmetic."""
    return float(f"{value:.15g}") if isinstance(value, float) else value


@sql("m_cast_dec")
def cast_decimal(value, precision, scale):
    """CAST … AS DECIMAL."""
    if isinstance(value, str):
        match = NUMBER.match(value)
        value = decimal.Decimal(match[1]) if match else decimal.Decimal(0)
        if value.adjusted() > 60:
            value = decimal.Decimal(1).scaleb(60)
    elif isinstance(value, float):
        value = decimal.Decimal(repr(value))
    most = decimal.Decimal(1).scaleb(precision - scale) - decimal.Decimal(1).scaleb(-scale)
    if abs(value) <= most:
        value = decimal.Decimal(value).quantize(decimal.Decimal(1).scaleb(-scale), context=LOCALE_DIGITS)
    value = max(-most, min(most, value))
    return int(value) if scale == 0 and abs(value) < 2**63 else float(value)


@sql("m_dbl")
def double_text(value, scale):
    """The text of a double; scale -1 shows as many digits as needed."""
    if scale >= 0:
        return f"{value + 0.0:.{scale}f}"  # MySQL has no negative zero
    if not value:
        return "0"
    sign, digits, exponent = decimal.Decimal(repr(float(value))).as_tuple()
    digits = "".join(map(str, digits)).rstrip("0") or "0"
    exponent = decimal.Decimal(repr(float(value))).adjusted()
    if -15 <= exponent < 15:
        if exponent < 0:
            text = "0." + "0" * (-exponent - 1) + digits
        else:
            whole = digits[: exponent + 1].ljust(exponent + 1, "0")
            text = whole + ("." + digits[exponent + 1 :] if len(digits) > exponent + 1 else "")
    else:
        text = digits[0] + ("." + digits[1:] if len(digits) > 1 else "") + f"e{exponent}"
    return "-" * sign + text


@sql("m_cut")
def cut(text, length):
    """The first ``length`` characters."""
    return text[:length] if length >= 0 else text


@sql("m_finite")
def finite(value):
    """A double, or an error if it is infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise Fault("1690 (22003): DOUBLE value is out of range")
    return value
