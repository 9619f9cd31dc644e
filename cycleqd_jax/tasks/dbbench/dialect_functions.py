"""MySQL's functions: the types of their results, and their translation for SQLite."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cycleqd_jax.tasks.dbbench.dialect_types import (
    BINARY,
    DATE,
    DATETIME,
    DOUBLE,
    INT,
    TEXT,
    TIME,
    Expr,
    Refusal,
    Type,
    cast_moment,
    common,
    converted,
    decimal,
    literal,
    moment,
    number,
    number_type,
    text,
    truth,
    unsupported,
    whole,
)

__all__ = ["AGGREGATES", "call", "date_add"]

AGGREGATES = frozenset(
    [
        "COUNT",
        "SUM",
        "AVG",
        "MIN",
        "MAX",
        "GROUP_CONCAT",
        "STD",
        "STDDEV",
        "STDDEV_POP",
        "STDDEV_SAMP",
        "VARIANCE",
        "VAR_POP",
        "VAR_SAMP",
        "BIT_AND",
        "BIT_OR",
        "BIT_XOR",
    ]
)


class _Simple(NamedTuple):
    """A function whose arguments have fixed kinds.

    Attributes:
        kinds: one letter for each argument: s text, n number, i integer, d date or datetime; a capital letter may be missing or, if it is the last
            one before ``*``, be repeated.
        result: type of the result.
        template: the expression, with ``{0}`` for the first argument and ``{all}`` for all.
    """

    kinds: str
    result: Type
    template: str


def _math(name: str) -> _Simple:
    return _Simple("n", DOUBLE, f"m_math('{name}', {{0}})")


def _part(name: str, result: Type = INT) -> _Simple:
    return _Simple("s" if name in ("HOUR", "MINUTE", "SECOND", "MICROSECOND") else "d", result, f"m_part({{0}}, '{name}')")


_NOW = {
    "NOW": DATETIME, "CURRENT_TIMESTAMP": DATETIME, "LOCALTIME": DATETIME, "LOCALTIMESTAMP": DATETIME, "SYSDATE": DATETIME,
    "CURDATE": DATE, "CURRENT_DATE": DATE, "CURTIME": TIME, "CURRENT_TIME": TIME, "UTC_DATE": DATE, "UTC_TIME": TIME,
    "UTC_TIMESTAMP": DATETIME,
}  # fmt: skip
_SIMPLE = {
    "CONCAT": _Simple("s*", TEXT, "m_concat({all})"),
    "CONCAT_WS": _Simple("ss*", TEXT, "m_concat_ws({all})"),
    "UPPER": _Simple("s", TEXT, "m_upper({0})"),
    "LOWER": _Simple("s", TEXT, "m_lower({0})"),
    "LENGTH": _Simple("s", INT, "m_bytes({0})"),
    "BIT_LENGTH": _Simple("s", INT, "(8 * m_bytes({0}))"),
    "CHAR_LENGTH": _Simple("s", INT, "length({0})"),
    "LEFT": _Simple("si", TEXT, "m_left({all})"),
    "RIGHT": _Simple("si", TEXT, "m_right({all})"),
    "LTRIM": _Simple("s", TEXT, "m_trim({0}, ' ', 1)"),
    "RTRIM": _Simple("s", TEXT, "m_trim({0}, ' ', 2)"),
    "REPLACE": _Simple("sss", TEXT, "m_replace({all})"),
    "REVERSE": _Simple("s", TEXT, "m_reverse({0})"),
    "REPEAT": _Simple("si", TEXT, "m_repeat({all})"),
    "SPACE": _Simple("i", TEXT, "m_repeat(' ', {0})"),
    "SUBSTRING_INDEX": _Simple("ssi", TEXT, "m_substring_index({all})"),
    "INSTR": _Simple("ss", INT, "m_locate({1}, {0}, 1)"),
    "FIND_IN_SET": _Simple("ss", INT, "m_find_in_set({all})"),
    "INSERT": _Simple("siis", TEXT, "m_insert({all})"),
    "STRCMP": _Simple("ss", INT, "m_strcmp({all})"),
    "ASCII": _Simple("s", INT, "m_ascii({0})"),
    "ORD": _Simple("s", INT, "m_ord({0})"),
    "UNHEX": _Simple("s", BINARY, "m_unhex({0})"),
    "CONV": _Simple("sii", TEXT, "m_conv({all})"),
    "BIN": _Simple("i", TEXT, "m_conv(CAST({0} AS TEXT), 10, 2)"),
    "OCT": _Simple("i", TEXT, "m_conv(CAST({0} AS TEXT), 10, 8)"),
    "FORMAT": _Simple("ni", TEXT, "m_format({all})"),
    "MD5": _Simple("s", TEXT, "m_hash('md5', {0})"),
    "SHA1": _Simple("s", TEXT, "m_hash('sha1', {0})"),
    "CRC32": _Simple("s", INT, "m_crc32({0})"),
    "TO_BASE64": _Simple("s", TEXT, "m_base64({0})"),
    "QUOTE": _Simple("s", TEXT, "m_quote({0})"),
    "SOUNDEX": _Simple("s", TEXT, "m_soundex({0})"),
    "REGEXP_REPLACE": _Simple("sss", TEXT, "m_regexp_replace({all})"),
    "REGEXP_SUBSTR": _Simple("ss", TEXT, "m_regexp_substr({all})"),
    "REGEXP_INSTR": _Simple("ss", INT, "m_regexp_instr({all})"),
    "SQRT": _math("sqrt"), "SIN": _math("sin"), "COS": _math("cos"), "TAN": _math("tan"), "COT": _math("cot"),
    "ASIN": _math("asin"), "ACOS": _math("acos"), "ATAN": _math("atan"), "DEGREES": _math("degrees"), "RADIANS": _math("radians"),  # noqa: E501
    "ATAN2": _Simple("nn", DOUBLE, "m_atan2({all})"),
    "EXP": _Simple("n", DOUBLE, "m_exp({0})"),
    "LN": _Simple("n", DOUBLE, "m_log({0}, 0)"),
    "LOG2": _Simple("n", DOUBLE, "m_log({0}, 2)"),
    "LOG10": _Simple("n", DOUBLE, "m_log({0}, 10)"),
    "POW": _Simple("nn", DOUBLE, "m_pow({all})"),
    "PI": _Simple("", Type("dbl", 6), "3.141592653589793"),
    "SIGN": _Simple("n", INT, "sign({0})"),
    "SLEEP": _Simple("n", INT, "m_sleep({0})"),
    "YEAR": _part("YEAR"), "MONTH": _part("MONTH"), "DAY": _part("DAY"), "DAYOFWEEK": _part("DAYOFWEEK"),
    "WEEKDAY": _part("WEEKDAY"), "DAYOFYEAR": _part("DAYOFYEAR"), "QUARTER": _part("QUARTER"), "HOUR": _part("HOUR"),
    "MINUTE": _part("MINUTE"), "SECOND": _part("SECOND"), "MICROSECOND": _part("MICROSECOND"), "TO_DAYS": _part("TO_DAYS"),
    "DAYNAME": _part("DAYNAME", TEXT),
    "MONTHNAME": _Simple("d", TEXT, "m_monthname({0})"),
    "LAST_DAY": _Simple("d", DATE, "m_last_day({0})"),
    "DATEDIFF": _Simple("dd", INT, "m_datediff({all})"),
    "TIMEDIFF": _Simple("ss", TIME, "m_timediff({all})"),
    "FROM_DAYS": _Simple("i", DATE, "m_from_days({0})"),
    "MAKEDATE": _Simple("ii", DATE, "m_makedate({all})"),
    "MAKETIME": _Simple("iii", TIME, "m_maketime({all})"),
    "SEC_TO_TIME": _Simple("i", TIME, "m_sec_to_time({0})"),
    "TIME_TO_SEC": _Simple("s", INT, "m_time_to_sec({0})"),
    "WEEKOFYEAR": _Simple("d", INT, "m_week({0}, 3, 0)"),
    "DATE_FORMAT": _Simple("ds", TEXT, "m_date_format({all}, 0)"),
    "TIME_FORMAT": _Simple("ss", TEXT, "m_date_format({all}, 1)"),
    "FROM_UNIXTIME": _Simple("i", DATETIME, "m_from_unix({0})"),
    "CONNECTION_ID": _Simple("", INT, "1"),
    "VERSION": _Simple("", TEXT, "'10.11.0-MariaDB'"),
    "USER": _Simple("", TEXT, "'root@localhost'"),
    "CURRENT_USER": _Simple("", TEXT, "'root@%'"),
    "CHARSET": _Simple("s", TEXT, "'utf8mb4'"),
    "BIT_COUNT": _Simple("i", INT, "(length(m_conv(CAST({0} AS TEXT), 10, 2)) - length(m_replace(m_conv(CAST({0} AS TEXT), 10, 2), '1', '')))"),  # noqa: E501
    "FOUND_ROWS": _Simple("", INT, "1"), "LAST_INSERT_ID": _Simple("", INT, "0"), "ROW_COUNT": _Simple("", INT, "-1"),
}  # fmt: skip
_SAME = {
    "UCASE": "UPPER", "LCASE": "LOWER", "OCTET_LENGTH": "LENGTH", "CHARACTER_LENGTH": "CHAR_LENGTH", "SHA": "SHA1",
    "POWER": "POW", "CEILING": "CEIL", "DAYOFMONTH": "DAY", "ADDDATE": "DATE_ADD", "SUBDATE": "DATE_SUB", "NVL": "IFNULL",
    "SESSION_USER": "USER", "SYSTEM_USER": "USER", "MID": "SUBSTRING", "SUBSTR": "SUBSTRING",
}  # fmt: skip


def _argument(kind: str, expr: Expr) -> str:
    return {"s": text, "n": number, "i": whole, "d": moment}[kind](expr)


def call(name: str, args: list[Expr], compare: Callable[[str, Expr, Expr], str], table: str) -> Expr:
    """A call of a function that is no aggregate.

    Args:
        name: its name.
        args: its arguments.
        compare: ``compare("=", a, b)`` is the comparison of two expressions.
        table: name of the database.

    Raises:
        Refusal: there is no such function, or it is called with the wrong number of arguments.
    """
    written, name = name, _SAME.get(name.upper(), name.upper())
    if name in _NOW:
        kind = "utc_" * name.startswith("UTC_") + _NOW[name].kind
        return Expr(f"m_now('{kind}')", _NOW[name])
    if name in ("DATABASE", "SCHEMA") and not args:
        return Expr(literal(table), TEXT)
    if name in _SIMPLE:
        simple = _SIMPLE[name]
        kinds = simple.kinds
        if kinds.endswith("*"):
            kinds = kinds[:-1] + kinds[-2] * (len(args) - len(kinds) + 1)
        if len(kinds) != len(args):
            raise _wrong_count(written)
        shown = [_argument(kind, arg) for kind, arg in zip(kinds, args, strict=True)]
        return Expr(simple.template.format(*shown, all=", ".join(shown)), simple.result)
    builder = _BUILDERS.get((name, len(args))) or _BUILDERS.get((name, -1))
    if builder is not None:
        return builder(args, compare)
    if any(known == name for known, _ in _BUILDERS):
        raise _wrong_count(written)
    if name in _KNOWN:
        raise unsupported(f"{name}()")
    raise Refusal(f"1305 (42000): FUNCTION {table}.{written} does not exist")


def _wrong_count(name: str) -> Refusal:
    return Refusal(f"1582 (42000): Incorrect parameter count in the call to native function '{name}'")


# Functions of MySQL that are not translated.
_KNOWN = frozenset(
    [
        "JSON_EXTRACT",
        "JSON_OBJECT",
        "JSON_ARRAY",
        "JSON_VALUE",
        "JSON_UNQUOTE",
        "JSON_CONTAINS",
        "JSON_LENGTH",
        "JSON_KEYS",
        "JSON_ARRAYAGG",
        "JSON_OBJECTAGG",
        "JSON_VALID",
        "JSON_SEARCH",
        "JSON_SET",
        "AES_ENCRYPT",
        "AES_DECRYPT",
        "COMPRESS",
        "UNCOMPRESS",
        "BENCHMARK",
        "GET_LOCK",
        "RELEASE_LOCK",
        "IS_FREE_LOCK",
        "IS_USED_LOCK",
        "LOAD_FILE",
        "UUID",
        "UUID_SHORT",
        "INET_ATON",
        "INET_NTOA",
        "PERIOD_ADD",
        "PERIOD_DIFF",
        "CONVERT_TZ",
        "ADDTIME",
        "SUBTIME",
        "EXPORT_SET",
        "MAKE_SET",
        "FROM_BASE64",
        "PASSWORD",
        "ENCRYPT",
        "EXTRACTVALUE",
        "UPDATEXML",
        "COERCIBILITY",
        "COLLATION",
        "TO_SECONDS",
        "GET_FORMAT",
        "NAME_CONST",
        "LEAD",
        "LAG",
        "ROW_NUMBER",
        "RANK",
        "DENSE_RANK",
        "NTILE",
        "FIRST_VALUE",
        "LAST_VALUE",
        "CUME_DIST",
        "PERCENT_RANK",
        "DEFAULT",
        "VALUE",
        "WEIGHT_STRING",
        "MATCH",
        "RANDOM_BYTES",
        "OLD_PASSWORD",
        "DECODE",
        "ENCODE",
        "TIMESTAMPADD",
        "NVL2",
        "CHR",
        "INTERVAL",
        "NTH_VALUE",
        "ST_DISTANCE",
        "POINT",
    ]
)

_Compare = Callable[[str, Expr, Expr], str]


def _branches(values: list[Expr]) -> tuple[list[str], Type]:
    result = common([value.type for value in values])
    return [converted(value, result) for value in values], result


def _if(args: list[Expr], _: _Compare) -> Expr:
    shown, result = _branches(args[1:])
    return Expr(f"iif({truth(args[0])}, {shown[0]}, {shown[1]})", result)


def _coalesce(args: list[Expr], _: _Compare) -> Expr:
    shown, result = _branches(args)
    return Expr(f"coalesce({', '.join(shown)})" if len(shown) > 1 else shown[0], result)


def _nullif(args: list[Expr], compare: _Compare) -> Expr:
    return Expr(f"iif({compare('=', *args)}, NULL, {args[0].sql})", args[0].type)


def _extreme(name: str) -> Callable[[list[Expr], _Compare], Expr]:
    def build(args: list[Expr], _: _Compare) -> Expr:
        if len(args) < 2:
            raise _wrong_count(name)
        kinds = {arg.type.kind for arg in args} - {"null"}
        other = None
        if kinds == {"str"}:
            other = f"{'max' if name == 'GREATEST' else 'min'}({', '.join(map(number, args))})"
        if kinds & {"int", "dec", "dbl"} and kinds & {"str"}:
            shown, result = [number(arg) for arg in args], DOUBLE
        else:
            shown, result = _branches(args)
        if result.kind == "str":
            shown = [f"{one} COLLATE mysql" for one in shown]
        if name == "LEAST":
            shown.reverse()  # of equal texts MySQL takes the first one, and SQLite's min() the last one
        return Expr(f"{'max' if name == 'GREATEST' else 'min'}({', '.join(shown)})", result, None, other)

    return build


def _round(args: list[Expr], _: _Compare) -> Expr:
    value, kind = number(args[0]), number_type(args[0].type)
    digits = args[1] if len(args) > 1 else Expr("0", INT, "0")
    places = None if digits.value is None or digits.type.kind != "int" else max(0, int(digits.value))
    if kind.kind == "dbl":
        shown = Type("dbl", None if places is None or places >= 31 else places)
        return Expr(f"m_round_dbl({value}, {whole(digits)})", shown)
    scale = (kind.scale or 0) if places is None else min(places, kind.scale or 0) if kind.kind == "int" else min(places, 30)
    return Expr(f"m_round_dec({value}, {whole(digits)})", kind if kind.kind == "int" else decimal(scale))


def _truncate(args: list[Expr], _: _Compare) -> Expr:
    kind = number_type(args[0].type)
    places = int(args[1].value) if args[1].type.kind == "int" and args[1].value is not None else None
    sql = f"m_truncate({number(args[0])}, {whole(args[1])})"
    if kind.kind == "dbl":
        return Expr(sql, Type("dbl", places if places is None else max(0, places)))
    if kind.kind == "int":
        return Expr(sql, kind)
    return Expr(sql, decimal((kind.scale or 0) if places is None else max(0, places)))


def _to_whole(name: str) -> Callable[[list[Expr], _Compare], Expr]:
    def build(args: list[Expr], _: _Compare) -> Expr:
        kind = number_type(args[0].type)
        return Expr(f"m_{name}({number(args[0])})", Type("dbl", 0) if kind.kind == "dbl" else INT)

    return build


def _absolute(args: list[Expr], _: _Compare) -> Expr:
    kind = number_type(args[0].type)
    return Expr(f"abs({number(args[0])})", decimal(kind.scale or 0) if args[0].type.temporal else kind)


def _mod(args: list[Expr], _: _Compare) -> Expr:
    kinds = [number_type(arg.type) for arg in args]
    result = common(kinds)
    name = "m_mod_dec" if result.kind == "dec" else "m_mod"
    return Expr(f"{name}({number(args[0])}, {number(args[1])})", result)


def _log(args: list[Expr], _: _Compare) -> Expr:
    base, value = (Expr("0", INT), args[0]) if len(args) == 1 else args
    return Expr(f"m_log({number(value)}, {number(base)})", DOUBLE)


def _substring(args: list[Expr], _: _Compare) -> Expr:
    count = whole(args[2]) if len(args) > 2 else "4000000"
    return Expr(f"m_substr({text(args[0])}, {whole(args[1])}, {count})", TEXT)


def _pad(at_left: int) -> Callable[[list[Expr], _Compare], Expr]:
    def build(args: list[Expr], _: _Compare) -> Expr:
        filler = text(args[2]) if len(args) > 2 else "' '"
        return Expr(f"m_pad({text(args[0])}, {whole(args[1])}, {filler}, {at_left})", TEXT)

    return build


def _locate(args: list[Expr], _: _Compare) -> Expr:
    return Expr(f"m_locate({text(args[0])}, {text(args[1])}, {whole(args[2]) if len(args) > 2 else 1})", INT)


def _field(args: list[Expr], _: _Compare) -> Expr:
    kinds = {arg.type.kind for arg in args} - {"null"}
    shown = [text(arg) for arg in args] if kinds <= {"str", "date", "datetime", "time"} else [number(arg) for arg in args]
    return Expr(f"m_field({', '.join(shown)})", INT)


def _elt(args: list[Expr], _: _Compare) -> Expr:
    return Expr(f"m_elt({', '.join([whole(args[0]), *map(text, args[1:])])})", TEXT)


def _hex(args: list[Expr], _: _Compare) -> Expr:
    kind = args[0].type.kind
    shown = args[0].sql if kind in ("str", "bin") else f"m_int({args[0].sql})" if kind == "dbl" else whole(args[0])
    return Expr(f"m_hex({shown})", TEXT)


def _char(args: list[Expr], _: _Compare) -> Expr:
    return Expr(f"m_char({', '.join(map(whole, args))})", BINARY)


def _rand(args: list[Expr], _: _Compare) -> Expr:
    if args:
        raise unsupported("RAND(seed)")
    return Expr("m_rand()", DOUBLE)


def _week(with_year: int) -> Callable[[list[Expr], _Compare], Expr]:
    def build(args: list[Expr], _: _Compare) -> Expr:
        return Expr(f"m_week({moment(args[0])}, {whole(args[1]) if len(args) > 1 else 0}, {with_year})", INT)

    return build


def _cast(target: Type) -> Callable[[list[Expr], _Compare], Expr]:
    return lambda args, _: cast_moment(args[0], target)


def _str_to_date(args: list[Expr], _: _Compare) -> Expr:
    pattern = args[1].value
    if pattern is None:
        raise unsupported("STR_TO_DATE with a format that is no literal")
    codes = {pattern[i + 1] for i in range(len(pattern) - 1) if pattern[i] == "%"}
    day, clock = codes & set("aWbcDdejMmUuVvwXxYy"), codes & set("fHhIiklprSsT")
    result = TIME if clock and not day else Type("datetime", 6 if "f" in codes else 0) if clock else DATE
    return Expr(f"m_str_to_date({text(args[0])}, {args[1].sql}, '{result.kind}')", result)


def _unix(args: list[Expr], _: _Compare) -> Expr:
    shown = moment(args[0]) if args else "m_now('datetime')"
    return Expr(f"m_unix({shown})", INT)


def _sha2(args: list[Expr], _: _Compare) -> Expr:
    size = {"0": 256, "224": 224, "256": 256, "384": 384, "512": 512}.get(args[1].value or "")
    if size is None:
        raise unsupported("SHA2 with this length")
    return Expr(f"m_hash('sha{size}', {text(args[0])})", TEXT)


def _isnull(args: list[Expr], _: _Compare) -> Expr:
    return Expr(f"({args[0].sql} IS NULL)", INT)


def date_add(value: Expr, amount: Expr, unit: str, sign: int) -> Expr:
    """DATE_ADD and DATE_SUB, and + and - of an interval."""
    timed = any(part in unit for part in ("HOUR", "MINUTE", "SECOND"))
    kind = "datetime" if value.type.kind == "datetime" or (value.type.kind == "date" and timed) else "text"
    if value.type.kind == "date" and not timed:
        kind = "date"
    if value.type.kind == "time":
        raise unsupported("intervals added to times")
    result = {"date": DATE, "datetime": DATETIME, "text": TEXT._replace(scale=0)}[kind]
    shown = text(amount) if "_" in unit else number(amount) if unit == "SECOND" else whole(amount)
    sql = f"m_date_add({moment(value)}, {shown}, '{unit}', {sign}, '{kind}')"
    return Expr(sql, result, None, f"m_date_number({sql})")


_BUILDERS: dict[tuple[str, int], Callable[[list[Expr], _Compare], Expr]] = {
    ("IF", 3): _if, ("IFNULL", 2): _coalesce, ("COALESCE", -1): _coalesce, ("NULLIF", 2): _nullif, ("ISNULL", 1): _isnull,
    ("GREATEST", -1): _extreme("GREATEST"), ("LEAST", -1): _extreme("LEAST"), ("ROUND", 1): _round, ("ROUND", 2): _round,
    ("TRUNCATE", 2): _truncate, ("CEIL", 1): _to_whole("ceil"), ("FLOOR", 1): _to_whole("floor"), ("ABS", 1): _absolute,
    ("MOD", 2): _mod, ("LOG", 1): _log, ("LOG", 2): _log, ("SUBSTRING", 2): _substring, ("SUBSTRING", 3): _substring,
    ("LPAD", 2): _pad(1), ("LPAD", 3): _pad(1), ("RPAD", 2): _pad(0), ("RPAD", 3): _pad(0), ("LOCATE", 2): _locate,
    ("LOCATE", 3): _locate, ("FIELD", -1): _field, ("ELT", -1): _elt, ("HEX", 1): _hex, ("CHAR", -1): _char, ("RAND", -1): _rand,  # noqa: E501
    ("DATE", 1): _cast(DATE), ("TIME", 1): _cast(TIME), ("TIMESTAMP", 1): _cast(DATETIME),
    ("WEEK", 1): _week(0), ("WEEK", 2): _week(0), ("SHA2", 2): _sha2, ("YEARWEEK", 1): _week(1), ("YEARWEEK", 2): _week(1),
    ("STR_TO_DATE", 2): _str_to_date, ("UNIX_TIMESTAMP", 0): _unix, ("UNIX_TIMESTAMP", 1): _unix,
}  # fmt: skip
