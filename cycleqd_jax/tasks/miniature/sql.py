"""Generated DBBench problems: questions about a table and changes to it. SQLite computes the outputs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import sqlite3
from collections.abc import Sequence

from cycleqd_jax.tasks.miniature.common import Problem, Record, conversation, fill

__all__ = ["draw_dbbench", "table_md5"]


@dataclasses.dataclass(frozen=True)
class _Query:
    """A question or a change.

    Attributes:
        type: type of the problem in DBBench.
        texts: two ways to ask for it; basic problems use the first.
        sql: the gold SQL.
        basic: whether the phrase is basic.
    """

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


def draw_dbbench(rng: random.Random, basic: bool) -> Problem | None:
    """A random problem, or None if the question drawn has no answer."""
    query = rng.choice([q for q in _QUERIES if q.basic or not basic])
    table, num, txt = rng.choice(_TABLES), rng.choice(_NUMERIC), rng.choice(_TEXTUAL)
    # Where rows are counted, tables have many sizes, so that no single answer is correct for many problems.
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
    text = fill(rng.choice(query.texts[:1] if basic else query.texts), values)
    sql = fill(query.sql, values)
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
        record |= {"label": [sql], "answer_md5": str([(table_md5(after),)])}
    else:
        if not result or result == [(None,)]:
            return None
        answer = json.dumps(record["label"])
        record["sql"] = {"query": sql, "length": len(sql)}
    operation, final = f"Action: Operation\n```sql\n{sql}\n```", f"Action: Answer\nFinal Answer: {answer}"
    return Problem(sql, record, conversation(f"{text}\n{described}", operation, str(result), final))


def table_md5(rows: Sequence[Sequence[str]]) -> str:
    """DBBench's fingerprint of the rows of a table, independent of their order."""
    hashes = sorted(hashlib.md5(",".join(row).encode()).hexdigest()[:5] for row in rows)
    return hashlib.md5(",".join(hashes).encode()).hexdigest()
