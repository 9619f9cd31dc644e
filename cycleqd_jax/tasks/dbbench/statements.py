"""Statements that would affect other episodes on the same server, recognised in their text.

Rights cover most of the state that episodes share. The rest has no rights of its own on MariaDB. Distributed (XA)
transactions belong to the whole server, and a table of thousands of partitions blocks it for seconds: such statements get an
error, as if the account had no right to execute them. Named locks end with the session of their statement, so texts that use
them are executed one at a time. So are texts that build statements at run time, because these may hide any of the others.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator

__all__ = ["ends_session", "is_dynamic", "refused", "uses_locks"]

_LOCK = re.compile(r"\b(?:GET_LOCK|RELEASE_LOCK|RELEASE_ALL_LOCKS|IS_FREE_LOCK|IS_USED_LOCK)\b", re.IGNORECASE)
_XA = frozenset(("START", "BEGIN", "END", "PREPARE", "COMMIT", "ROLLBACK", "RECOVER"))
_KEY = re.compile(r"\b(?:XA|EXECUTE|PREPARE|PARTITIONS?|SUBPARTITIONS?)\b", re.IGNORECASE)
_MOST_PARTITIONS = 64
# Settings that change where a string ends.
_PARSING = re.compile(r"NO_BACKSLASH_ESCAPES|character_set|\bNAMES\b|\bCHARSET\b|CHARACTER\s+SET", re.IGNORECASE)
_ENDS = re.compile(r"\bKILL\b|_timeout\b|\bSHUTDOWN\b|\bRELEASE\b|\bcompletion_type\b", re.IGNORECASE)
_TEXT = re.compile(r"'(?:[^'\\]|\\.|'')*'?" + r'|"(?:[^"\\]|\\.|"")*"?', re.DOTALL)
_SPACE = re.compile(r"\s+|/\*M?!\d*|\*/")
_WORD = re.compile(r"[\w$]+|`[^`]*`|.", re.DOTALL)


def refused(sql: str) -> str | None:
    """The error for a text with a statement that would affect other episodes; None if there is none.

    Args:
        sql: one or several statements.
    """
    for what in _reasons(sql):
        return f"1227 (42000): Access denied; {what} not available in this database"
    return None


def ends_session(sql: str) -> bool:
    """Whether a text may end its own session on the server."""
    return _ENDS.search(sql) is not None or is_dynamic(sql)


def uses_locks(sql: str) -> bool:
    """Whether a text uses named locks."""
    return _LOCK.search(sql) is not None


def is_dynamic(sql: str) -> bool:
    """Whether a text builds statements at run time."""
    return any(
        words[:2] == ("EXECUTE", "IMMEDIATE") or (words[0] == "PREPARE" and words[2] == "FROM")
        for words in _phrases(_code(sql))
    )


def _code(sql: str) -> str:
    """A text without its strings, which may contain any words, unless the text changes how strings are read."""
    return sql if _PARSING.search(sql) else _TEXT.sub(" 0 ", sql)


def _reasons(sql: str) -> Iterator[str]:
    # Searched also in strings and comments: where a string ends depends on the SQL mode and the character set.
    if any(words[0] == "XA" and words[1] in _XA for words in _phrases(sql)):
        yield "XA transactions are"
    phrases = list(_phrases(_code(sql)))
    count = 1
    for level in ("PARTITION", "SUBPARTITION"):
        listed = sum(words[0] == level and words[1] != "BY" for words in phrases)
        numbers = (int(words[1][:9]) for words in phrases if words[0] == f"{level}S" and words[1].isdecimal())
        count *= max(1, listed, *numbers)
    if count > _MOST_PARTITIONS:
        yield f"more than {_MOST_PARTITIONS} partitions are"


def _phrases(sql: str) -> Iterator[tuple[str, str, str]]:
    """Every key word with the two words that follow it, in upper case; comments between them are left out."""
    ends = {mark: [match.end() for match in re.finditer(re.escape(mark), sql)] for mark in ("*/", "\n")}

    def after(mark: str, position: int) -> int:
        index = bisect.bisect_right(ends[mark], position + 1)
        return ends[mark][index] if index < len(ends[mark]) else len(sql)

    for match in _KEY.finditer(sql):
        words, position = [match.group().upper()], match.end()
        while len(words) < 3 and position < len(sql):
            space = _SPACE.match(sql, position)
            if space:
                position = space.end()
            elif sql.startswith("/*", position):
                position = after("*/", position + 2)
            elif sql.startswith("#", position) or re.compile(r"--\s").match(sql, position):
                position = after("\n", position - 1)
            else:
                word = _WORD.match(sql, position)
                assert word is not None
                words.append(word.group().upper()[:64])
                position = word.end()
        first, second, third, *_ = (*words, "", "")
        yield first, second, third
