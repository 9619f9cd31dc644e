"""MySQL's functions of texts, for SQLite. Runs in the sandbox, see ``sqlite_server.py``."""

import binascii
import decimal

from cycleqd_jax.tasks.dbbench.sqlite_values import decimal_text, fitting, key, order, sql


@sql("m_concat")
def concat(*texts):
    """CONCAT."""
    fitting(sum(map(len, texts)))
    return "".join(texts)


@sql("m_concat_ws", nulls=True)
def concat_ws(separator, *texts):
    """CONCAT_WS leaves NULLs out."""
    if separator is None:
        return None
    texts = [text for text in texts if text is not None]
    fitting(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


@sql("m_upper")
def upper(text):
    """UPPER, one character for each character."""
    return "".join(c.upper() if len(c.upper()) == 1 else c for c in text)


@sql("m_lower")
def lower(text):
    """LOWER, one character for each character."""
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


@sql("m_bytes")
def byte_length(text):
    """LENGTH: the number of bytes."""
    return len(text.encode())


@sql("m_left")
def left(text, count):
    """LEFT."""
    return text[: max(0, count)]


@sql("m_right")
def right(text, count):
    """RIGHT."""
    return text[-count:] if count > 0 else ""


@sql("m_pad")
def pad(text, length, filler, at_left):
    """LPAD and RPAD."""
    if length < 0:
        return None
    fitting(length)
    if length <= len(text):
        return text[:length]
    if not filler:
        return None
    missing = length - len(text)
    fill = (filler * (missing // len(filler) + 1))[:missing]
    return fill + text if at_left else text + fill


@sql("m_trim")
def trim(text, what, where):
    """TRIM of whole copies of ``what``; ``where`` is 1 for the begin, 2 for the end, 3 for both."""
    if not what:
        return text
    begin, end = 0, len(text)
    while where & 1 and text.startswith(what, begin, end):
        begin += len(what)
    while where & 2 and text.endswith(what, begin, end):
        end -= len(what)
    return text[begin:end]


@sql("m_substr")
def substring(text, start, count):
    """SUBSTRING; a count above the text's length stands for the rest."""
    if start < 0:
        start = len(text) + start
        if start < 0:
            return ""
    elif start == 0:
        return ""
    else:
        start -= 1
    return text[start : start + count] if count > 0 else ""


@sql("m_substring_index")
def substring_index(text, separator, count):
    """SUBSTRING_INDEX."""
    if not separator or count == 0:
        return ""
    parts = text.split(separator)
    return separator.join(parts[:count] if count > 0 else parts[count:])


@sql("m_replace")
def replace(text, old, new):
    """REPLACE distinguishes case."""
    if not old:
        return text
    fitting(len(text) + text.count(old) * (len(new) - len(old)))
    return text.replace(old, new)


@sql("m_repeat")
def repeat(text, count):
    """REPEAT."""
    fitting(len(text) * max(0, count))
    return text * max(0, count)


@sql("m_reverse")
def reverse(text):
    """REVERSE."""
    return text[::-1]


@sql("m_locate")
def locate(needle, text, start):
    """LOCATE, INSTR and POSITION, without regard to case.

    As in MySQL, a character equals another one of as many bytes only.
    """
    if start < 1 or start > len(text) + 1:
        return 0
    size = len(needle.encode())
    for begin in range(start - 1, len(text) + (not size)):
        end = length = 0
        while length < size and begin + end < len(text):
            length += len(text[begin + end].encode())
            end += 1
        if length == size and order(text[begin : begin + end], needle) == 0:
            return begin + 1
    return 0


@sql("m_find_in_set")
def find_in_set(needle, listed):
    """FIND_IN_SET. As in MySQL, a list of fewer bytes than ``needle`` does not have it."""
    if not listed or "," in needle or len(listed.encode()) < len(needle.encode()):
        return 0
    wanted = key(needle)
    return next((i for i, part in enumerate(listed.split(","), 1) if key(part) == wanted), 0)


@sql("m_field", nulls=True)
def field(wanted, *values):
    """FIELD: the number of the first equal value."""
    if wanted is None:
        return 0
    alike = (lambda a, b: order(a, b) == 0) if isinstance(wanted, str) else (lambda a, b: a == b)
    return next((i for i, value in enumerate(values, 1) if value is not None and alike(wanted, value)), 0)


@sql("m_elt", nulls=True)
def elt(index, *values):
    """ELT."""
    return values[index - 1] if index is not None and 1 <= index <= len(values) else None


@sql("m_insert")
def insert(text, start, count, new):
    """INSERT, the function."""
    if not 1 <= start <= len(text):
        return text
    count = count if 0 <= count <= len(text) - start + 1 else len(text)
    return text[: start - 1] + new + text[start - 1 + count :]


@sql("m_strcmp")
def compare(first, second):
    """STRCMP."""
    return order(first, second)


@sql("m_ascii")
def ascii_code(text):
    """ASCII: the first byte."""
    return text.encode()[0] if text else 0


@sql("m_ord")
def ord_code(text):
    """ORD: the number that the bytes of the first character make."""
    return int.from_bytes(text[:1].encode(), "big")


@sql("m_hex")
def hexadecimal(value):
    """HEX."""
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        fitting(2 * len(value))
        return value.hex().upper()
    return format(value & (2**64 - 1), "X")


@sql("m_unhex")
def unhex(text):
    """UNHEX."""
    try:
        return binascii.unhexlify(text if len(text) % 2 == 0 else "0" + text)
    except (ValueError, binascii.Error):
        return None


DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@sql("m_conv")
def conv(text, source, target):
    """CONV between bases 2 and 36."""
    if not (2 <= abs(source) <= 36 and 2 <= abs(target) <= 36):
        return None
    text = text.strip().upper()
    negative, digits = text.startswith("-"), text.lstrip("+-")
    value = 0
    for digit in digits[:80]:
        place = DIGITS.find(digit)
        if not 0 <= place < abs(source):
            break
        value = min(value * abs(source) + place, 2**64 - 1)
    value = (-value if negative else value) & (2**64 - 1)
    sign = ""
    if target < 0 and value >= 2**63:
        sign, value = "-", 2**64 - value
    shown = ""
    while value:
        value, place = divmod(value, abs(target))
        shown = DIGITS[place] + shown
    return sign + (shown or "0")


@sql("m_format")
def format_number(value, digits):
    """FORMAT: with commas between thousands."""
    digits = max(0, min(30, digits))
    return f"{decimal.Decimal(decimal_text(value, digits)):,f}"


@sql("m_quote", nulls=True)
def quote(text):
    """QUOTE."""
    if text is None:
        return "NULL"
    for old, new in (("\\", "\\\\"), ("'", "\\'"), ("\0", "\\0"), ("\x1a", "\\Z")):
        text = text.replace(old, new)
    return f"'{text}'"


@sql("m_char", nulls=True)
def characters(*codes):
    """CHAR(…): the bytes of the numbers."""
    listed = [code & 0xFFFFFFFF for code in codes if code is not None]
    return b"".join(code.to_bytes(max(1, (code.bit_length() + 7) // 8), "big") for code in listed)


@sql("m_soundex")
def soundex(text):
    """SOUNDEX."""
    groups = {**dict.fromkeys("BFPV", "1"), **dict.fromkeys("CGJKQSXZ", "2"), **dict.fromkeys("DT", "3"), "L": "4"}
    groups |= {**dict.fromkeys("MN", "5"), "R": "6", **dict.fromkeys("AEIOUYHW", "0")}
    letters = [c for c in upper(text) if c.isalpha()]
    if not letters:
        return ""
    shown, last = letters[0], groups.get(letters[0], "0")
    for letter in letters[1:]:
        code = groups.get(letter, "0")
        if code not in ("0", last):  # unlike in other algorithms, vowels do not separate letters of a group
            shown += code
            last = code
    return shown.ljust(4, "0")
