"""MySQL's functions: the types of their results, and their translation for SQLite."""

from __future__ import annotations

from cycleqd_jax.tasks.dbbench.dialect_dates import DATE_BUILDERS, DATE_FUNCTIONS, NOW, Builder, Compare, Simple
from cycleqd_jax.tasks.dbbench.dialect_types import (
    BINARY,
    DOUBLE,
    INT,
    TEXT,
    Expr,
    Refusal,
    Type,
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

__all__ = ["call"]


def _math(name: str) -> Simple:
    return Simple("n", DOUBLE, f"m_math('{name}', {{0}})")


_SIMPLE = {
    "CONCAT": Simple("s*", TEXT, "m_concat({all})"),
    "CONCAT_WS": Simple("ss*", TEXT, "m_concat_ws({all})"),
    "UPPER": Simple("s", TEXT, "m_upper({0})"),
    "LOWER": Simple("s", TEXT, "m_lower({0})"),
    "LENGTH": Simple("s", INT, "m_bytes({0})"),
    "BIT_LENGTH": Simple("s", INT, "(8 * m_bytes({0}))"),
    "CHAR_LENGTH": Simple("s", INT, "length({0})"),
    "LEFT": Simple("si", TEXT, "m_left({all})"),
    "RIGHT": Simple("si", TEXT, "m_right({all})"),
    "LTRIM": Simple("s", TEXT, "m_trim({0}, ' ', 1)"),
    "RTRIM": Simple("s", TEXT, "m_trim({0}, ' ', 2)"),
    "REPLACE": Simple("sss", TEXT, "m_replace({all})"),
    "REVERSE": Simple("s", TEXT, "m_reverse({0})"),
    "REPEAT": Simple("si", TEXT, "m_repeat({all})"),
    "SPACE": Simple("i", TEXT, "m_repeat(' ', {0})"),
    "SUBSTRING_INDEX": Simple("ssi", TEXT, "m_substring_index({all})"),
    "INSTR": Simple("ss", INT, "m_locate({1}, {0}, 1)"),
    "FIND_IN_SET": Simple("ss", INT, "m_find_in_set({all})"),
    "INSERT": Simple("siis", TEXT, "m_insert({all})"),
    "STRCMP": Simple("ss", INT, "m_strcmp({all})"),
    "ASCII": Simple("s", INT, "m_ascii({0})"),
    "ORD": Simple("s", INT, "m_ord({0})"),
    "UNHEX": Simple("s", BINARY, "m_unhex({0})"),
    "CONV": Simple("sii", TEXT, "m_conv({all})"),
    "BIN": Simple("i", TEXT, "m_conv(CAST({0} AS TEXT), 10, 2)"),
    "OCT": Simple("i", TEXT, "m_conv(CAST({0} AS TEXT), 10, 8)"),
    "FORMAT": Simple("ni", TEXT, "m_format({all})"),
    "MD5": Simple("s", TEXT, "m_hash('md5', {0})"),
    "SHA1": Simple("s", TEXT, "m_hash('sha1', {0})"),
    "CRC32": Simple("s", INT, "m_crc32({0})"),
    "TO_BASE64": Simple("s", TEXT, "m_base64({0})"),
    "QUOTE": Simple("s", TEXT, "m_quote({0})"),
    "SOUNDEX": Simple("s", TEXT, "m_soundex({0})"),
    "REGEXP_REPLACE": Simple("sss", TEXT, "m_regexp_replace({all})"),
    "REGEXP_SUBSTR": Simple("ss", TEXT, "m_regexp_substr({all})"),
    "REGEXP_INSTR": Simple("ss", INT, "m_regexp_instr({all})"),
    "SQRT": _math("sqrt"), "SIN": _math("sin"), "COS": _math("cos"), "TAN": _math("tan"), "COT": _math("cot"),
    "ASIN": _math("asin"), "ACOS": _math("acos"), "ATAN": _math("atan"), "DEGREES": _math("degrees"),
    "RADIANS": _math("radians"),
    "ATAN2": Simple("nn", DOUBLE, "m_atan2({all})"),
    "EXP": Simple("n", DOUBLE, "m_exp({0})"),
    "LN": Simple("n", DOUBLE, "m_log({0}, 0)"),
    "LOG2": Simple("n", DOUBLE, "m_log({0}, 2)"),
    "LOG10": Simple("n", DOUBLE, "m_log({0}, 10)"),
    "POW": Simple("nn", DOUBLE, "m_pow({all})"),
    "PI": Simple("", Type("dbl", 6), "3.141592653589793"),
    "SIGN": Simple("n", INT, "sign({0})"),
    "SLEEP": Simple("n", INT, "m_sleep({0})"),
    "CONNECTION_ID": Simple("", INT, "1"),
    "VERSION": Simple("", TEXT, "'10.11.0-MariaDB'"),
    "USER": Simple("", TEXT, "'root@localhost'"),
    "CURRENT_USER": Simple("", TEXT, "'root@%'"),
    "CHARSET": Simple("s", TEXT, "'utf8mb4'"),
    "BIT_COUNT": Simple("i", INT, "length(m_replace(m_conv(CAST({0} AS TEXT), 10, 2), '0', ''))"),
    **DATE_FUNCTIONS,
}  # fmt: skip
_SAME = {
    "UCASE": "UPPER", "LCASE": "LOWER", "OCTET_LENGTH": "LENGTH", "CHARACTER_LENGTH": "CHAR_LENGTH", "SHA": "SHA1",
    "POWER": "POW", "CEILING": "CEIL", "DAYOFMONTH": "DAY", "ADDDATE": "DATE_ADD", "SUBDATE": "DATE_SUB", "NVL": "IFNULL",
    "SESSION_USER": "USER", "SYSTEM_USER": "USER", "MID": "SUBSTRING", "SUBSTR": "SUBSTRING",
}  # fmt: skip


def _argument(kind: str, expr: Expr) -> str:
    return {"s": text, "n": number, "i": whole, "d": moment}[kind](expr)


def call(name: str, args: list[Expr], compare: Compare, table: str) -> Expr:
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
    if name in NOW:
        kind = "utc_" * name.startswith("UTC_") + NOW[name].kind
        return Expr(f"m_now('{kind}')", NOW[name])
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
_KNOWN = frozenset((
    "JSON_EXTRACT", "JSON_OBJECT", "JSON_ARRAY", "JSON_VALUE", "JSON_UNQUOTE", "JSON_CONTAINS", "JSON_LENGTH", "JSON_KEYS",
    "JSON_ARRAYAGG", "JSON_OBJECTAGG", "JSON_VALID", "JSON_SEARCH", "JSON_SET", "AES_ENCRYPT", "AES_DECRYPT", "COMPRESS",
    "UNCOMPRESS", "BENCHMARK", "GET_LOCK", "RELEASE_LOCK", "IS_FREE_LOCK", "IS_USED_LOCK", "LOAD_FILE", "UUID",
    "UUID_SHORT", "INET_ATON", "INET_NTOA", "PERIOD_ADD", "PERIOD_DIFF", "CONVERT_TZ", "ADDTIME", "SUBTIME", "EXPORT_SET",
    "MAKE_SET", "FROM_BASE64", "PASSWORD", "ENCRYPT", "EXTRACTVALUE", "UPDATEXML", "COERCIBILITY", "COLLATION",
    "TO_SECONDS", "GET_FORMAT", "NAME_CONST", "LEAD", "LAG", "ROW_NUMBER", "RANK", "DENSE_RANK", "NTILE", "FIRST_VALUE",
    "LAST_VALUE", "CUME_DIST", "PERCENT_RANK", "DEFAULT", "VALUE", "WEIGHT_STRING", "MATCH", "RANDOM_BYTES", "OLD_PASSWORD",
    "DECODE", "ENCODE", "TIMESTAMPADD", "NVL2", "CHR", "INTERVAL", "NTH_VALUE", "ST_DISTANCE", "POINT",
    "FOUND_ROWS", "LAST_INSERT_ID", "ROW_COUNT",
))  # fmt: skip


def _branches(values: list[Expr]) -> tuple[list[str], Type]:
    result = common([value.type for value in values])
    return [converted(value, result) for value in values], result


def _if(args: list[Expr], _: Compare) -> Expr:
    shown, result = _branches(args[1:])
    test = truth(args[0])
    other = "" if any(arg.number is not None for arg in args[1:]) else None
    return Expr(f"iif({test}, {shown[0]}, {shown[1]})", result, None, other)


def _coalesce(args: list[Expr], _: Compare) -> Expr:
    shown, result = _branches(args)
    return Expr(f"coalesce({', '.join(shown)})" if len(shown) > 1 else shown[0], result)


def _nullif(args: list[Expr], compare: Compare) -> Expr:
    return Expr(f"iif({compare('=', *args)}, NULL, {args[0].sql})", args[0].type)


def _extreme(name: str) -> Builder:
    def build(args: list[Expr], _: Compare) -> Expr:
        if len(args) < 2:
            raise _wrong_count(name)
        kinds = {arg.type.kind for arg in args} - {"null"}
        other = None
        if kinds & {"date", "datetime", "time"} and not kinds <= {"date", "datetime"} and kinds != {"time"}:
            raise unsupported(f"{name} of dates or times and other values")
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


def _round(args: list[Expr], _: Compare) -> Expr:
    value, kind = number(args[0]), number_type(args[0].type)
    digits = args[1] if len(args) > 1 else Expr("0", INT, "0")
    places = None if digits.value is None or digits.type.kind != "int" else max(0, int(digits.value))
    if kind.kind == "dbl":
        shown = Type("dbl", None if places is None or places >= 31 else places)
        return Expr(f"m_round_dbl({value}, {whole(digits)})", shown)
    scale = (kind.scale or 0) if places is None else min(places, kind.scale or 0) if kind.kind == "int" else min(places, 30)
    return Expr(f"m_round_dec({value}, {whole(digits)})", kind if kind.kind == "int" else decimal(scale))


def _truncate(args: list[Expr], _: Compare) -> Expr:
    kind = number_type(args[0].type)
    places = int(args[1].value) if args[1].type.kind == "int" and args[1].value is not None else None
    sql = f"m_truncate({number(args[0])}, {whole(args[1])})"
    if kind.kind == "dbl":
        return Expr(sql, Type("dbl", places if places is None else max(0, places)))
    if kind.kind == "int":
        return Expr(sql, kind)
    return Expr(sql, decimal((kind.scale or 0) if places is None else max(0, places)))


def _to_whole(name: str) -> Builder:
    def build(args: list[Expr], _: Compare) -> Expr:
        kind = number_type(args[0].type)
        return Expr(f"m_{name}({number(args[0])})", Type("dbl", 0) if kind.kind == "dbl" else INT)

    return build


def _absolute(args: list[Expr], _: Compare) -> Expr:
    kind = number_type(args[0].type)
    return Expr(f"abs({number(args[0])})", decimal(kind.scale or 0) if args[0].type.temporal else kind)


def _mod(args: list[Expr], _: Compare) -> Expr:
    kinds = [number_type(arg.type) for arg in args]
    result = common(kinds)
    name = "m_mod_dec" if result.kind == "dec" else "m_mod"
    return Expr(f"{name}({number(args[0])}, {number(args[1])})", result)


def _log(args: list[Expr], _: Compare) -> Expr:
    base, value = (Expr("0", INT), args[0]) if len(args) == 1 else args
    return Expr(f"m_log({number(value)}, {number(base)})", DOUBLE)


def _substring(args: list[Expr], _: Compare) -> Expr:
    count = whole(args[2]) if len(args) > 2 else "4000000"
    return Expr(f"m_substr({text(args[0])}, {whole(args[1])}, {count})", TEXT)


def _pad(at_left: int) -> Builder:
    def build(args: list[Expr], _: Compare) -> Expr:
        filler = text(args[2]) if len(args) > 2 else "' '"
        return Expr(f"m_pad({text(args[0])}, {whole(args[1])}, {filler}, {at_left})", TEXT)

    return build


def _locate(args: list[Expr], _: Compare) -> Expr:
    return Expr(f"m_locate({text(args[0])}, {text(args[1])}, {whole(args[2]) if len(args) > 2 else 1})", INT)


def _field(args: list[Expr], _: Compare) -> Expr:
    kinds = {arg.type.kind for arg in args} - {"null"}
    shown = [text(arg) for arg in args] if kinds <= {"str", "date", "datetime", "time"} else [number(arg) for arg in args]
    return Expr(f"m_field({', '.join(shown)})", INT)


def _elt(args: list[Expr], _: Compare) -> Expr:
    return Expr(f"m_elt({', '.join([whole(args[0]), *map(text, args[1:])])})", TEXT)


def _hex(args: list[Expr], _: Compare) -> Expr:
    kind = args[0].type.kind
    shown = args[0].sql if kind in ("str", "bin") else f"m_int({args[0].sql})" if kind == "dbl" else whole(args[0])
    return Expr(f"m_hex({shown})", TEXT)


def _char(args: list[Expr], _: Compare) -> Expr:
    return Expr(f"m_char({', '.join(map(whole, args))})", BINARY)


def _rand(args: list[Expr], _: Compare) -> Expr:
    if args:
        raise unsupported("RAND(seed)")
    return Expr("m_rand()", DOUBLE)


def _sha2(args: list[Expr], _: Compare) -> Expr:
    size = {"0": 256, "224": 224, "256": 256, "384": 384, "512": 512}.get(args[1].value or "")
    if size is None:
        raise unsupported("SHA2 with this length")
    return Expr(f"m_hash('sha{size}', {text(args[0])})", TEXT)


def _isnull(args: list[Expr], _: Compare) -> Expr:
    return Expr(f"({args[0].sql} IS NULL)", INT)


_BUILDERS: dict[tuple[str, int], Builder] = {
    ("IF", 3): _if, ("IFNULL", 2): _coalesce, ("COALESCE", -1): _coalesce, ("NULLIF", 2): _nullif, ("ISNULL", 1): _isnull,
    ("GREATEST", -1): _extreme("GREATEST"), ("LEAST", -1): _extreme("LEAST"), ("ROUND", 1): _round, ("ROUND", 2): _round,
    ("TRUNCATE", 2): _truncate, ("CEIL", 1): _to_whole("ceil"), ("FLOOR", 1): _to_whole("floor"), ("ABS", 1): _absolute,
    ("MOD", 2): _mod, ("LOG", 1): _log, ("LOG", 2): _log, ("SUBSTRING", 2): _substring, ("SUBSTRING", 3): _substring,
    ("LPAD", 2): _pad(1), ("LPAD", 3): _pad(1), ("RPAD", 2): _pad(0), ("RPAD", 3): _pad(0), ("LOCATE", 2): _locate,
    ("LOCATE", 3): _locate, ("FIELD", -1): _field, ("ELT", -1): _elt, ("HEX", 1): _hex, ("CHAR", -1): _char,
    ("RAND", -1): _rand,
    ("SHA2", 2): _sha2, **DATE_BUILDERS,
}  # fmt: skip
