"""MySQL's functions and operators of numbers, for SQLite. Runs in the sandbox, see ``sqlite_server.py``."""

import base64
import decimal
import hashlib
import math
import random
import time
import zlib

from cycleqd_jax.tasks.dbbench.sqlite_values import DEADLINE, Fault, quantized, sql


@sql("m_div")
def divided(first, second):
    """The operator /."""
    return first / second if second else None


@sql("m_div_dec")
def decimal_divided(first, second, digits):
    """The operator / of exact numbers: MySQL drops what follows ``digits`` digits."""
    if not second:
        return None
    quotient = decimal.Decimal(repr(first)) / decimal.Decimal(repr(second))
    return float(quotient.quantize(decimal.Decimal(1).scaleb(-digits), decimal.ROUND_DOWN, context=decimal.Context(prec=100)))


@sql("m_quotient")
def quotient_text(value, digits):
    """The text of a quotient."""
    return format(quantized(value, digits), "f") if value else "0"


@sql("m_intdiv")
def int_divided(first, second):
    """The operator DIV."""
    if not second:
        return None
    if isinstance(first, int) and isinstance(second, int):
        quotient = abs(first) // abs(second)
        return quotient if (first < 0) == (second < 0) else -quotient
    return math.trunc(decimal.Decimal(repr(first)) / decimal.Decimal(repr(second)))


@sql("m_mod")
def modulo(first, second):
    """The operator %: the result has the sign of the first operand."""
    if not second:
        return None
    if isinstance(first, int) and isinstance(second, int):
        return int(math.copysign(1, first)) * (abs(first) % abs(second))
    return math.fmod(first, second)


@sql("m_mod_dec")
def modulo_decimal(first, second):
    """The operator % for decimal numbers."""
    return float(decimal.Decimal(repr(first)) % decimal.Decimal(repr(second))) if second else None


@sql("m_round_dec")
def round_decimal(value, digits):
    """ROUND of an exact number: halves away from zero."""
    digits = max(-38, min(38, digits))
    if isinstance(value, int) and digits >= 0:
        return value
    rounded = quantized(value, digits) if digits >= 0 else quantized(value, digits).to_integral_value()
    return int(rounded) if isinstance(value, int) or digits <= 0 else float(rounded)


@sql("m_round_dbl")
def round_double(value, digits):
    """ROUND of a double, by the formula of MySQL."""
    digits = max(-308, min(308, digits))
    power = 10.0 ** abs(digits)
    scaled = value / power if digits < 0 else value * power
    if not math.isfinite(scaled):
        return value
    return round(scaled) * power if digits < 0 else round(scaled) / power


@sql("m_truncate")
def truncate(value, digits):
    """TRUNCATE."""
    digits = max(-60, min(60, digits))
    shown = decimal.Decimal(repr(value))
    whole = shown.quantize(decimal.Decimal(1).scaleb(-digits), decimal.ROUND_DOWN, context=decimal.Context(prec=400))
    return int(whole) if isinstance(value, int) else float(whole)


@sql("m_ceil")
def ceiling(value):
    """CEILING."""
    return math.ceil(value) if abs(value) < 2**62 else value


@sql("m_floor")
def floor(value):
    """FLOOR."""
    return math.floor(value) if abs(value) < 2**62 else value


@sql("m_pow")
def power(base, exponent):
    """POW."""
    try:
        value = float(base) ** float(exponent)
    except (OverflowError, ZeroDivisionError):
        raise Fault("1690 (22003): DOUBLE value is out of range in 'pow()'") from None
    if isinstance(value, complex):
        raise Fault("1690 (22003): DOUBLE value is out of range in 'pow()'")
    return value


@sql("m_exp")
def exponential(value):
    """EXP."""
    try:
        return math.exp(value)
    except OverflowError:
        raise Fault("1690 (22003): DOUBLE value is out of range in 'exp()'") from None


@sql("m_log")
def logarithm(value, base):
    """LN, LOG2, LOG10 and LOG; base 0 stands for e."""
    if value <= 0 or (base and (base < 0 or base == 1)):
        return None
    if base in (2, 10):
        return math.log2(value) if base == 2 else math.log10(value)
    return math.log(value) / math.log(base) if base else math.log(value)


@sql("m_math")
def mathematics(name, value):
    """Functions of one number that Python's ``math`` has too."""
    if (name == "sqrt" and value < 0) or (name in ("acos", "asin") and abs(value) > 1):
        return None
    return 1 / math.tan(value) if name == "cot" else getattr(math, name)(value)


@sql("m_atan2")
def arc_tangent(first, second):
    """ATAN2."""
    return math.atan2(first, second)


@sql("m_rand", varying=True)
def rand():
    """RAND without a seed."""
    return random.random()


@sql("m_shift")
def shift(value, bits, left):
    """The operators << and >>, and & | ^ by their sign."""
    value = unsigned_bits(value)
    if bits >= 64 or bits < 0:
        return 0
    return signed_or_fault((value << bits) & (2**64 - 1) if left else value >> bits)


@sql("m_bits")
def bits(operator, first, second):
    """The operators & | ^ and ~ (which ignores its second operand)."""
    first, second = unsigned_bits(first), unsigned_bits(second)
    value = {"&": first & second, "|": first | second, "^": first ^ second, "~": first ^ (2**64 - 1)}[operator]
    return signed_or_fault(value)


def unsigned_bits(value):
    """An integer as 64 bits."""
    return value & (2**64 - 1)


def signed_or_fault(value):
    """An unsigned integer; SQLite has none above 2^63 - 1."""
    if value >= 2**63:
        raise Fault("1235 (42000): This version of MySQL doesn't yet support 'unsigned integers above 9223372036854775807'")
    return value


@sql("m_crc32")
def crc32(text):
    """CRC32."""
    return zlib.crc32(text.encode())


@sql("m_hash")
def hashed(name, text):
    """MD5, SHA1 and SHA2."""
    return hashlib.new(name, text.encode(), usedforsecurity=False).hexdigest()


@sql("m_sleep", varying=True)
def sleep(seconds):
    """SLEEP, until the time limit of the statement at most."""
    time.sleep(max(0.0, min(seconds, DEADLINE[0] + 0.01 - time.monotonic())))
    if time.monotonic() > DEADLINE[0]:
        raise Fault("3024 (HY000): Query execution was interrupted, maximum statement execution time exceeded")
    return 0


@sql("m_base64")
def to_base64(text):
    """TO_BASE64: lines of 76 characters."""
    return base64.encodebytes(text.encode()).decode().rstrip("\n")
