"""Rules of MySQL's grammar that sqlglot does not enforce: a statement that breaks one is an error, as on the server."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from cycleqd_jax.tasks.dbbench.dialect_types import Refusal, unsupported

__all__ = ["Word", "check", "syntax_error"]

_CHANGES = frozenset(("INSERT", "REPLACE", "UPDATE", "DELETE"))
_QUERIES = _CHANGES | {"SELECT", "WITH", "("}
_RANKS = {"FROM": 1, "WHERE": 3, "GROUP": 4, "HAVING": 5, "ORDER": 7, "LIMIT": 8}
_SETS = frozenset(("UNION", "EXCEPT", "INTERSECT"))
_BEFORE_COMMA = frozenset(("", "(", ",", "SELECT", "DISTINCT", "FROM", "WHERE", "BY", "HAVING", "SET", "AND", "OR", "ON", "AS"))
_AFTER_COMMA = frozenset(
    ("", ")", ",", "*", "FROM", "WHERE", "GROUP", "HAVING", "ORDER", "LIMIT", "UNION", "SET", "ON", "AND", "OR", "AS")
)
_UNFINISHED = frozenset(
    ("BY", "WHERE", "HAVING", "FROM", "AS", "ON", "AND", "OR", "XOR", "NOT", "LIKE", "BETWEEN", "THEN", "ELSE", "SELECT",
     "JOIN", "LIMIT", "=", "<", ">")
)  # fmt: skip
_AFTER_LIMIT = frozenset(
    ("", ")", ",", "OFFSET", "UNION", "EXCEPT", "INTERSECT", "FOR", "LOCK", "INTO", "ON", "PROCEDURE", "ROWS")
)
_CALLED = frozenset((
    "ADDDATE", "BIT_AND", "BIT_OR", "BIT_XOR", "CAST", "COUNT", "CURDATE", "CURTIME", "DATE_ADD", "DATE_SUB", "EXTRACT",
    "GROUP_CONCAT", "MAX", "MID", "MIN", "NOW", "POSITION", "SESSION_USER", "STD", "STDDEV", "STDDEV_POP", "STDDEV_SAMP",
    "SUBDATE", "SUBSTR", "SUBSTRING", "SUM", "SYSDATE", "SYSTEM_USER", "TRIM", "VARIANCE", "VAR_POP", "VAR_SAMP",
))  # fmt: skip
_NAMING = frozenset(("INTO", "TABLE", "FROM", "JOIN", "UPDATE", "ON", "VIEW", "INDEX", "KEY", "INSERT", "REPLACE", "."))
_CASTS = frozenset((
    "SIGNED", "UNSIGNED", "CHAR", "CHARACTER", "NCHAR", "NATIONAL", "BINARY", "DATE", "DATETIME", "TIME", "DECIMAL", "DEC",
    "DOUBLE", "FLOAT", "INT", "INTEGER", "VARCHAR", "JSON", "YEAR",
))  # fmt: skip
_BEFORE_NOT = frozenset((
    "", "(", ",", "SELECT", "DISTINCT", "WHERE", "AND", "OR", "XOR", "NOT", "ON", "HAVING", "WHEN", "THEN", "ELSE", "IS", "BY",
    "CASE", "BETWEEN", "SET", "=", "<", ">", "<=", ">=", "<>", "!=", "<=>", "&&", "||", "RETURN",
))  # fmt: skip


class Word(NamedTuple):
    """A word, a sign, a name or a string of a statement.

    Attributes:
        text: words and signs in capitals; ``'`` for a string, a backtick for a name in backticks.
        start: its first character's index in the statement.
        spaced: whether spaces or comments stand before it.
    """

    text: str
    start: int
    spaced: bool


@dataclasses.dataclass
class _Level:
    """What stands between two parentheses: the function that they belong to, the last clause, the number of commas."""

    opener: str = ""
    rank: int = -1
    commas: int = 0


def syntax_error(near: str) -> Refusal:
    """MySQL's error of a statement that can't be parsed."""
    return Refusal(
        "1064 (42000): You have an error in your SQL syntax; check the manual that corresponds to your MySQL server "
        f"version for the right syntax to use near '{near[:80]}' at line 1"
    )


def check(statement: str, words: list[Word]) -> None:
    """Checks the order of the words of a statement.

    Raises:
        Refusal: MySQL does not parse it.
    """
    first = words[0].text if words else ""
    if first in ("FROM", "TABLE"):
        raise syntax_error(statement)
    if first == "VALUES":
        raise unsupported("VALUES as a query")
    second = words[1].text if len(words) > 1 else ""
    priorities = ("IGNORE", "LOW_PRIORITY", "HIGH_PRIORITY", "DELAYED", "QUICK")
    if first in _CHANGES and second in priorities and (first, second) != ("INSERT", "IGNORE"):
        raise unsupported(f"{first} {second}")
    if first == "DO":
        raise unsupported("DO")
    if first == "DELETE" and all(word.text != "FROM" for word in words):
        raise syntax_error("")
    levels, listing = [_Level()], first in ("INSERT", "REPLACE")
    texts = ["", *(word.text for word in words), "", "", ""]
    for index, word in enumerate(words):
        text, before, after, later = word.text, *texts[index : index + 1], *texts[index + 2 : index + 4]
        level = levels[-1]
        if listing and text == "." and len(levels) > 1:
            raise unsupported(f"names of tables before the columns of {first}")
        if first == "DELETE" and text == "USING" and after != "(" and len(levels) == 1:
            raise unsupported("DELETE … USING")
        if before == ".":
            continue
        if text in ("VALUES", "VALUE", "SELECT", "SET", "WITH"):
            listing = False
        wrong = (
            _wrong_pair(text, before, after, later)
            or (first in _QUERIES and _wrong_clause(text, before, after, later, level))
            or _wrong_argument(text, after, later, level)
            or (listing and text in ("'", "TABLE", "AS"))
            or (text == "VALUES" and first in ("INSERT", "REPLACE") and after != "(")
            or (first in ("UPDATE", "DELETE") and len(levels) == 1 and _wrong_change(text, before, after, later, level, texts))
            or (first in _QUERIES and (text, after) == ("NOT", "NULL") and before not in _BEFORE_NOT and not _operator(before))
        )
        if wrong:
            raise syntax_error(statement[word.start :])
        if text == "ROW" and after == "(":
            raise unsupported("ROW(…)")
        if first in _CHANGES and (text, after) == ("=", "DEFAULT") and later != "(":
            raise unsupported("= DEFAULT")
        if text == "(":
            joined = before in ("FROM", "JOIN") and after not in ("SELECT", "(", "WITH", "VALUES", "TABLE")
            if joined and level.opener not in ("TRIM", "EXTRACT", "SUBSTRING", "SUBSTR", "MID"):
                raise unsupported("a join in parentheses")
            if before in _CALLED and word.spaced and texts[index - 1] not in _NAMING and first in _QUERIES:
                if before in ("CAST", "EXTRACT", "POSITION") or after in ("*", "DISTINCT"):
                    raise syntax_error(statement[word.start + 1 :])
                raise Refusal(f"1630 (42000): FUNCTION {before} does not exist; write no space before its parenthesis")
            levels.append(_Level(before))
        elif text == ")":
            levels = levels[:-1] or [_Level()]


def _operator(text: str) -> bool:
    return text in ("+", "-", "*", "/", "%", "&", "|", "^", "~", "!")


def _wrong_pair(text: str, before: str, after: str, later: str) -> bool:
    """Whether a word can't stand beside its neighbours."""
    return (
        (text == "," and (before in _BEFORE_COMMA or after in _AFTER_COMMA))
        or (text == "=" and after == "=")
        or (text in _UNFINISHED and after in ("", ")"))
        or (text == "NULLS" and after in ("FIRST", "LAST"))
        or (text in ("ISNULL", "NOTNULL") and after != "(" and before not in ("AS", ",", "SELECT"))
        or (text == "DISTINCT" and before in ("IS", "NOT") and after == "FROM")
        or (text, after) == ("BETWEEN", "SYMMETRIC")
        or (text == "OVER" and before == ")" and after in ("", ")", ",", "FROM"))
        or (text == "INTERVAL" and (after == "'" or after[:1].isdigit()) and later in ("", ")", ","))
    )


def _wrong_clause(text: str, before: str, after: str, later: str, level: _Level) -> bool:
    """Whether a clause comes too late; remembers the clause."""
    if text == "SELECT":
        wrong, level.rank = level.rank >= 0, 0
        return wrong
    if text in _SETS:
        wrong, level.rank = level.rank >= _RANKS["ORDER"], -1
        return wrong
    if text == "OFFSET" and after.isdigit():
        return level.rank < _RANKS["LIMIT"] and before not in ("AS", ",", "SELECT") and later not in ("ROW", "ROWS")
    if text == "LIMIT" and after.isdigit() and later not in _AFTER_LIMIT:
        return True
    if text == "USING" and level.rank == _RANKS["FROM"] and after != "(":
        return True
    if text not in _RANKS or (text in ("GROUP", "ORDER") and after != "BY"):
        return False
    wrong, level.rank = level.rank >= _RANKS[text], _RANKS[text]
    return wrong


def _wrong_change(text: str, before: str, after: str, later: str, level: _Level, texts: list[str]) -> bool:
    """Whether a word of UPDATE or DELETE is at a wrong place."""
    if text == "SET" and before != "CHARACTER":
        wrong, level.rank = level.rank >= 2, 2
        return wrong
    if text == "LIMIT":
        return later in (",", "OFFSET")
    # Only a DELETE that names tables before or after FROM may have an alias.
    return text == "AS" and texts[1:3] == ["DELETE", "FROM"] and level.rank == 1 and "USING" not in texts


def _wrong_argument(text: str, after: str, later: str, level: _Level) -> bool:
    """Whether a function has arguments of another form."""
    opener = level.opener
    if text == ",":
        level.commas += 1
        most = {"TRIM": 0, "POSITION": 0, "EXTRACT": 0, "CAST": 0, "SUBSTRING": 2, "SUBSTR": 2, "MID": 2}.get(opener)
        if most is not None and level.commas > most:
            return True
    if text == "FROM" and opener in ("SUBSTRING", "SUBSTR", "MID"):
        level.commas += 1
    if text == "FOR" and opener in ("SUBSTRING", "SUBSTR", "MID"):
        return level.commas == 0
    if (text == "AS" and opener == "CAST") or (text == "," and opener == "CONVERT"):
        return after not in _CASTS or (after == "VARCHAR" and later != "(")
    return False
