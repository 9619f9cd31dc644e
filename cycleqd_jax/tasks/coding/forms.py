"""Other forms in which a reply may show code: sessions of an interpreter, strings of JSON, HTML, texts with special tokens."""

from __future__ import annotations

import html
import itertools
import json
import re
import textwrap
from collections.abc import Iterator

from cycleqd_jax.tasks.syntax import literal

__all__ = ["as_session", "is_session", "other_forms", "unfenced"]

_PROMPT = re.compile(r"[ \t]*(?:>>>|\.\.\.:|\.\.\.|In ?\[\d*\]:) ?")
_FIRST_PROMPT = re.compile(r"^[ \t]*(?:>>>|In ?\[\d*\]:)", re.MULTILINE)
_OPEN = (":", "(", "[", "{", ",", "\\")  # ends of lines after which a statement goes on
# Code that is in no block.
_STATEMENT = r"(?:def|class|async def|from|import)[ \t][^`\n]*|[A-Za-z_]\w*[ \t]*(?::[^`=\n]*)?=(?!=)[^`\n]*"
_IN_LINE = re.compile(rf"`(?:(?:python|py)3?[ \t]+)?({_STATEMENT})`")
_LAMBDA = re.compile(r"(?<![\w.])[A-Za-z_]\w{0,99}[ \t]*=[ \t]*lambda\b[^`\n]*")
_HTML = re.compile(
    r"<(?:pre|code)\b[^<>\n]*>(?:\s*<code\b[^<>\n]*>)?((?:(?!<pre|<code).)*?)</(?:pre|code)>", re.DOTALL | re.IGNORECASE
)
_BREAK = re.compile(r"<br ?/?>", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][^<>\n]*>")
_INDENTED = re.compile(r"^(?: {4}|\t)[ \t]*\S.*(?:\n(?:[ \t]*|(?: {4}|\t).*)$)*", re.MULTILINE)
# Tokens of chat templates, and tags at the begin or end of a line. Code may stand in the same line.
_TOKEN = re.compile(r"<[|｜][\w▁ ]{1,40}[|｜]>|</?s>|<(?:start_of_turn|end_of_turn|bos|eos|pad)>|\[/?INST\]")
_LINE_TAG = re.compile(
    r"^[ \t]*(?:</?[A-Za-z][\w-]*>|\[/?[A-Za-z]{2,}(?:=\w+)?\])|(?:</[A-Za-z][\w-]*>|\[/[A-Za-z]{2,}\])[ \t]*$", re.MULTILINE
)
_STRING = re.compile(r'(?<!\\)"(?:[^"\\]++|\\.)*+"|(?<![\\\w])\'(?:[^\'\\\n]++|\\.)*+\'', re.DOTALL)
_LIST = re.compile(r'\[\s*"[^\[\]{}]*"\s*\]')
_ENTITY = re.compile(r"&(?:lt|gt|amp|quot|#\d{1,4});")
_NUMBER = re.compile(r"^[ \t]*\d{1,4}(?:[.:|)]|[ \t]+\||(?=[ \t]))[ \t]?", re.MULTILINE)
_QUOTED = re.compile(r"^[ \t]*>(?!>)[ \t]?", re.MULTILINE)
_MOST_STRINGS = 100


def is_session(code: str) -> bool:
    """Whether a text has lines with the prompts of Python or IPython."""
    return _FIRST_PROMPT.search(code) is not None


def as_session(code: str) -> str:
    """The statements of an interpreter's session, without prompts, output and commands of IPython.

    Some programs show lines that continue a statement without a prompt.
    """
    kept: list[str] = []
    goes_on = False
    for line in textwrap.dedent(code).split("\n"):
        prompt = _PROMPT.match(line)
        text = line[prompt.end() :] if prompt else line
        if prompt:
            goes_on = text.rstrip().endswith(_OPEN)
            if not text.startswith(("%", "!", "?")):
                kept.append(text)
        elif goes_on and (not line.strip() or line[0] in " \t)]}"):
            kept.append(line)
        else:
            goes_on = False
    return "\n".join(kept) + "\n"


def unfenced(text: str) -> Iterator[str]:
    """The texts of a reply that may be code, but are in no block: code in a line, in HTML, and indented paragraphs."""
    for match in _IN_LINE.finditer(text):
        yield match.group(1).strip()
    for match in _LAMBDA.finditer(text):
        yield match.group().rstrip(" \t.;*")
    for match in _HTML.finditer(text):
        code = match.group(1)
        yield html.unescape(code)
        if "<" in code:  # colours of a highlighter
            yield html.unescape(_TAG.sub("", _BREAK.sub("\n", code)))
    for match in _INDENTED.finditer(text):
        yield textwrap.dedent(match.group())


def other_forms(text: str) -> Iterator[str]:
    """A reply as it is without what stands around its code: special tokens, prompts, quotation marks, numbers of lines."""
    plain = "\n".join(_TOKEN.sub("\n", text).replace("\xa0", " ").splitlines())
    if plain != text:
        yield plain
    tagless = _LINE_TAG.sub("\n", plain)
    if tagless != plain:
        yield tagless
    if is_session(plain):
        yield as_session(plain)
    if _ENTITY.search(plain):
        yield html.unescape(plain)
    if "\\n" in plain:
        yield plain.replace("\\n", "\n").replace('\\"', '"').replace("\\t", "\t")
    yield from itertools.islice(_strings(plain, 3), _MOST_STRINGS)
    for pattern in (_QUOTED, _NUMBER):
        if pattern.search(plain):
            yield pattern.sub("", plain)


def _strings(text: str, depth: int) -> Iterator[str]:
    """The strings of JSON or Python in a text, those in strings included; lists of strings are lines."""
    for match in _LIST.finditer(text):
        value = _value(match.group())
        if isinstance(value, list) and len(value) > 1 and all(isinstance(line, str) for line in value):
            yield "\n".join(line.rstrip("\n") for line in value)
    for match in _STRING.finditer(text):
        if "=" in match.group() or "def" in match.group() or "class" in match.group():
            value = _value(match.group())
            if isinstance(value, str):
                yield value
                if depth > 1:
                    yield from _strings(value, depth - 1)


def _value(text: str) -> object:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        pass
    try:
        return literal(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
