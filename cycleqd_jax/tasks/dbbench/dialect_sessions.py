"""MySQL's statements about the session: transactions, savepoints and SET."""

from __future__ import annotations

import re
from typing import NamedTuple

from cycleqd_jax.tasks.dbbench.dialect_expressions import Expressions
from cycleqd_jax.tasks.dbbench.dialect_grammar import Word, syntax_error
from cycleqd_jax.tasks.dbbench.dialect_names import Scope
from cycleqd_jax.tasks.dbbench.dialect_parser import RESERVED, parse, words
from cycleqd_jax.tasks.dbbench.dialect_queries import query
from cycleqd_jax.tasks.dbbench.dialect_types import Refusal, unsupported
from cycleqd_jax.tasks.dbbench.sqlite_values import sort_key

__all__ = ["Assigned", "Transaction", "assignments", "missing_savepoint", "transaction", "uses_variables"]

_NAME = r"(?P<name>`(?:[^`]|``)+`|[\w$]+)"
_CHAIN = r"(?:\s+WORK)?(?P<chain>\s+AND\s+(?P<no>NO\s+)?CHAIN)?(?:\s+NO\s+RELEASE)?"
_FORMS = tuple(
    (kind, re.compile(rf"\s*{pattern}\s*\Z", re.IGNORECASE))
    for kind, pattern in (
        ("begin", r"(?:BEGIN(?:\s+WORK)?|START\s+TRANSACTION(?:\s+WITH\s+CONSISTENT\s+SNAPSHOT|\s+READ\s+WRITE)?)"),
        ("commit", rf"COMMIT{_CHAIN}"),
        ("rollback", rf"ROLLBACK{_CHAIN}"),
        ("savepoint", rf"SAVEPOINT\s+{_NAME}"),
        ("undo", rf"ROLLBACK(?:\s+WORK)?\s+TO\s+(?:SAVEPOINT\s+)?{_NAME}"),
        ("release", rf"RELEASE\s+SAVEPOINT\s+{_NAME}"),
        ("unlock", r"UNLOCK\s+TABLES?"),
    )
)
# Statements before which the server commits, whether they fail or not.
_COMMITS = re.compile(
    r"\s*(?:LOCK|GRANT|REVOKE|FLUSH|RENAME|ANALYZE|OPTIMIZE|CHECK|REPAIR|SET\s+PASSWORD|"
    r"(?:CREATE|ALTER|DROP|TRUNCATE)\b(?!\s+(?:OR\s+REPLACE\s+)?TEMPORARY))\b",
    re.IGNORECASE,
)


_UNTRANSLATED = re.compile(
    r"\s*(?:(?:COMMIT|ROLLBACK)\b(?!\s+WORK\s+TO\b|\s+TO\b).*(?<!NO)\s+RELEASE|START\s+TRANSACTION\b.*\bREAD\s+ONLY\b.*|"
    r"BEGIN\s+NOT\s+ATOMIC\b.*)\s*\Z",
    re.IGNORECASE | re.DOTALL,
)


class Transaction(NamedTuple):
    """What a statement does to the transaction of its session.

    Attributes:
        kind: begin, commit, rollback, savepoint, undo (ROLLBACK TO), release, unlock, or implicit for a statement before
            which the server commits.
        name: name of the savepoint, as it is compared.
        chained: whether the next transaction begins at once.
    """

    kind: str
    name: str = ""
    chained: bool = False


def transaction(sql: str) -> Transaction | None:
    """What a statement does to the transaction of its session; None if nothing.

    Raises:
        Refusal: it names a savepoint by a word that is no name, or is not translated.
    """
    if _UNTRANSLATED.match(sql):
        raise unsupported("this statement about transactions")
    for kind, pattern in _FORMS:
        match = pattern.match(sql)
        if match is None:
            continue
        parts = match.groupdict()
        name = parts.get("name") or ""
        if name and (name.isdecimal() or name.upper() in RESERVED):
            raise syntax_error(name)
        chained = parts.get("chain") is not None and parts.get("no") is None
        return Transaction(kind, sort_key(_unquoted(name)) if name else "", chained)
    return Transaction("implicit") if _COMMITS.match(sql) else None


def missing_savepoint(sql: str) -> Refusal:
    """The error of ROLLBACK TO and RELEASE if there is no such savepoint."""
    name = next(match["name"] for _, pattern in _FORMS if (match := pattern.match(sql)) and "name" in match.groupdict())
    return Refusal(f"1305 (42000): SAVEPOINT {_unquoted(name)} does not exist")


def _unquoted(name: str) -> str:
    return name[1:-1].replace("``", "`") if name.startswith("`") else name


def uses_variables(sql: str) -> bool:
    """Whether a statement uses variables of users or of the server."""
    return any(word.text.startswith("@") for word in words(sql))


# ------------------------------------------------------------------------------------------------ SET

_FLAG = r"0|1|ON|OFF|TRUE|FALSE|DEFAULT|'(?:ON|OFF)'"
_NUMBER = r"\d{1,18}|DEFAULT"
_MODES = (
    "ALLOW_INVALID_DATES|ANSI|ANSI_QUOTES|EMPTY_STRING_IS_NULL|ERROR_FOR_DIVISION_BY_ZERO|HIGH_NOT_PRECEDENCE|IGNORE_BAD_TABLE_OPTIONS|"
    "IGNORE_SPACE|NO_AUTO_CREATE_USER|NO_AUTO_VALUE_ON_ZERO|NO_BACKSLASH_ESCAPES|NO_DIR_IN_CREATE|NO_ENGINE_SUBSTITUTION|"
    "NO_UNSIGNED_SUBTRACTION|NO_ZERO_DATE|NO_ZERO_IN_DATE|ONLY_FULL_GROUP_BY|PAD_CHAR_TO_FULL_LENGTH|PIPES_AS_CONCAT|"
    "REAL_AS_FLOAT|STRICT_ALL_TABLES|STRICT_TRANS_TABLES|TIME_ROUND_FRACTIONAL|TRADITIONAL"
)
_CHARSET = r"'?(?:utf8|utf8mb3|utf8mb4|latin1|ascii|binary)'?"
# Settings that no result depends on, and settings that results depend on, with the values that the server accepts.
_PLAIN = {
    **dict.fromkeys(
        ("FOREIGN_KEY_CHECKS", "UNIQUE_CHECKS", "SQL_NOTES", "SQL_WARNINGS", "SQL_BIG_SELECTS", "PROFILING"), _FLAG),
    **dict.fromkeys(
        ("WAIT_TIMEOUT", "INTERACTIVE_TIMEOUT", "NET_READ_TIMEOUT", "NET_WRITE_TIMEOUT", "LOCK_WAIT_TIMEOUT",
         "INNODB_LOCK_WAIT_TIMEOUT", "SORT_BUFFER_SIZE", "JOIN_BUFFER_SIZE", "READ_BUFFER_SIZE", "TMP_TABLE_SIZE",
         "MAX_HEAP_TABLE_SIZE", "MAX_STATEMENT_TIME"), _NUMBER),
    "SQL_MODE": r"''|DEFAULT|'NO_ENGINE_SUBSTITUTION'|\(\s*SELECT\s+REPLACE\s*\(\s*@@(?:SESSION\.)?sql_mode\s*,"
    r"\s*'ONLY_FULL_GROUP_BY,?'\s*,\s*''\s*\)\s*\)",
    "SQL_SAFE_UPDATES": r"0|OFF|FALSE|DEFAULT",
    "DEFAULT_STORAGE_ENGINE": r"'?InnoDB'?|DEFAULT",
    "STORAGE_ENGINE": r"'?InnoDB'?|DEFAULT",
    "TX_ISOLATION": r"'?(?:READ-UNCOMMITTED|READ-COMMITTED|REPEATABLE-READ|SERIALIZABLE)'?|DEFAULT",
}  # fmt: skip
_EFFECTIVE = {
    "SQL_MODE": rf"'(?:{_MODES})(?:,(?:{_MODES}))*'|{_MODES}",
    "SQL_SAFE_UPDATES": r"1|ON|TRUE",
    **dict.fromkeys(("SQL_AUTO_IS_NULL", "SQL_QUOTE_SHOW_CREATE"), _FLAG),
    **dict.fromkeys(
        ("GROUP_CONCAT_MAX_LEN", "SQL_SELECT_LIMIT", "MAX_SORT_LENGTH", "TIMESTAMP", "INSERT_ID", "LAST_INSERT_ID"), _NUMBER),
    "DIV_PRECISION_INCREMENT": r"[12]?\d|30|DEFAULT",
    "TIME_ZONE": r"'[+-](?:0?\d|1[0-2]):[0-5]\d'|'?SYSTEM'?|DEFAULT",
    "LC_TIME_NAMES": r"'?(?:en|de|fr|es|it|pt|nl)_(?:US|GB|DE|FR|ES|IT|PT|NL)'?|DEFAULT",
    **dict.fromkeys(
        ("CHARACTER_SET_CLIENT", "CHARACTER_SET_CONNECTION", "CHARACTER_SET_RESULTS"), _CHARSET),
    "COLLATION_CONNECTION": r"'?utf8mb4_(?:bin|(?:general|unicode|unicode_520)_ci)'?|DEFAULT",
}  # fmt: skip
_ISOLATION = re.compile(
    r"(?:SET\s+)(?:SESSION\s+|LOCAL\s+)?TRANSACTION\s+(?:ISOLATION\s+LEVEL\s+"
    r"(?:READ\s+UNCOMMITTED|READ\s+COMMITTED|REPEATABLE\s+READ|SERIALIZABLE)|READ\s+WRITE)\s*\Z",
    re.IGNORECASE,
)
_NAMES = re.compile(
    rf"SET\s+(?:NAMES\s+(?:DEFAULT|{_CHARSET}(?:\s+COLLATE\s+'?utf8mb4_(?:bin|(?:general|unicode|unicode_520)_ci)'?)?)"
    rf"|(?:CHARSET|CHARACTER\s+SET)\s+(?:DEFAULT|{_CHARSET}))\s*\Z",
    re.IGNORECASE,
)
_ONLY_GLOBAL = frozenset((
    "MAX_CONNECTIONS", "CONNECT_TIMEOUT", "INNODB_BUFFER_POOL_SIZE", "INNODB_FLUSH_LOG_AT_TRX_COMMIT", "EVENT_SCHEDULER",
    "LOCAL_INFILE", "GENERAL_LOG", "READ_ONLY", "LOG_BIN_TRUST_FUNCTION_CREATORS", "KEY_BUFFER_SIZE", "SYNC_BINLOG",
))  # fmt: skip
_DENIED = Refusal("1227 (42000): Access denied; you need (at least one of) the SUPER privilege(s) for this operation")


class Assigned(NamedTuple):
    """What SET changes.

    Attributes:
        sql: queries of SQLite that compute the values of variables.
        automatic: whether every later statement of the session is committed; None if that does not change.
        variables: whether variables of the user are set.
        settings: whether results of later statements may be others.
    """

    sql: tuple[str, ...]
    automatic: bool | None
    variables: bool
    settings: bool


def assignments(sql: str, scope: Scope) -> Assigned:
    """The meaning of SET.

    Raises:
        Refusal: the account has no right to do it, there is no such variable, or it is not translated.
    """
    listed = words(sql)
    texts = [word.text for word in listed] + [""] * 4
    if texts[1] in ("GLOBAL", "@@GLOBAL"):
        raise _DENIED
    if texts[1] == "PASSWORD":
        raise Refusal("1044 (42000): Access denied for user 'root'@'%' to database 'mysql'")
    if texts[1] in ("ROLE", "DEFAULT", "STATEMENT", "RESOURCE"):
        if texts[1:4] == ["ROLE", "NONE", ""]:
            return Assigned((), None, False, False)
        raise unsupported(f"SET {texts[1]}")
    if _ISOLATION.match(sql):
        return Assigned((), None, False, False)
    if texts[1:4] == ["NAMES", "UTF8MB4", ""]:
        return Assigned((), None, False, False)
    if _NAMES.match(sql):
        return Assigned((), None, False, True)
    if texts[1] in ("NAMES", "CHARSET", "CHARACTER", "TRANSACTION") or texts[2] == "TRANSACTION":
        raise unsupported(f"this SET {texts[1]}")
    made = Assigned((), None, False, False)
    for name, value in _items(sql, listed):
        made = _assigned(name, value, made, scope)
    return made


def _items(sql: str, listed: list[Word]) -> list[tuple[list[str], str]]:
    """For each assignment the words before its sign, and the text after it."""
    ends, depth = [], 0
    for index, word in enumerate(listed):
        depth += (word.text == "(") - (word.text == ")")
        if word.text == "," and depth == 0:
            ends.append(index)
    items, begin = [], 1
    for end in [*ends, len(listed)]:
        sign = next((i for i in range(begin, end) if listed[i].text in ("=", ":=")), None)
        if sign is None or sign in (begin, end - 1):
            raise syntax_error(sql[listed[begin].start :] if begin < len(listed) else "")
        stop = listed[end].start if end < len(listed) else len(sql)
        items.append(([word.text for word in listed[begin:sign]], sql[listed[sign + 1].start : stop].strip()))
        begin = end + 1
    return items


def _assigned(name: list[str], value: str, made: Assigned, scope: Scope) -> Assigned:
    if name[0].startswith("@") and not name[0].startswith("@@"):
        if len(name) != 1 + (name[0] == "@" and name[1:2] in (["'"], ["`"])) or name == ["@"]:
            raise syntax_error(" ".join(name))
        node, _ = parse(f"SELECT {value}")
        if type(node).__name__ != "Select" or len(node.expressions) != 1 or len([v for v in node.args.values() if v]) != 1:
            raise syntax_error(value)
        made_value = Expressions(Scope(scope.catalog, scope.database), query)(node.expressions[0])
        return made._replace(sql=(*made.sql, f"SELECT {made_value.sql}"), variables=True)
    if name[0] in ("SESSION", "LOCAL") and len(name) > 1:
        name = name[1:]
    elif name[:2] in (["@@SESSION", "."], ["@@LOCAL", "."]):
        name = name[2:]
    elif name[0] in ("GLOBAL", "@@GLOBAL") and len(name) > 1:
        raise _DENIED
    elif name[0].startswith("@@"):
        name = [name[0][2:], *name[1:]]
    if len(name) == 2:
        raise syntax_error(" ".join(name))
    if len(name) > 1:
        raise Refusal(f"4081 (HY000): Unknown structured system variable or ROW routine variable '{name[0].lower()}'")
    variable = name[0]
    if variable in _ONLY_GLOBAL:
        raise Refusal(f"1229 (HY000): Variable '{variable.lower()}' is a GLOBAL variable and should be set with SET GLOBAL")
    if variable in ("SQL_LOG_BIN", "BINLOG_FORMAT"):
        raise _DENIED
    if variable == "AUTOCOMMIT" and re.fullmatch(_FLAG, value, re.IGNORECASE):
        return made._replace(automatic=value.strip("'").upper() in ("1", "ON", "TRUE", "DEFAULT"))
    if re.fullmatch(_PLAIN.get(variable, "(?!)"), value, re.IGNORECASE):
        return made
    if re.fullmatch(_EFFECTIVE.get(variable, "(?!)"), value, re.IGNORECASE):
        return made._replace(settings=True)
    known = variable == "AUTOCOMMIT" or variable in _PLAIN or variable in _EFFECTIVE
    raise unsupported(f"SET {variable.lower()}{' to this value' * known}")
