"""Generated OS interaction problems: shell commands on files and folders."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Literal

from cycleqd_jax.tasks.miniature.common import Problem, Record, conversation, fill

__all__ = ["draw_os_interaction"]


@dataclasses.dataclass(frozen=True)
class _Command:
    """A question or a change.

    Attributes:
        texts: two ways to ask for it; basic problems use the first.
        bash: the gold command.
        answer: the answer, from the lines of the file and the values of the problem; None for a change.
        check: a test that holds only after the change.
        content: the content of the file or the folder.
        basic: whether the phrase is basic.
    """

    texts: tuple[str, ...]
    bash: str
    answer: Callable[[list[str], dict[str, str]], object] | None = None
    check: str = ""
    content: Literal["words", "numbers", "folder"] = "words"
    basic: bool = False


_FOLDERS = ("docs", "logs", "data", "code", "mail", "home", "work", "site", "plan", "misc")
_STEMS = ("list", "todo", "main", "old", "new", "test", "copy", "note", "form", "page")
_ENDINGS = ("txt", "csv", "log", "md", "py", "sh")
_LINES = ("red", "blue", "green", "gold", "north", "south", "high", "low", "cat", "dog", "sun", "moon")

_COMMANDS = (
    _Command(("How many files are in {dir}?", "Count the files in {dir}."), "ls {dir} | wc -l",
             lambda lines, v: len(lines), content="folder", basic=True),
    _Command(("How many {ext} files are in {dir}?", "Count the {ext} files in {dir}."), "ls {dir}/*.{ext} | wc -l",
             lambda lines, v: sum(name.endswith("." + v["ext"]) for name in lines), content="folder"),
    _Command(("How many lines are in {file}?", "Count the lines in {file}."), "wc -l < {file}",
             lambda lines, v: len(lines), basic=True),
    _Command(("How many words are in {file}?", "Count the words in {file}."), "wc -w < {file}",
             lambda lines, v: sum(len(line.split()) for line in lines)),
    _Command(("How many lines of {file} contain {word}?", "Count the lines of {file} with {word}."), "grep -c {word} {file}",
             lambda lines, v: sum(v["word"] in line for line in lines)),
    _Command(("How many different lines are in {file}?", "Count the different lines in {file}."), "sort -u {file} | wc -l",
             lambda lines, v: len(set(lines))),
    _Command(("What is the first line of {file}?", "Print the first line of {file}."), "head -n 1 {file}",
             lambda lines, v: lines[0], basic=True),
    _Command(("What is the last line of {file}?", "Print the last line of {file}."), "tail -n 1 {file}",
             lambda lines, v: lines[-1]),
    _Command(("What is line {n} of {file}?", "Print line {n} of {file}."), "sed -n {n}p {file}",
             lambda lines, v: lines[int(v["n"]) - 1]),
    _Command(("What is the largest number in {file}?", "Print the largest number in {file}."), "sort -n {file} | tail -n 1",
             lambda lines, v: max(map(int, lines)), content="numbers", basic=True),
    _Command(("What is the smallest number in {file}?", "Print the smallest number in {file}."), "sort -n {file} | head -n 1",
             lambda lines, v: min(map(int, lines)), content="numbers"),
    _Command(("Create the folder {dir}/{new}.", "Make a folder {dir}/{new}."), "mkdir {dir}/{new}",
             check="test -d {dir}/{new}", basic=True),
    _Command(("Create the file {dir}/{new}.", "Make a file {dir}/{new}."), "touch {dir}/{new}", check="test -f {dir}/{new}"),
    _Command(("Delete {file}.", "Remove {file}."), "rm {file}", check="test ! -e {file} -a -d {dir}", basic=True),
    _Command(("Copy {file} to {dir}/{new}.", "Make a copy of {file} as {dir}/{new}."), "cp {file} {dir}/{new}",
             check="cmp {file} {dir}/{new}"),
    _Command(("Move {file} to {dir}/{new}.", "Rename {file} to {dir}/{new}."), "mv {file} {dir}/{new}",
             check="test -f {dir}/{new} -a ! -e {file}"),
    _Command(("Write {word} to {file}.", "Let {file} contain just {word}."), "echo {word} > {file}",
             check='test "$(cat {file})" = {word}'),
    _Command(("Append {word} to {file}.", "Add the line {word} to {file}."), "echo {word} >> {file}",
             check='test "$(tail -n 1 {file})" = {word} -a $(wc -l < {file}) = {more}'),
    _Command(("Replace {word} by {other} in {file}.", "Change {word} to {other} in {file}."), "sed -i s/{word}/{other}/ {file}",
             check="grep -q {other} {file} && ! grep -q {word} {file}"),
    _Command(("Make {file} executable.", "Let {file} be executable."), "chmod +x {file}", check="test -x {file}"),
)  # fmt: skip


def draw_os_interaction(rng: random.Random, basic: bool) -> Problem | None:
    """A random problem, or None if its check would already hold before the change."""
    command = rng.choice([c for c in _COMMANDS if c.basic or not basic])
    folder = f"~/{rng.choice(_FOLDERS)}"
    file = f"{folder}/{rng.choice(_STEMS)}.{rng.choice(_ENDINGS)}"
    # Where something is counted, folders and files have many sizes, so that no single answer is correct for many problems.
    size = rng.randint(3, 9 if command.texts[0].startswith("How many") else 5)
    if command.content == "numbers":
        lines = [str(number) for number in rng.sample(range(2, 99), size)]
    elif command.content == "folder":
        endings = rng.sample(_ENDINGS, 2)
        lines = [f"{stem}.{rng.choice(endings)}" for stem in rng.sample(_STEMS, rng.randint(1, 9))]
    else:
        some = rng.sample(_LINES, 4)
        lines = [" ".join(rng.choices(some, k=rng.choice((1, 1, 2)))) for _ in range(size)]
    word, other = rng.choice(lines).split()[0], rng.choice(_LINES)
    values = {"dir": folder, "file": file, "word": word, "other": other, "n": str(rng.randint(2, 3)), "more": str(size + 1)}
    values |= {"ext": word.split(".")[-1], "new": rng.choice(_STEMS)}
    if command.check:
        values["word"] = rng.choice([w for w in _LINES if w != lines[-1]]) if "echo" in command.bash else word
        if other in " ".join(lines) or file.split("/")[-1] == values["new"] or max(map(lines.count, lines)) > 1:
            return None
        if "s/" in command.bash and any(line.count(word) > 1 for line in lines):
            return None
    text = fill(rng.choice(command.texts[:1] if basic else command.texts), values)
    bash = fill(command.bash, values)
    if command.content == "folder":
        init = f"mkdir -p {folder}\ncd {folder}\ntouch {' '.join(lines)}"
    else:
        init = f"mkdir -p {folder}\nprintf '%s\\n' {' '.join(_shell_word(line) for line in lines)} > {file}"
    record: Record = {"description": text, "init_script": [["bash", init]], "start": None, "check": None, "match": None}
    record["example_script"] = ["bash", bash]
    if command.answer is not None:
        output = str(command.answer(lines, values))
        record["match"] = {"answer": output, "strip": True}
        last = f"Act: answer({output})"
    else:
        output, last = "", "Act: finish"
        record["check"] = [["bash", fill(command.check, values)]]
    act = f"Act: bash\n\n```bash\n{bash}\n```"
    return Problem(bash, record, conversation(text, act, f"The output of the OS:\n{output}", last))


def _shell_word(line: str) -> str:
    return f"'{line}'" if " " in line else line
