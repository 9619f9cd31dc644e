"""Parses MySQL's statements with sqlglot, within limits of size and depth."""

from __future__ import annotations

import functools
import itertools
import logging
import re
from typing import Any

from cycleqd_jax.tasks.dbbench.dialect_grammar import Word, check, syntax_error
from cycleqd_jax.tasks.dbbench.dialect_types import Refusal, unsupported

__all__ = ["ONLY_A_COMMENT", "RESERVED", "parse", "split", "words"]

ONLY_A_COMMENT = "/**/"
"""A statement that is nothing but a comment."""

_MOST_CHARACTERS = 60_000
_MOST_TOKENS = 6_000
_DEEPEST = 40  # sqlglot needs about 15 frames of Python's stack for one level
_LONGEST_CHAIN = 60  # operators in a row that sqlglot parses by recursion
_SCANNED = re.compile(
    r"(?P<string>'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.|\"\")*\")"
    r"|(?P<name>`(?:[^`]|``)*`)"
    r"|(?P<run>/\*M?!(?P<version>\d{5,6})?)"
    r"|(?P<comment>/\*.*?\*/|--(?:\s[^\n]*|$)|#[^\n]*)"
    r"|(?P<space>\s+)"
    r"|(?P<word>[\w$@]+)"
    r"|(?P<sign><=>|<<|>>|&&|\|\||:=|<=|>=|<>|!=|.)",
    re.DOTALL,
)
_SIGNS = frozenset(
    ("<=>", "<<", ">>", "&&", "||", ":=", "<=", ">=", "<>", "!=", "=", "<", ">", "+", "-", "*", "/", "%", "&", "|", "^",
     "~", "!", "(", ")", ",", ".")
)  # fmt: skip
_PREFIXES = frozenset(("NOT", "!", "-", "+", "~", "BINARY", "INTERVAL", "CASE", "EXPLAIN", "DESCRIBE", "DESC"))
_WORDS = """
    ACCESSIBLE ADD ALL ALTER ANALYZE AND AS ASC ASENSITIVE BEFORE BETWEEN BIGINT BINARY BLOB BOTH BY CALL CASCADE CASE
    CHANGE CHAR CHARACTER CHECK COLLATE COLUMN CONDITION CONSTRAINT CONTINUE CONVERT CREATE CROSS CURSOR DATABASE DATABASES
    DEC DECIMAL DECLARE DEFAULT DELAYED DELETE DESC DESCRIBE DISTINCT DISTINCTROW DIV DOUBLE DROP EACH ELSE ELSEIF ENCLOSED
    ESCAPED EXCEPT EXISTS EXIT EXPLAIN FETCH FLOAT FOR FORCE FOREIGN FROM FULLTEXT GRANT GROUP HAVING IF IGNORE IN INDEX
    INFILE INNER INOUT INSERT INT INTEGER INTERSECT INTERVAL INTO IS ITERATE JOIN KEY KEYS KILL LEADING LEAVE LEFT LIKE
    LIMIT LINEAR LINES LOAD LOCK LONG LONGBLOB LONGTEXT LOOP MATCH MEDIUMBLOB MEDIUMINT MEDIUMTEXT MOD NATURAL NOT NULL
    NUMERIC ON OPTIMIZE OPTION OR ORDER OUT OUTER OUTFILE OVER PARTITION PRECISION PRIMARY PROCEDURE PURGE RANGE READ READS
    REAL RECURSIVE REFERENCES REGEXP RELEASE RENAME REPEAT REPLACE REQUIRE RESTRICT RETURN RETURNING REVOKE RIGHT RLIKE ROWS
    SCHEMA SCHEMAS SELECT SENSITIVE SEPARATOR SET SHOW SIGNAL SMALLINT SPATIAL SQL STARTING STRAIGHT_JOIN TABLE TERMINATED
    THEN TINYBLOB TINYINT TINYTEXT TO TRAILING TRIGGER TRUE FALSE UNDO UNION UNIQUE UNLOCK UNSIGNED UPDATE USAGE USE USING
    VALUES VARBINARY VARCHAR VARYING WHEN WHERE WHILE WINDOW WITH WRITE XOR ZEROFILL
"""
RESERVED = frozenset(_WORDS.split())
"""Words that MySQL does not allow as names without quotes; sqlglot reads some of them as names."""
_NAMED = re.compile(r"(?i)^(?:\s*)(REPLACE)\b")


def split(sql: str) -> list[str]:
    """The statements of a text, without comments; the contents of executable comments are kept.

    A comment after the last semicolon is a statement too, as for the server: :data:`ONLY_A_COMMENT`.

    Raises:
        Refusal: the text is too long, too deeply nested, or has a character that no statement may have.
    """
    if len(sql) > _MOST_CHARACTERS:
        raise unsupported(f"statements of more than {_MOST_CHARACTERS} characters")
    if re.search("[\ud800-\udfff]", sql):
        raise unsupported("half of a surrogate pair")
    statements: list[list[str]] = [[]]
    comments = [False]  # whether each statement has one
    depth = chain = tokens = position = open_comments = 0
    while position < len(sql):
        if open_comments and sql.startswith("*/", position):
            open_comments -= 1
            position += 2
            statements[-1].append(" ")
            continue
        match = _SCANNED.match(sql, position)
        assert match is not None
        kind, token, start = match.lastgroup, match.group(), position
        position = match.end()
        if kind in ("run", "version"):
            version = int(match["version"] or 0)
            if version > 101_100 or (50_700 <= version <= 99_999 and not token.startswith("/*M")):
                end = sql.find("*/", position)
                position = len(sql) if end < 0 else end + 2
            else:
                open_comments += 1
            statements[-1].append(" ")
            comments[-1] = True
            continue
        if kind in ("comment", "space"):
            statements[-1].append(" ")
            comments[-1] = comments[-1] or kind == "comment"
            continue
        tokens += 1
        if kind == "sign":
            if token == ";":
                statements.append([])
                comments.append(False)
                depth = chain = 0
                continue
            if token in "'\"`" or (token not in _SIGNS and not (token == "?" or ord(token[0]) > 127)):
                raise syntax_error(sql[start:])
            if token == "?":
                raise syntax_error(sql[start:])
        upper = token.upper()
        depth += (upper in ("(", "CASE")) - (upper in (")", "END"))
        chain = chain + 1 if upper in _PREFIXES else 0 if kind in ("string", "name") else chain if upper == "(" else 0
        if depth > _DEEPEST or chain > _LONGEST_CHAIN or tokens > _MOST_TOKENS:
            raise unsupported("statements that are nested so deeply or have so many words")
        statements[-1].append(token)
    joined = ["".join(parts).strip() for parts in statements]
    joined = [one or ONLY_A_COMMENT * remarked for one, remarked in zip(joined, comments, strict=True)]
    while joined and not joined[-1]:
        joined.pop()
    if not joined:
        raise Refusal("1065 (42000): Query was empty")
    if len(joined) > 1 and joined[0] in ("", ONLY_A_COMMENT):
        raise syntax_error(sql[sql.index(";") :])
    return joined


def words(statement: str) -> list[Word]:
    """The words, signs, names and strings of a statement."""
    found, spaced = [], False
    for match in _SCANNED.finditer(statement):
        if match.lastgroup in ("space", "comment"):
            spaced = True
            continue
        shown = {"string": "'", "name": "`"}.get(match.lastgroup or "", match.group().upper())
        found.append(Word(shown, match.start(), spaced))
        spaced = False
    return found


@functools.cache
def _dialect() -> Any:
    """MySQL's dialect of sqlglot, which leaves all functions as they are written. Imported when it is first needed."""
    from sqlglot import TokenType, exp
    from sqlglot.dialects.mysql import MySQL
    from sqlglot.parsers.mysql import MySQLParser

    kept = ("CAST", "CONVERT", "EXTRACT", "GROUP_CONCAT", "POSITION", "SUBSTRING", "SUBSTR", "TRIM", "CHAR", "VALUES")
    logging.getLogger("sqlglot").setLevel(logging.CRITICAL)

    class Plain(MySQLParser):
        FUNCTIONS = {}  # noqa: RUF012
        FUNCTION_PARSERS = {name: MySQLParser.FUNCTION_PARSERS[name] for name in kept}  # noqa: RUF012

        def _parse_group(self, skip_group_by_token: bool = False) -> exp.Group | None:
            if not skip_group_by_token and not self._match(TokenType.GROUP_BY):
                return None
            terms = self._parse_csv(self._group_term)
            index = self._index
            if self._match(TokenType.WITH) and self._match(TokenType.ROLLUP):
                return exp.Group(expressions=terms, rollup=[exp.Rollup()])
            self._retreat(index)
            return exp.Group(expressions=terms)

        def _group_term(self) -> exp.Expr | None:
            """An expression, which may have a direction as those of ORDER BY."""
            term = self._parse_disjunction()
            if self._match(TokenType.DESC):
                return exp.Ordered(this=term, desc=True)
            return exp.Ordered(this=term, desc=False) if self._match(TokenType.ASC) else term

    class Verbatim(MySQL):
        Parser = Plain

    return Verbatim()


def _plain_show(statement: str, found: list[Word]) -> str:
    """SHOW and DESCRIBE with the words that sqlglot knows."""
    texts = [word.text for word in found]
    pieces = [statement[a.start : b.start].strip() for a, b in itertools.pairwise([*found, Word("", len(statement), False)])]
    if texts[0] != "SHOW":
        if len(texts) != 3 or texts[1] in ("SELECT", "EXTENDED", "PARTITIONS") or texts[1] == "'":
            return statement
        name = pieces[2][1:-1].replace("``", "`") if texts[2] == "`" else pieces[2]
        pattern = name if texts[2] == "'" else "'" + name.replace("\\", "\\\\").replace("'", "''") + "'"
        return f"SHOW COLUMNS FROM {pieces[1]} LIKE {pattern}"
    if texts[1:2] == ["EXTENDED"] or texts[1:3] in (["FULL", "INDEX"], ["FULL", "INDEXES"], ["FULL", "KEYS"]):
        raise syntax_error(pieces[1])
    same = {"KEYS": "INDEX", "INDEXES": "INDEX", "FIELDS": "COLUMNS"}
    for place in (1, 2):
        if texts[place : place + 1] and (place == 1 or texts[1] == "FULL"):
            pieces[place] = same.get(texts[place], pieces[place])
    end = next((i for i, text in enumerate(texts) if text in ("LIKE", "WHERE")), len(texts))
    pieces[:end] = ["FROM" if text == "IN" else piece for text, piece in zip(texts, pieces[:end], strict=False)]
    return " ".join(pieces)


def parse(statement: str) -> tuple[Any, bool]:
    """The tree of a statement, and whether it is REPLACE, which is parsed as an INSERT.

    Raises:
        Refusal: sqlglot does not parse it.
    """
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    found = words(statement)
    check(statement, found)
    if found[:1] and found[0].text in ("SHOW", "DESC", "DESCRIBE", "EXPLAIN"):
        statement = _plain_show(statement, found)
    replaces = _NAMED.match(statement)
    if replaces:
        statement = "INSERT" + statement[replaces.end() :]
        if statement[6:].lstrip()[:4].upper() != "INTO":
            statement = "INSERT INTO" + statement[6:]
    try:
        trees = _dialect().parse(statement)
    except SqlglotError as error:
        details = getattr(error, "errors", None) or [{}]
        near = f"{details[0].get('highlight') or ''}{details[0].get('end_context') or ''}"
        raise syntax_error(near) from None
    except (RecursionError, MemoryError):
        raise unsupported("statements that are nested so deeply") from None
    except Exception:  # a fault of sqlglot
        raise syntax_error(statement) from None
    if len(trees) != 1 or trees[0] is None:
        raise syntax_error(statement)
    names = {match["name"][1:-1].replace("``", "`") for match in _SCANNED.finditer(statement) if match["name"]}
    for node in trees[0].find_all(exp.Identifier):
        place = node.parent
        if node.args.get("quoted") and node.name not in names and not isinstance(place, exp.Alias):
            raise syntax_error(f"'{node.name}'")  # a string, which names nothing but a column of a result
        if not node.args.get("quoted") and node.name.upper() in RESERVED:
            qualified = isinstance(place, exp.Column) and place.args.get("table") is not None and node.arg_key == "this"
            if not qualified:
                raise syntax_error(node.name)
    return trees[0], replaces is not None
