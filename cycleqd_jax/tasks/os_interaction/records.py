"""The records of OS interaction."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any, Literal

import regex

from cycleqd_jax.tasks.os_interaction.checks import BUILTINS
from cycleqd_jax.tasks.records import Row

__all__ = ["OsRecord", "Script", "parse_record"]

Language = Literal["bash", "python"]
Builtin = Literal["integer-match", "string-match", "size-match"]


@dataclasses.dataclass(frozen=True)
class Script:
    """A program for the sandbox.

    Attributes:
        language: language of the code.
        code: the program.
    """

    language: Language
    code: str

    def argv(self, *arguments: str) -> list[str]:
        """The command line, as in AgentBench."""
        if self.language == "bash":
            return ["bash", "-c", self.code, *(["--", *arguments] if arguments else [])]
        return ["python3", "-c", self.code, *arguments]


@dataclasses.dataclass(frozen=True)
class OsRecord:
    """One problem. It is judged by ``match``, by ``regex`` or by ``checks``.

    Attributes:
        id: the id in the file.
        description: the problem in words.
        init: scripts that run one after another before the episode, each in its own process.
        start: script that is typed into the agent's shell before the episode, or None.
        match: the answer, or None.
        regex: a pattern that the answer must contain, or None; in the syntax of Python's ``re``.
        strip: whether blanks around the answer are ignored.
        checks: checks that run in order on the answer and the outputs of the earlier checks; all must succeed.
        example: the gold command, or None.
    """

    id: str
    description: str
    init: tuple[Script, ...]
    start: Script | None
    match: str | None
    regex: str | None
    strip: bool
    checks: tuple[Script | Builtin, ...]
    example: Script | None

    @property
    def asks(self) -> bool:
        """Whether the answer is judged, not only the state of the system."""
        return self.match is not None or self.regex is not None or self.example in self.checks


def parse_record(row: Row) -> OsRecord:
    """Parses a flat record of AgentBench's OS problems, of the standard or the training set."""
    example = _script(row, "example_script", row.get("example_script", list, None))
    init = [_script(row, "init_script", item) for item in row.get("init_script", list, None) or ()]
    match = row.get("match", dict, None)
    raw = row.get("check", list, None)
    if (match is None) == (raw is None) or (raw is not None and not raw):
        raise row.error("either match or a list of checks", "both or neither")
    answer, pattern = (None, None) if match is None else (match.get("answer"), match.get("regex"))
    known = all(text is None or isinstance(text, str) for text in (answer, pattern))
    if match is not None and (not known or (answer is None) == (pattern is None)):
        raise row.error("an answer or a regex in field 'match'", json.dumps(match)[:80])
    if pattern is not None:
        try:
            re.compile(pattern)  # whose syntax docs and records follow; the other package takes more
            regex.compile(pattern)
        except (re.error, regex.error, OverflowError, RecursionError) as error:
            raise row.error("a regular expression in field 'match'", str(error)) from error
    checks: list[Script | Builtin] = []
    for item in raw or ():
        check = example if item is None else _check(row, item)
        if check is None:
            raise row.error("an example_script, which a check of null stands for", "none")
        checks.append(check)
    for position, check in enumerate(checks):
        if isinstance(check, str) and position == 0:
            raise row.error("a script before a builtin check in field 'check'", f"{check!r} first")
    return OsRecord(
        id=row.id,
        description=row.text("description"),
        init=tuple(script for script in init if script is not None),
        start=_script(row, "start", row.get("start", list, None)),
        match=answer,
        regex=pattern,
        strip=match is not None and row.get("match/strip", bool, True),
        checks=tuple(checks),
        example=example,
    )


def _script(row: Row, field: str, item: Any) -> Script | None:
    if item is None:
        return None
    if not isinstance(item, list) or len(item) != 2 or not all(isinstance(part, str) for part in item):
        raise row.error(f"[language, code] in field {field!r}", json.dumps(item)[:80])
    language, code = item
    if language not in ("bash", "python"):
        raise row.error(f"bash or python in field {field!r}", repr(language))
    return Script(language, code)


def _check(row: Row, item: Any) -> Script | Builtin | None:
    if isinstance(item, dict):
        builtin = item.get("builtin")
        if builtin not in BUILTINS:
            raise row.error(f"one of {', '.join(BUILTINS)} in field 'check'", json.dumps(item)[:80])
        return builtin
    return _script(row, "check", item)
