"""Generated miniature data sets in the published record formats of MBPP, DBBench and AgentBench's OS interaction.

They are the embedded default: real problems (Python functions judged by asserts, SQL on a table, shell commands on files)
with prompts and answers so short that a model of about a million parameters learns them in a minute. A problem is a
composition of a few phrases, each of which stands for a piece of the program, with words and numbers to be copied; problems
of the three splits (``train``, ``test`` and the *lessons* that models are trained on) never have the same gold program (nor,
for Python functions, another program of the same function), so a test problem asks for a combination that was never seen.

Phrases are either *basic* or not. A pretraining corpus (:func:`pretraining`) has mostly the basic ones, in all three formats;
an expert's lessons (:func:`lessons`) have all phrases of one task.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import random
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from cycleqd_jax.types import InputError, Message, Split

__all__ = ["TASKS", "generate", "lessons", "pretraining", "write"]

TASKS = ("mbpp", "dbbench", "os_interaction")
"""Names of the tasks there are miniatures of."""

Record = dict[str, Any]
Pool = Literal["train", "test", "lessons"]


@dataclasses.dataclass(frozen=True)
class _Problem:
    """One problem with its gold conversation.

    Attributes:
        program: the gold program, or what it does; problems of which this is equal are in the same split.
        record: the record, in the benchmark's format, without its number.
        conversation: the problem solved, message by message.
    """

    program: str
    record: Record
    conversation: list[Message]


# The split of a problem depends on its gold program alone: splits are disjoint whatever their seeds.
_BUCKETS: dict[int, Pool] = {0: "train", 1: "test"}
_NUM_BUCKETS = 8


def _pool(program: str) -> Pool:
    return _BUCKETS.get(zlib.crc32(program.encode()) % _NUM_BUCKETS, "lessons")


def _conversation(*contents: str) -> list[Message]:
    """A conversation of ``contents``, the user speaking first."""
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(contents)]


# --------------------------------------------------------------------------------------------------------------------
# MBPP: a reduction of a map of a filter of a list. ``{n}`` is a digit, ``{c}`` a letter.


@dataclasses.dataclass(frozen=True)
class _Phrase:
    text: str
    code: str
    basic: bool = False


@dataclasses.dataclass(frozen=True)
class _Domain:
    filters: Sequence[_Phrase]
    maps: Sequence[_Phrase]
    reductions: Sequence[_Phrase]
    items: Sequence[Any]


_MBPP_NAMES = ("solve", "run", "calc", "find", "work", "make", "pick", "task")
_LETTERS = "aeioblt"
_WORDS = (
    "apple", "table", "lion", "bird", "tea", "ant", "boat", "light", "oil", "iron", "echo", "ball", "tiger", "lamp",
    "enter", "idea", "bat", "to", "alto", "elbow", "at", "bread", "olive", "little", "ice", "beat",
)  # fmt: skip

_NUMBERS = _Domain(
    filters=(
        _Phrase("all numbers", "", basic=True),
        _Phrase("the even numbers", " if i % 2 == 0", basic=True),
        _Phrase("the numbers above {n}", " if i > {n}", basic=True),
        _Phrase("the odd numbers", " if i % 2 == 1"),
        _Phrase("the negative numbers", " if i < 0"),
        _Phrase("the numbers below {n}", " if i < {n}"),
        _Phrase("the multiples of {n}", " if i % {n} == 0"),
        _Phrase("the numbers other than {n}", " if i != {n}"),
    ),
    maps=(
        _Phrase("", "i", basic=True),
        _Phrase("the doubles of ", "i * 2", basic=True),
        _Phrase("the squares of ", "i * i"),
        _Phrase("{n} plus ", "i + {n}", basic=True),
        _Phrase("{n} times ", "i * {n}"),
        _Phrase("the halves of ", "i // 2"),
        _Phrase("the negatives of ", "-i"),
        _Phrase("the remainders by {n} of ", "i % {n}"),
    ),
    reductions=(
        _Phrase("the sum of", "sum([{}])", basic=True),
        _Phrase("a list of", "[{}]", basic=True),
        _Phrase("the largest of", "max([{}])", basic=True),
        _Phrase("the smallest of", "min([{}])"),
        _Phrase("the count of", "len([{}])"),
        _Phrase("the first of", "[{}][0]"),
        _Phrase("a sorted list of", "sorted([{}])"),
        _Phrase("a reversed list of", "[{}][::-1]"),
    ),
    items=range(-9, 21),
)

_STRINGS = _Domain(
    filters=(
        _Phrase("all words", "", basic=True),
        _Phrase("the words longer than {n}", " if len(i) > {n}", basic=True),
        _Phrase("the words shorter than {n}", " if len(i) < {n}"),
        _Phrase("the words with {c}", " if '{c}' in i", basic=True),
        _Phrase("the words starting with {c}", " if i[0] == '{c}'"),
        _Phrase("the words ending with {c}", " if i[-1] == '{c}'"),
    ),
    maps=(
        _Phrase("", "i", basic=True),
        _Phrase("the lengths of ", "len(i)", basic=True),
        _Phrase("the upper case of ", "i.upper()", basic=True),
        _Phrase("the reverses of ", "i[::-1]"),
        _Phrase("the initials of ", "i[0]"),
        _Phrase("the first {n} letters of ", "i[:{n}]"),
    ),
    reductions=(
        _Phrase("a list of", "[{}]", basic=True),
        _Phrase("the largest of", "max([{}])", basic=True),
        _Phrase("the count of", "len([{}])"),
        _Phrase("the last of", "[{}][-1]"),
        _Phrase("a sorted list of", "sorted([{}])"),
        _Phrase("a reversed list of", "[{}][::-1]"),
    ),
    items=_WORDS,
)


def _mbpp(rng: random.Random, basic: bool) -> _Problem | None:
    """A random problem, or None where the asserts of the one drawn would not tell programs apart."""
    domain = rng.choice((_NUMBERS, _STRINGS))

    def draw(phrases: Sequence[_Phrase]) -> _Phrase:
        phrase = rng.choice([p for p in phrases if p.basic or not basic])
        values = {"n": str(rng.randint(2, 9)), "c": rng.choice(_LETTERS)}
        return _Phrase(_fill(phrase.text, values), _fill(phrase.code, values))

    kept, mapped, reduced = draw(domain.filters), draw(domain.maps), draw(domain.reductions)
    if reduced.code == "len([{}])":  # no assert can tell whether what is counted was mapped
        mapped = domain.maps[0]
    body = _body(kept.code, mapped.code, reduced.code)
    name = rng.choice(_MBPP_NAMES)
    unfiltered = _body("", mapped.code, reduced.code)
    codes = itertools.product((kept.code, ""), (mapped.code, "i"), (reduced.code, "[{}]"))
    shorter = {_body(*some) for some in codes} - {body}  # programs of some of the phrases only
    cases: list[tuple[list[Any], Any]] = []
    for _ in range(12):
        values = [rng.choice(domain.items) for _ in range(rng.randint(3, 4))]
        result = _result(body, values)
        if result is None or result in ([], *(r for _, r in cases)):
            continue
        agreeing = {program for program in shorter if _result(program, values) == result}
        # The filter shows in the first two asserts already, and all three together fail every shorter program.
        if agreeing if len(cases) == 2 else kept.code and _result(unfiltered, values) == result:
            continue
        shorter = agreeing
        cases.append((values, result))
        if len(cases) == 3:
            break
    else:
        return None
    tests = [f"assert {name}({values!r}) == {result!r}" for values, result in cases]
    code = f"def {name}(x):\n    return {body}"
    text = f"Return {reduced.text} {mapped.text}{kept.text}."
    record = {"text": text, "code": code, "test_list": tests, "test_setup_code": "", "challenge_test_list": []}
    return _Problem(_behaviour(body, domain), record, _conversation(f"{text}\n{tests[0]}", f"```python\n{code}\n```"))


def _body(kept: str, mapped: str, reduced: str) -> str:
    """The program of three phrases."""
    return reduced.replace("{}", f"{mapped} for i in x{kept}")


@functools.cache
def _function(body: str) -> Callable[[list[Any]], Any]:
    return eval(f"lambda x: {body}")


def _result(body: str, values: list[Any]) -> Any:
    """What a program returns, or None where it fails: nothing passes its filter."""
    try:
        return _function(body)(values)
    except (ValueError, IndexError):
        return None


def _behaviour(body: str, domain: _Domain) -> str:
    """What a program does to each item, which tells its filter and map, and to some lists, which tell its reduction.

    ``i * 5`` and ``i * 6`` are different programs, but to count them is the same function.
    """
    rng = random.Random(0)
    several = [[rng.choice(domain.items) for _ in range(size)] for size in range(2, 22)]
    return repr([_result(body, values) for values in (*([item] for item in domain.items), *several)])


def _fill(text: str, values: dict[str, str]) -> str:
    for key, value in values.items():
        text = text.replace("{" + key + "}", value)
    return text


# --------------------------------------------------------------------------------------------------------------------
# DBBench: questions and changes; what the database says comes from SQLite itself


@dataclasses.dataclass(frozen=True)
class _Query:
    type: str
    texts: tuple[str, ...]
    sql: str
    basic: bool = False


_TABLES = ("staff", "teams", "pets", "shops", "clubs", "boats", "trees", "games", "books", "farms")
_NUMERIC = ("age", "price", "score", "rank", "size", "weight")
_TEXTUAL = ("city", "color", "owner", "kind", "team", "level")
_WHO = ("Bob", "Eve", "Ann", "Tom", "Kim", "Max", "Zoe", "Leo", "Mia", "Sam", "Ida", "Ben", "Amy", "Jon", "Liz", "Ray")
_VALUES = ("red", "blue", "green", "Rome", "Oslo", "Paris", "Lima", "gold", "high", "low", "north", "south")

_QUERIES = (
    _Query("other", ("What is the {txt} of {who}?", "Tell me the {txt} of {who}."),
           "SELECT {txt} FROM {table} WHERE name = '{who}'", basic=True),
    _Query("other", ("What is the {num} of {who}?", "Tell me the {num} of {who}."),
           "SELECT {num} FROM {table} WHERE name = '{who}'", basic=True),
    _Query("counting", ("How many rows have {txt} {value}?", "Count the rows with {txt} {value}."),
           "SELECT COUNT(*) FROM {table} WHERE {txt} = '{value}'", basic=True),
    _Query("counting", ("How many rows have {num} above {n}?", "Count the rows with {num} above {n}."),
           "SELECT COUNT(*) FROM {table} WHERE {num} > '{n}'"),
    _Query("counting", ("How many rows have {num} below {n}?", "Count the rows with {num} below {n}."),
           "SELECT COUNT(*) FROM {table} WHERE {num} < '{n}'"),
    _Query("counting", ("How many different {txt} values are there?", "Count the different {txt} values."),
           "SELECT COUNT(DISTINCT {txt}) FROM {table}"),
    _Query("aggregation-MAX", ("What is the highest {num}?", "Tell me the highest {num}."),
           "SELECT MAX({num}) FROM {table}", basic=True),
    _Query("aggregation-MIN", ("What is the lowest {num}?", "Tell me the lowest {num}."),
           "SELECT MIN({num}) FROM {table}"),
    _Query("aggregation-MAX",
           ("What is the highest {num} with {txt} {value}?", "Tell me the highest {num} with {txt} {value}."),
           "SELECT MAX({num}) FROM {table} WHERE {txt} = '{value}'"),
    _Query("ranking", ("Who has the highest {num}?", "Tell me who has the highest {num}."),
           "SELECT name FROM {table} ORDER BY {num} DESC LIMIT 1"),
    _Query("ranking", ("Who has the lowest {num}?", "Tell me who has the lowest {num}."),
           "SELECT name FROM {table} ORDER BY {num} LIMIT 1"),
    _Query("comparison", ("Who has {num} {own}?", "Tell me who has {num} {own}."),
           "SELECT name FROM {table} WHERE {num} = '{own}'", basic=True),
    _Query("comparison", ("Who has {num} {own} and {txt} {value}?", "Tell me who has {num} {own} and {txt} {value}."),
           "SELECT name FROM {table} WHERE {num} = '{own}' AND {txt} = '{value}'"),
    _Query("INSERT", ("Add the row {new}, {first}, {second}.", "Insert {new}, {first}, {second}."),
           "INSERT INTO {table} VALUES ('{new}', '{first}', '{second}')", basic=True),
    _Query("UPDATE", ("Set the {txt} of {who} to {value}.", "Change the {txt} of {who} to {value}."),
           "UPDATE {table} SET {txt} = '{value}' WHERE name = '{who}'"),
    _Query("UPDATE", ("Set the {num} of {who} to {n}.", "Change the {num} of {who} to {n}."),
           "UPDATE {table} SET {num} = '{n}' WHERE name = '{who}'"),
    _Query("UPDATE", ("Raise the {num} of {who} by {d}.", "Add {d} to the {num} of {who}."),
           "UPDATE {table} SET {num} = {num} + {d} WHERE name = '{who}'"),
    _Query("UPDATE", ("Set the {txt} to {value} for {num} above {n}.", "Change the {txt} to {value} for {num} above {n}."),
           "UPDATE {table} SET {txt} = '{value}' WHERE {num} > '{n}'"),
)  # fmt: skip


def _dbbench(rng: random.Random, basic: bool) -> _Problem | None:
    """A random problem, or None where the question drawn has no answer."""
    query = rng.choice([q for q in _QUERIES if q.basic or not basic])
    table, num, txt = rng.choice(_TABLES), rng.choice(_NUMERIC), rng.choice(_TEXTUAL)
    # Tables of many sizes where rows are counted, lest one answer be right for many problems.
    size = rng.randint(3, 9 if query.type == "counting" else 5)
    people = rng.sample(_WHO, size + 1)
    numbers = rng.sample(range(11, 90), size + 1)
    some = rng.sample(_VALUES, 3)
    rows = [(who, str(number), rng.choice(some)) for who, number in zip(people[:size], numbers, strict=False)]
    numeric_first = rng.random() < 0.5
    if not numeric_first:
        rows = [(who, text, number) for who, number, text in rows]
    columns = ("name", num, txt) if numeric_first else ("name", txt, num)
    own = rng.choice(rows)
    new = (str(numbers[size]), rng.choice(some))
    values = {
        "table": table, "num": num, "txt": txt, "who": own[0], "own": own[1 if numeric_first else 2], "new": people[size],
        "value": own[2 if numeric_first else 1] if query.type != "UPDATE" else rng.choice(some), "n": str(numbers[size]),
        "d": str(rng.randint(2, 9)), "first": new[0 if numeric_first else 1], "second": new[1 if numeric_first else 0],
    }  # fmt: skip
    text = _fill(rng.choice(query.texts[:1] if basic else query.texts), values)
    sql = _fill(query.sql, values)
    described = f"The table is {table}, the headers are {','.join(columns)}."
    with sqlite3.connect(":memory:") as connection:
        connection.execute(f"CREATE TABLE {table} ({', '.join(f'{c} TEXT' for c in columns)})")
        connection.executemany(f"INSERT INTO {table} VALUES (?, ?, ?)", rows)
        result = connection.execute(sql).fetchall()
        after = connection.execute(f"SELECT * FROM {table}").fetchall()
    connection.close()
    record: Record = {
        "description": text,
        "label": [str(row[0]) for row in result],
        "table": {
            "table_name": table,
            "table_info": {"columns": [{"name": c, "type": "TEXT"} for c in columns], "rows": [list(r) for r in rows]},
        },
        "type": [query.type],
        "add_description": described,
    }
    if query.type in ("INSERT", "UPDATE"):
        if sorted(after) == sorted(rows):
            return None
        answer = '["done"]'
        record |= {"label": [sql], "answer_md5": str([(_table_md5(after),)])}
    else:
        if not result or result == [(None,)]:
            return None
        answer = json.dumps(record["label"])
        record["sql"] = {"query": sql, "length": len(sql)}
    operation, final = f"Action: Operation\n```sql\n{sql}\n```", f"Action: Answer\nFinal Answer: {answer}"
    return _Problem(sql, record, _conversation(f"{text}\n{described}", operation, str(result), final))


def _table_md5(rows: Sequence[Sequence[str]]) -> str:
    """The fingerprint of a table's rows that DBBench compares (the order of rows is of no matter)."""
    hashes = sorted(hashlib.md5(",".join(row).encode()).hexdigest()[:5] for row in rows)
    return hashlib.md5(",".join(hashes).encode()).hexdigest()


# --------------------------------------------------------------------------------------------------------------------
# OS interaction


@dataclasses.dataclass(frozen=True)
class _Command:
    texts: tuple[str, ...]
    bash: str
    answer: Callable[[list[str], dict[str, str]], object] | None = None  # from the lines of the file, or
    check: str = ""  # a test that only holds afterwards
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


def _os_interaction(rng: random.Random, basic: bool) -> _Problem | None:
    """A random problem, or None where the change asked for would already be there."""
    command = rng.choice([c for c in _COMMANDS if c.basic or not basic])
    folder = f"~/{rng.choice(_FOLDERS)}"
    file = f"{folder}/{rng.choice(_STEMS)}.{rng.choice(_ENDINGS)}"
    # Folders and files of many sizes where something is counted, lest one answer be right for many problems.
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
    text = _fill(rng.choice(command.texts[:1] if basic else command.texts), values)
    bash = _fill(command.bash, values)
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
        record["check"] = [["bash", _fill(command.check, values)]]
    act = f"Act: bash\n\n```bash\n{bash}\n```"
    return _Problem(bash, record, _conversation(text, act, f"The output of the OS:\n{output}", last))


def _shell_word(line: str) -> str:
    return f"'{line}'" if " " in line else line


# --------------------------------------------------------------------------------------------------------------------
# Splits and corpora

_DRAW: dict[str, Callable[[random.Random, bool], _Problem | None]] = {
    "mbpp": _mbpp,
    "dbbench": _dbbench,
    "os_interaction": _os_interaction,
}


def _problems(task: str, pool: Pool, seed: int, breadth: float = 1.0) -> Iterator[_Problem]:
    """Endless problems of a pool; with probability ``1 - breadth`` a problem is one of basic phrases only."""
    if task not in _DRAW:
        raise InputError(f"expected a task with a miniature, one of {', '.join(TASKS)}, got {task!r}")
    rng = random.Random(f"{task}/{pool}/{seed}")
    while True:
        problem = _DRAW[task](rng, rng.random() >= breadth)
        if problem is not None and _pool(problem.program) == pool:
            yield problem


def _numbered(task: str, split: str, number: int, record: Record) -> Record:
    if task == "mbpp":
        return {"task_id": number, **record}
    return {"id": f"{task}/{split}/{number}", "index": number, **record}


def generate(seed: int, train: int, test: int, tasks: Sequence[str] = TASKS) -> dict[str, dict[str, list[Record]]]:
    """Problems in the benchmarks' own record formats.

    Args:
        seed: of the random problems.
        train: number of problems per task that a search may see.
        test: number of problems per task to report on.
        tasks: which of :data:`TASKS`.

    Returns:
        ``{task: {"train": [record, …], "test": [record, …]}}``. No gold program occurs twice in a task, in whatever split,
        nor in :func:`lessons` or :func:`pretraining` of any seed.

    Raises:
        InputError: for an unknown task or a negative number.
    """
    if train < 0 or test < 0:
        raise InputError(f"expected numbers of problems that are 0 or more, got train={train}, test={test}")
    sizes: dict[Split, int] = {"train": train, "test": test}
    return {
        task: {
            split: [_numbered(task, split, n, p.record) for n, p in enumerate(_distinct(task, split, seed, count), start=1)]
            for split, count in sizes.items()
        }
        for task in tasks
    }


def _distinct(task: str, pool: Pool, seed: int, count: int) -> list[_Problem]:
    """``count`` problems of different programs."""
    found: dict[str, _Problem] = {}
    problems = _problems(task, pool, seed)
    fruitless = 0
    while len(found) < count and fruitless < 1000:
        problem = next(problems)
        fruitless = fruitless + 1 if problem.program in found else 0
        found.setdefault(problem.program, problem)
    if len(found) == count:
        return list(found.values())
    raise InputError(f"expected at most {len(found)} different {pool} problems of {task} to be asked for, got {count}")


def write(folder: str | Path, seed: int, train: int, test: int, tasks: Sequence[str] = TASKS) -> dict[str, dict[str, Path]]:
    """Writes :func:`generate`'s records as ``folder/<task>/<split>.jsonl``.

    Returns:
        ``{task: {split: path}}``.
    """
    paths: dict[str, dict[str, Path]] = {}
    for task, splits in generate(seed, train, test, tasks).items():
        for split, records in splits.items():
            path = Path(folder) / task / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
            paths.setdefault(task, {})[split] = path
    return paths


def lessons(task: str, seed: int, size: int) -> list[list[Message]]:
    """Solved conversations of one task, all phrases, to fine-tune its expert on.

    Args:
        task: one of :data:`TASKS`.
        seed: of the random problems.
        size: number of conversations.

    Raises:
        InputError: for an unknown task.
    """
    problems = _problems(task, "lessons", seed)
    return [next(problems).conversation for _ in range(size)]


def pretraining(seed: int, size: int, breadth: float, tasks: Sequence[str] = TASKS) -> list[list[Message]]:
    """A base model's corpus: solved conversations of all tasks in turn, most of basic phrases only.

    Args:
        seed: of the random problems.
        size: number of conversations.
        breadth: share of the conversations that may have any phrase, in [0, 1]; the rest has basic phrases only.
        tasks: which of :data:`TASKS`.

    Raises:
        InputError: for an unknown task.
    """
    problems = [_problems(task, "lessons", seed, breadth) for task in tasks]
    return [next(problems[n % len(problems)]).conversation for n in range(size)]
