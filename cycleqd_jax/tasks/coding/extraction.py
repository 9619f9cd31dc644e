"""Extracts the program from a reply."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
import textwrap
from collections.abc import Iterable, Sequence

from cycleqd_jax.tasks.coding.blocks import (
    LONGEST_PROGRAM,
    Block,
    around_thoughts,
    before_next_turn,
    blocks,
    code_regions,
    leading_tree,
    without_thoughts,
)
from cycleqd_jax.tasks.coding.forms import other_forms, unfenced
from cycleqd_jax.tasks.coding.reach import reached
from cycleqd_jax.tasks.syntax import future_first, parse

__all__ = ["LONGEST_PROGRAM", "extract_code", "may_vary", "only_program"]

_LONGEST_REPLY = 2 * LONGEST_PROGRAM
_MARKS = re.compile("^[\\ufeff\\u200b]+", re.MULTILINE)  # byte order marks and spaces without width
_MOST_UNFENCED = 100
# Random numbers, clocks, other processes and the hash seed: verdicts on such programs are not cached.
_VARYING = re.compile(r"random|secrets|uuid|\btime\b|datetime|thread|process|\bid\(|\bhash\(|\bos\b")
# What the line before a block says about it.
_BAD = re.compile(
    r"\b(mistakes?|wrong|incorrect|naive|buggy|avoid|don't|do not|fails?|not work|pitfalls?|incomplete|broken|flawed)\b"
    r"|\boriginal (?:code|version|function|program|attempt) (?:was|is|had|looked)\b|^\W*before(?: the fix)?\W*$",
    re.IGNORECASE,
)
_BAD_HEADING = re.compile(
    r"\W*(?:an? |the |common |example of an? )?(?:mistakes?|wrong|incorrect|naive|buggy|pitfalls?|incomplete|broken|flawed)\b",
    re.IGNORECASE,
)
_BACK = re.compile(
    r"\b(?:that|this|it|above|previous)\b.*[.!]\s*$|^\W*(?:this|that|it)\b.*[^\s:]\s*$"
    r"|^\W*(?:wait|hmm+|oops|sorry|actually|(?:but|however),? (?:this|that|it)|the (?:above|previous)|i made)\b",
    re.IGNORECASE,
)
_GOOD = re.compile(
    r"\b(correct(?:ed|ion)?|fix(?:ed)?|final|instead|better|improved|solution|right|proper|should be|updated?|revised)\b",
    re.IGNORECASE,
)


def may_vary(code: str) -> bool:
    """Whether a program's results may depend on random numbers, the clock or other processes."""
    return _VARYING.search(code) is not None


def extract_code(reply: str, names: Iterable[str] = ()) -> str:
    """The program in a reply.

    Thoughts before the answer are left out if code follows them. Of several code blocks, the last that defines all ``names`` is
    taken, because models correct themselves; a block that only quotes the head of a function does not define it, and a block
    that is announced as wrong is taken only if there is no other. Other blocks are added if the program uses what they define.
    If no block defines all names, the blocks tagged as Python are joined, or else the untagged ones. In a reply without blocks,
    the program is the longest run of Python between lines of prose, if possible one that defines the names. If all these do
    not define the names, code in a line, in HTML or in an indented paragraph is taken if it does; then code among special
    tokens, in an interpreter's session without a block, or in strings of JSON.
    """
    names = tuple(names)
    reply = _MARKS.sub("", reply[:_LONGEST_REPLY].replace("\r\n", "\n").replace("\r", "\n"))
    answer = without_thoughts(reply)
    turn = before_next_turn(answer)
    answer = turn if turn is not answer and _defines(_from_text(turn, names), names) else answer
    code = _from_text(answer, names)
    if answer is not reply and not (_defines(code, names) if names else code.strip()):
        around = around_thoughts(reply)
        whole = _from_text(around, names)
        whole = whole if around is reply or _defines(whole, names) else _from_text(reply, names)
        code = whole if not code.strip() or _defines(whole, names) else code
    if names and not _defines(code, names):
        others = [other for other in itertools.islice(unfenced(answer), _MOST_UNFENCED) if _defines(other, names)]
        if others:
            return others[-1]
        if all(name in answer for name in names):
            return next((found for form in other_forms(answer) if (found := _in_form(form, names))), code)
    return code


def _in_form(text: str, names: tuple[str, ...]) -> str:
    """The program in another form of a reply; empty if it does not define the names."""
    if not _mentions(text, names):
        return ""
    code = _from_text(text, names)
    if _defines(code, names):
        return code
    return next((other for other in itertools.islice(unfenced(text), _MOST_UNFENCED) if _defines(other, names)), "")


def _from_text(text: str, names: tuple[str, ...], nested: bool = False) -> str:
    found = blocks(text)
    if not found:
        return _from_prose(text, names)
    candidates = [block for block in found if block.tag in ("python", "")] or found
    if names:
        fitted = [dataclasses.replace(block, code=_fitted(block.code, names)) for block in found]
        whole = [number for number, block in enumerate(fitted) if _defines(block.code, names)]
        if whole:
            longest = max((len(fitted[number].code.split("\n")) for number in whole if fitted[number].closed), default=0)
            number = max(
                whole,
                key=lambda number: (
                    not _is_bad(fitted[number]),
                    _defines(fitted[number].code, names, values=False),  # an example imports the function, or uses its name
                    fitted[number].tag == "python",
                    fitted[number].closed or len(fitted[number].code.split("\n")) > longest,
                    number,
                ),
            )
            return _completed(fitted, number, names)
        for block in () if nested else reversed(found):  # a Markdown text in a block
            if ("```" in block.code or "~~~" in block.code) and _mentions(block.code, names):
                inner = _from_text(block.code[:LONGEST_PROGRAM], names, nested=True)
                if _defines(inner, names):
                    return inner
    tagged = [block.code for block in candidates if block.tag == "python"]
    joined = "\n".join(tagged or [block.code for block in candidates])
    if names and not _mentions(joined, names):  # the program may stand beside the blocks, which show its output
        outside = _from_prose(text, names)
        if _defines(outside, names):
            return outside
    return joined


def _from_prose(text: str, names: tuple[str, ...]) -> str:
    regions = list(code_regions(text))
    defining = [region for region in regions if names and _defines(region, names)]
    if defining:
        return defining[-1]
    if names and len(regions) > 1 and _defines("\n".join(regions), names):
        return "\n".join(regions)
    if regions:
        return max(regions, key=lambda region: sum(bool(line.strip()) for line in region.split("\n")))
    match = re.search(r"^(?:def|class|import|from|async|@|[A-Za-z_]\w* *=)", text, re.MULTILINE)
    return text[match.start() :] if match else ""


def _is_bad(block: Block) -> bool:
    """Whether the text before a block calls it wrong; a whole sentence about "that" or "it" is about the block before."""
    if _GOOD.search(block.lead) is not None or _BACK.search(block.lead) is not None:
        return False
    heading = _BAD_HEADING.match(block.heading) is not None and _GOOD.search(block.heading) is None
    return heading or _BAD.search(block.lead) is not None


def _fitted(code: str, names: tuple[str, ...]) -> str:
    """A block whose lines are all indented, without the indentation, if it defines the names then."""
    if code[:1] not in (" ", "\t") and not re.match(r"\s*\n[ \t]", code):
        return code
    level = textwrap.dedent(code)
    return level if _defines(level, names) else code


def _completed(found: Sequence[Block], number: int, names: tuple[str, ...]) -> str:
    """A block, with the other blocks that define what it uses."""
    code = found[number].code
    tree = leading_tree(code)
    if tree is None or len(found) == 1:
        return code
    others = {place: part for place, block in enumerate(found) if place != number and (part := _part(block, names))}
    missing, used = _missing(tree[0]), set[int]()
    while more := {place for place, (_, bound, _) in others.items() if place not in used and not missing.isdisjoint(bound)}:
        used |= more
        missing = missing.union(*(others[place][2] for place in more))
    parts = [code if place == number else others[place][0] for place in sorted(used | {number})]
    return "\n".join(parts)


def _part(block: Block, names: tuple[str, ...]) -> tuple[str, set[str], set[str]] | None:
    """A block's code, the names it binds and the names it lacks; None if it is not Python or defines an entry point."""
    tree = None if block.tag not in ("python", "") or _defines(block.code, names) else leading_tree(block.code)
    return None if tree is None else (tree[1], set(_bound(tree[0])), _missing(tree[0]))


def _missing(tree: ast.Module) -> set[str]:
    """The names that a program reads and does not bind."""
    loads = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return loads - set(_bound(tree))


def _mentions(code: str, names: tuple[str, ...]) -> bool:
    return any(re.search(rf"(?:def|class) +{re.escape(name)}\b|^{re.escape(name)} *=", code, re.MULTILINE) for name in names)


def _defines(code: str, names: tuple[str, ...], values: bool = True) -> bool:
    """Whether a text defines all names, and not only the heads of functions, nor with ``values`` off as imports or values."""
    if not names or not _mentions(code, names) or len(code) > LONGEST_PROGRAM:
        return False
    found = leading_tree(code)
    return found is not None and set(names) <= set(_bound(found[0], stubs=False, values=values))


def _bound(tree: ast.Module, stubs: bool = True, values: bool = True) -> Iterable[str]:
    """The names that a program binds.

    Args:
        tree: the program.
        stubs: whether functions and classes without a body of their own count.
        values: whether imports and variables that are not functions count.
    """
    pending: list[ast.AST] = list(tree.body)
    functions = any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda) for node in ast.walk(tree))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if stubs or not _is_stub(node):
                yield node.name
        elif isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Store):
                yield node.id
        elif isinstance(node, ast.alias):
            if values:
                yield node.asname or node.name.partition(".")[0]
        elif not isinstance(node, ast.Lambda) and (values or not _is_value(node, functions)):
            pending += ast.iter_child_nodes(node)


def _is_value(node: ast.AST, functions: bool) -> bool:
    """Whether an assignment binds a number, a text, a collection or the result of a call, without ``functions`` of any call."""
    if not isinstance(node, ast.Assign):
        return False
    called = {part.func.id for part in ast.walk(node.value) if isinstance(part, ast.Call) and isinstance(part.func, ast.Name)}
    targets = {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node.value, ast.Call) and not functions:
        return True
    return bool(called & targets) or isinstance(
        node.value,
        ast.Constant | ast.BinOp | ast.UnaryOp | ast.Compare | ast.List | ast.Dict | ast.Set | ast.JoinedStr | ast.ListComp,
    )


def _is_stub(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Whether the body has nothing but a docstring, ``pass``, ``...``, ``return`` and ``raise NotImplementedError``."""
    for part in node.body:
        if isinstance(part, ast.Pass) or (isinstance(part, ast.Return) and _is_none(part.value)):
            continue
        if isinstance(part, ast.Expr) and _says_nothing(part.value):
            continue
        if isinstance(part, ast.Raise) and _says_not_implemented(part):
            continue
        if isinstance(node, ast.ClassDef) and isinstance(part, ast.FunctionDef) and _is_stub(part):
            continue
        return False
    return True


def _says_not_implemented(node: ast.Raise) -> bool:
    for part in ast.walk(node):  # deep trees are walked too; ast.dump and ast.unparse would raise RecursionError
        found = part.id if isinstance(part, ast.Name) else part.attr if isinstance(part, ast.Attribute) else ""
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            found = part.value
        if "NotImplemented" in found:
            return True
    return False


def _is_none(node: ast.expr | None) -> bool:
    return node is None or (isinstance(node, ast.Constant) and node.value is None)


def _says_nothing(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and (isinstance(node.value, str) or node.value is ...)


def only_program(code: str, *names: str) -> str:
    """A program without what only runs, as EvalPlus judges it: a wrong example does not make the program wrong.

    Everything that the functions ``names`` reach is kept (:func:`~cycleqd_jax.tasks.coding.reach.reached`). Examples of use,
    asserts, the ``__main__`` guard and calls that end the program are not. If the reply was cut off, the program ends before
    the unfinished statement. Imports from ``__future__`` are moved to the beginning.

    Args:
        code: the program; returned unchanged if no part of it is Python, or if it is too long to be executed.
        names: names of the requested functions.
    """
    if len(code) > LONGEST_PROGRAM:
        return code
    found = leading_tree(code)
    if found is None:
        return code
    tree, text = found
    text = future_first(text)
    tree = parse(text) if text is not found[1] else tree
    kept = reached(tree, names)
    if kept is None or len(kept) == len(tree.body):
        return text
    try:
        return ast.unparse(ast.Module(kept, []))
    except (ValueError, RecursionError):
        return text
