"""Divides the benchmark files of a config, and generates more DBBench problems for fine-tuning.

    python scripts/divide_benchmarks.py CONFIG FOLDER [--generated 600] [--seed 0] [key=value …]

For every task NAME of CONFIG that has a ``train`` file and no ``test`` file, this writes ``FOLDER/NAME/search.jsonl`` (the
problems that the search scores, then those for validation), ``test.jsonl`` and ``finetune.jsonl``. The first three parts are
those of CONFIG. ``finetune.jsonl`` has all other problems of the file, also those of the test half that CONFIG does not use.

For DBBench it also has generated problems: questions, insertions and updates in templates of English, about the tables of its
real problems. A table that has the name or the columns of a table for search, validation or test is not used. Every generated
problem is checked: its gold SQL runs, and changes the table or returns one value.

The printed overrides make a config use the files.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cycleqd_jax as cq
from cycleqd_jax.files import write_text
from cycleqd_jax.runs.inputs.tasks import open_tasks, resolve_tasks
from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.tasks.dbbench import DbBench, mysql
from cycleqd_jax.tasks.dbbench.databases import Table
from cycleqd_jax.tasks.records import Row, read_rows

UPDATES = (
    "Change the {column} of {key} in the {table} table to {value}.",
    "Update the {table} table: the {column} of '{key}' is now '{value}'.",
    "Set the {column} to '{value}' for the {key_column} '{key}' in {table}.",
    "The {column} of {key} has been changed to {value} in {table}.",
    "Modify {table} so that the row with {key_column} {key} has the {column} {value}.",
    "In the {table} table, update {column} to '{value}' where {key_column} is '{key}'.",
)
INSERTS = (
    "Insert a new row into the {table} table with {pairs}.",
    "Add to {table} a record with {pairs}.",
    "A new entry with {pairs} is added to the {table} table.",
    "Insert into '{table}' the values {values} for {columns}.",
    "The {table} table should have a new row with the values {values}.",
    "Record in {table}: {pairs}.",
)
QUESTIONS = (
    "What is the {column} of {key}?",
    "What is the {column} when the {key_column} is {key}?",
    "Which {column} has a {key_column} of {key}?",
    "Name the {column} for the {key_column} {key}.",
    "{key_column} {key} has what {column}?",
)
COUNTS = (
    "How many rows have a {key_column} of {key}?",
    "How many times is the {key_column} {key}?",
    "What is the number of entries with {key} as {key_column}?",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--generated", type=int, default=600, metavar="N", help="generated problems of DBBench (600)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated problems")
    args = parser.parse_intermixed_args(argv)
    config = cq.load_config(args.config, args.overrides)
    config = dataclasses.replace(config, tasks=tuple(one for one in config.tasks if one.train and not one.test))
    inputs = resolve_tasks(config)
    with Sandbox() as sandbox:
        opened = open_tasks(config, inputs, sandbox, 2, print)
        with contextlib.closing(opened):
            for given, task in zip(config.tasks, opened.tasks, strict=True):
                divide(given, task, args.folder / given.name, args.generated, args.seed)


def divide(given: Any, task: Any, folder: Path, generated: int, seed: int) -> None:
    """Writes the files of a task, and prints the overrides."""
    search = [*task.rows["train"][: given.train_size], *task.rows["validation"]]
    test = task.rows["test"][: given.test_size]
    used = {row.id for row in (*search, *test)}
    rest = [row for row in read_rows(given.train) if row.id not in used]
    lines = [dict(row.fields) for row in rest]
    if isinstance(task, DbBench):
        lines += generate(task, rest, [*search, *test], generated, random.Random(seed))
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("search", [row.fields for row in search]), ("test", [row.fields for row in test]), ("finetune", lines)):
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{given.name}: {len(search)} for search and validation, {len(test)} test, {len(lines)} for fine-tuning")
    for key, name in (("train", "search"), ("test", "test"), ("finetune", "finetune")):
        print(f"  tasks.{given.name}.{key}={folder / name}.jsonl")


def generate(task: DbBench, rows: Sequence[Row], others: Sequence[Row], count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Problems about the tables of some problems, but not about those of others."""
    taken = [task.parse(row).table for row in others]
    names, columns = {one.name.lower() for one in taken}, {tuple(map(str.lower, one.columns)) for one in taken}
    by_name = {}
    for row in rows:
        table = task.parse(row).table
        free = table.name.lower() not in names and tuple(map(str.lower, table.columns)) not in columns
        if free and len(table.rows) >= 3 and len(table.columns) >= 2 and all(len(r) == len(table.columns) for r in table.rows):
            by_name.setdefault(table.name.lower(), (table, row))
    tables = [*by_name.values()]
    print(f"{len(tables)} tables of {len(rows)} problems are free")
    found: list[dict[str, Any]] = []
    turns = [make for make in (update, update, insert, insert, question, count_rows) for _ in range(count)]
    rng.shuffle(turns)
    for make in turns:
        if len(found) == count:
            break
        table, row = rng.choice(tables)
        problem = make(table, rng)
        checked = None if problem is None else check(task, table, *problem)
        if checked is not None:
            found.append({**row.fields, **checked, "id": f"generated/{len(found)}"})
    return found


def check(task: DbBench, table: Table, kind: str, text: str, sql: str, answer: str | None) -> dict[str, Any] | None:
    """The fields of a problem; None where the SQL does not do what it should."""
    database = task.database(table)
    try:
        before = database.md5()
        output = database.run(sql).output
        after = database.md5()
    finally:
        database.close()
    description = {"description": text, "type": [kind]}
    if answer is None:
        if after is None or after == before:
            return None
        return description | {"label": [sql], "answer_md5": f"[('{after}',)]", "sql": {}}
    if answer not in output:
        return None
    return description | {"label": [answer], "answer_md5": None, "sql": {"query": sql}}


def quoted(name: str) -> str:
    """A name in SQL; with backticks where it needs them."""
    return name if re.fullmatch(r"[A-Za-z_][A-Za-z_0-9]*", name) else mysql.quoted(name)


def text_of(value: str) -> str:
    """A value in SQL."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def cells(table: Table, rng: random.Random) -> Iterator[tuple[str, str, str, str]]:
    """Rows that one column identifies, in random order: that column, its value, another column and its value."""
    places = [(i, j, k) for i in range(len(table.rows)) for j in range(len(table.columns)) for k in range(len(table.columns))]
    rng.shuffle(places)
    for i, j, k in places:
        values = [row[j].lower() for row in table.rows]
        row = table.rows[i]
        short = all(0 < len(row[n]) <= 40 for n in (j, k))
        if j != k and short and values.count(row[j].lower()) == 1 and not row[j].isdigit():
            yield table.columns[j], row[j], table.columns[k], row[k]


def update(table: Table, rng: random.Random) -> tuple[str, str, str, None] | None:
    """A change of one cell to a value of the same column, or to a new number."""
    for key_column, key, column, old in cells(table, rng):
        options = sorted({row[table.columns.index(column)] for row in table.rows} - {old, ""})
        value = str(rng.randint(1, 9999)) if old.isdigit() else rng.choice(options) if options else None
        if value is None or len(value) > 40:
            continue
        text = rng.choice(UPDATES).format(table=table.name, key_column=key_column, key=key, column=column, value=value)
        where = f"{quoted(key_column)} = {text_of(key)}"
        return "UPDATE", text, f"UPDATE {quoted(table.name)} SET {quoted(column)} = {text_of(value)} WHERE {where}", None
    return None


def insert(table: Table, rng: random.Random) -> tuple[str, str, str, None] | None:
    """A new row of values that different rows have."""
    if len(table.columns) > 8:
        return None
    values = [rng.choice(table.rows)[j] for j in range(len(table.columns))]
    values = [str(rng.randint(1, 2030)) if one.isdigit() and rng.random() < 0.5 else one for one in values]
    if any(len(one) > 50 for one in values):
        return None
    pairs = [f"{name} '{one}'" for name, one in zip(table.columns, values, strict=True)]
    text = rng.choice(INSERTS).format(
        table=table.name,
        pairs=", ".join(pairs[:-1]) + f" and {pairs[-1]}",
        values=", ".join(f"'{one}'" for one in values),
        columns=", ".join(table.columns),
    )
    names = ", ".join(map(quoted, table.columns))
    return "INSERT", text, f"INSERT INTO {quoted(table.name)} ({names}) VALUES ({', '.join(map(text_of, values))})", None


def question(table: Table, rng: random.Random) -> tuple[str, str, str, str] | None:
    """The value of one cell."""
    for key_column, key, column, value in cells(table, rng):
        text = rng.choice(QUESTIONS).format(key_column=key_column, key=key, column=column)
        where = f"{quoted(key_column)} = {text_of(key)}"
        return "other", text, f"SELECT {quoted(column)} FROM {quoted(table.name)} WHERE {where}", value
    return None


def count_rows(table: Table, rng: random.Random) -> tuple[str, str, str, str] | None:
    """The number of rows with a value that several rows have."""
    j = rng.randrange(len(table.columns))
    values = [row[j] for row in table.rows]
    key = rng.choice(values)
    count = sum(one.lower() == key.lower() for one in values)
    if count < 2 or not 0 < len(key) <= 40:
        return None
    text = rng.choice(COUNTS).format(key_column=table.columns[j], key=key)
    where = f"{quoted(table.columns[j])} = {text_of(key)}"
    return "counting", text, f"SELECT COUNT(*) FROM {quoted(table.name)} WHERE {where}", str(count)


if __name__ == "__main__":
    main()
