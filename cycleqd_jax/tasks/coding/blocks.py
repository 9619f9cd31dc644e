"""The texts in a reply that may be its program: code blocks, and code between lines of prose."""

from __future__ import annotations

import ast
import dataclasses
import re
import textwrap
from collections.abc import Iterator

from cycleqd_jax.tasks.coding.forms import as_session, is_session
from cycleqd_jax.tasks.syntax import parse

__all__ = [
    "LONGEST_PROGRAM",
    "Block",
    "around_thoughts",
    "before_next_turn",
    "blocks",
    "code_regions",
    "leading_tree",
    "without_thoughts",
]

LONGEST_PROGRAM = 200_000
"""Number of characters of the longest program that is executed."""

# A fence may be quoted, or an item of a list.
_FENCE = re.compile(r"^((?:[ \t]*>)*[ \t]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)?)(`{3,}|~{3,})([^\n`]*)$", re.MULTILINE)
_TAG = re.compile(r"[\w+-]*")
_NAMED = re.compile(r"[\w+-]")
_PYTHON = re.compile(
    r"(?:python|py)[\d.]*|i?py(?:thon)?[\d.]*[-_]?(?:con|repl|console|session|shell|interpreter|code|cell)|ipython\d*|ipy|"
    r"doctest|gpython|cython|sage",
    re.IGNORECASE,
)
_PYTHON_WORD = re.compile(r"\bi?py(?:thon)?[\d.]*\b", re.IGNORECASE)
_THOUGHT = re.compile(r"</(?:think|thinking|thought|reasoning|reflection|scratchpad)>|<\|end_of_thought\|>|\[/THINK\]")
_BEGIN_OF_THOUGHT = re.compile(r"<(?:think|thinking|thought|reasoning|reflection|scratchpad)>|<\|begin_of_thought\|>|\[THINK\]")
# A model that does not stop writes the next question too.
_NEXT_TURN = re.compile(
    r"^(?:#{2,} ?(?:Instruction|Input|User|Human|Question)\b|(?:Human|User|Instruction|Question) ?:)"
    r"|<\|im_start\|>\s*user|<\|start_header_id\|>\s*user|<start_of_turn>\s*user|<\|user\|>|\[INST\]",
    re.MULTILINE,
)
# A fence in the line of what stands before it.
_LATE_BEGIN = re.compile(r"(?<=[>:.!*])[ \t]*(?=`{3}(?:python|py)[\d.]*[ \t]*\n)", re.IGNORECASE)
# Lines that only mark the begin or the end of code.
_MARK = re.compile(r"[ \t]*(?:\[/?[A-Z]{2,}\]|</?[a-z_]+>|<\|[\w ]+\|>)[ \t]*")
_CODE_LINE = re.compile(r"^(?:def|class|import|from|async|@|if|for|while|with|try|[A-Za-z_]\w* *=)", re.MULTILINE)
# Code in the line of the opening fence, and a closing fence in the last line of the code.
_FIRST_LINE = re.compile(r"(?:^|\s)((?:def|class|import|from|async def|@\w)\b.*)$")
_LATE_END = re.compile(r"(?<=[^\s`])`{3,}[^`]*\Z")
_HEADING = re.compile(r"^(?:#+ .*|\*\*.*\*\*:?)\Z", re.MULTILINE)
# Lines for a notebook: commands, and the options of a cell.
_NOTEBOOK = re.compile(r"^(?:(?:%{1,2}|!)[a-z].*|:[\w-]+:.*|(?:pip3?|conda) install .*)$", re.MULTILINE)
_MOST_CUTS = 20
_MOST_REGIONS = 40
_MOST_BLOCKS = 100
_LONGEST_LEAD = 2000  # characters before a block that are searched for its last line of text


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        tag: the language that the opening fence names, in lower case; "python" for all names of Python, "" for none.
        code: the code, without the indentation and the quotation marks of the fence.
        lead: the last line of text before the block.
        heading: the heading before that line, if no other line stands between.
        closed: whether the block has an end; a reply may have been cut off.
    """

    tag: str
    code: str
    lead: str = ""
    heading: str = ""
    closed: bool = True


def without_thoughts(reply: str) -> str:
    """The part of a reply after the thoughts of a reasoning model; the text around them if nothing follows them."""
    ends = [match.end() for match in _THOUGHT.finditer(reply)]
    return reply[ends[-1] :] if ends and reply[ends[-1] :].strip() else around_thoughts(reply)


def around_thoughts(reply: str) -> str:
    """A reply without its thoughts that have a begin and an end; the whole reply if it has nothing else."""
    parts, position = [], 0
    while begin := _BEGIN_OF_THOUGHT.search(reply, position):
        end = _THOUGHT.search(reply, begin.end())
        if end is None:
            break
        parts.append(reply[position : begin.start()])
        position = end.end()
    outside = "\n".join([*parts, reply[position:]])
    return outside if parts and outside.strip() else reply


def before_next_turn(reply: str) -> str:
    """The part of a reply before the next turn of the user, which a model may write itself; else the reply."""
    match = _NEXT_TURN.search(reply)
    return reply[: match.start()] if match else reply


def blocks(reply: str) -> list[Block]:
    """The code blocks of a reply, in order; those of an empty text are left out.

    A block that is never closed lasts to the end of the reply. A fence with a language never closes a block. If a block is a
    program only together with what follows, a docstring contains the fences between. Without an opening fence (the reply
    began inside a block), the text before the first fence is a block if it is Python.
    """
    reply = _LATE_BEGIN.sub("\n", reply)
    fences = list(_FENCE.finditer(reply))
    found: list[Block] = []
    if len(fences) % 2 and not _NAMED.match(fences[0].group(3).strip()):
        before = reply[: fences[0].start()]
        if before.strip() and _is_python(before):
            found.append(Block("python", before))
            fences = fences[1:]
    position = 0
    while position < len(fences) and len(found) < _MOST_BLOCKS:
        begin = fences[position]
        end, position = _closing(reply, fences, position)
        tag = (_TAG.match(begin.group(3).strip(" \t{.")) or [""])[0].lower()
        if tag in ("code-cell", "code-block", "code", "sourcecode") and _PYTHON_WORD.search(begin.group(3)):
            tag = "python"
        code = _unindented(reply[begin.end() + 1 : len(reply) if end is None else end.start()], begin.group(1))
        if end is None and not _is_python(code):
            code = _LATE_END.sub("", code)
        first = _FIRST_LINE.search(begin.group(3))
        if first and (_is_python(f"{first.group(1)}\n{code}") or not _is_python(code)):  # not a title of the block
            code = f"{first.group(1)}\n{code}"
            tag = "" if first.start(1) == 0 else tag
        before = reply[max(0, begin.start() - _LONGEST_LEAD) : begin.start()]
        above, _, lead = before.rstrip()[-300:].rpartition("\n")
        heading = _HEADING.search(above.rstrip())
        if code.strip():
            tag = "python" if _PYTHON.fullmatch(tag) or (is_session(code) and not _is_python(code)) else tag
            code = _without_prompts(code) if tag in ("python", "") else code
            found.append(Block(tag, code, lead, heading.group() if heading else "", end is not None))
    return found


def _without_prompts(code: str) -> str:
    """The code without lines for a notebook, and that of a session without prompts and output; only if it is not Python."""
    session = is_session(code)
    if not (session or _NOTEBOOK.search(code)) or _is_python(code):
        return code
    return as_session(code) if session else _NOTEBOOK.sub("", code)


def _closing(reply: str, fences: list[re.Match[str]], position: int) -> tuple[re.Match[str] | None, int]:
    """The fence that closes the block of the fence at ``position``, and the position of the next opening fence."""
    begin = fences[position]
    first: tuple[re.Match[str] | None, int] | None = None
    for number in range(position + 1, len(fences)):
        fence = fences[number]
        if fence.group(2)[0] != begin.group(2)[0] or len(fence.group(2)) < len(begin.group(2)):
            continue
        opens = bool(fence.group(3).strip())
        if first is None:
            first = (fence, number if opens else number + 1)
            if _is_python(_unindented(reply[begin.end() + 1 : fence.start()], begin.group(1))):
                return first
        elif not opens and number - position <= 7:
            if _is_python(_unindented(reply[begin.end() + 1 : fence.start()], begin.group(1))):
                return fence, number + 1  # the fences between were part of a text in the program
        else:
            break
    return first or (None, len(fences))


def _unindented(code: str, margin: str) -> str:
    """The code without the margin of its fence."""
    quotes = margin.count(">")
    if quotes:
        code = re.sub(rf"^(?:[ \t]*>){{1,{quotes}}} ?", "", code, flags=re.MULTILINE)
    indent = len(margin.rpartition(">")[2].expandtabs(4)) if margin.strip(" \t>") or not quotes else 0
    if indent:
        code = re.sub(rf"^[ ]{{1,{indent}}}", "", code.expandtabs(4) if "\t" in margin else code, flags=re.MULTILINE)
    return code


def leading_tree(code: str) -> tuple[ast.Module, str] | None:
    """The syntax tree of the longest run of statements at the start of a text, and their text; None if there is none."""
    lines = code.split("\n")
    for _ in range(_MOST_CUTS):
        tree = _parse("\n".join(lines))
        if isinstance(tree, ast.Module):
            return (tree, "\n".join(lines)) if tree.body else None
        begin = min(tree, len(lines)) - 1  # first line of the statement that is not Python
        if lines[begin][:1] in tuple(")]}") and isinstance(_parse("\n".join(lines[:begin])), ast.Module):
            lines = lines[:begin]  # the end of something around the program
            continue
        while begin > 0 and (not lines[begin].strip() or lines[begin][0] in " \t)]}#"):
            begin -= 1
        lines = lines[:begin]
    return None


def code_regions(text: str) -> Iterator[str]:
    """The runs of Python statements between lines of prose. A run starts at a line that looks like code."""
    text = "\n".join("" if _MARK.fullmatch(line) else line for line in text.split("\n"))
    position = 0
    for _ in range(_MOST_REGIONS):
        match = _CODE_LINE.search(text, position)
        if match is None:
            return
        found = leading_tree(text[match.start() : match.start() + LONGEST_PROGRAM])
        if found is None:
            position = text.find("\n", match.start()) + 1 or len(text)
        else:
            yield found[1]
            position = match.start() + len(found[1])


def _is_python(code: str) -> bool:
    if not code.strip():
        return True
    return len(code) <= LONGEST_PROGRAM and isinstance(_parse(textwrap.dedent(code)), ast.Module)


def _parse(code: str) -> ast.Module | int:
    """The syntax tree of a program, or the number of the line that is not Python."""
    try:
        return parse(code)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1
