"""AgentBench's DBBench: questions about a table, and changes to it, solved with SQL over several rounds."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from cycleqd_jax.sandbox import Killed, Sandbox
from cycleqd_jax.tasks.agentbench import DBBENCH_PREFIX
from cycleqd_jax.tasks.base import RecordTask, Solution, clean, fixed, one_of, optional_text, system_message, whole
from cycleqd_jax.tasks.dbbench.databases import Database, Table
from cycleqd_jax.tasks.dbbench.mysql import SQL_MODE, MySqlDatabase
from cycleqd_jax.tasks.dbbench.mysql_server import Address, MySqlServer
from cycleqd_jax.tasks.dbbench.sqlite import SqliteDatabase
from cycleqd_jax.tasks.memo import Environment
from cycleqd_jax.tasks.records import Row
from cycleqd_jax.types import InputError, Message, Score

__all__ = ["DbBench", "DbRecord", "final_answer", "operates", "operation", "parse_answer", "same_answer"]

CHANGES = ("INSERT", "UPDATE", "DELETE")
"""Types of problem that are judged by the table; all others by the answer."""

_LONGEST_ANSWER = 20_000
_LONGEST_SQL = 100_000
_TOLERANCE = 1e-2
# What chance, the clock or the server decides, on either backend.
_CHANCE = re.compile(
    r"\brand\b|random|current_|\bnow\b|julianday|strftime|\bdate|\btime|unixepoch|unix_timestamp|sysdate|curdate|curtime"
    r"|localtime|\butc_|uuid|connection_id|_lock\b|_schema\b|processlist|@@|^\s*show\b",
    re.IGNORECASE,
)
DSN_VARIABLE = "CYCLEQD_MYSQL_DSN"
"""Environment variable with the address of the server, for those who want no password in a config."""
_NOTHING = {"none", "null", "undefined", "nan", "inf", "infinity", "-inf", "-infinity", ""}


@dataclasses.dataclass(frozen=True)
class DbRecord:
    """One problem.

    Attributes:
        question: description and added description.
        kind: ``"INSERT"``, ``"UPDATE"``, ``"DELETE"``, or a kind of question.
        labels: answers of a question; gold SQL of a change.
        md5: fingerprint of the table after the change; None for questions.
        query: machine-written SQL of a question (often wrong, never used for scoring), or None.
        table: what the database holds.
    """

    question: str
    kind: str
    labels: tuple[str, ...]
    md5: str | None
    query: str | None
    table: Table


class DbBench(RecordTask[DbRecord]):
    """SQL over several rounds, then a final answer.

    A reply either operates (``Action: Operation`` and a ```` ```sql ```` block; at most ``rounds`` times) or ends the episode
    (``Final Answer: [...]``, or anything that isn't in the format). Questions are judged by the answer, changes by the table
    as it stands in the end, whatever ended the episode: both as AgentBench does. Every column is TEXT and compared without
    regard to the case of letters; each episode has a fresh database, each statement a session of its own.

    Backends: ``"sqlite"`` is embedded, in the sandbox. ``"mysql"`` is what AgentBench was made on: any MySQL or MariaDB server,
    where each episode has a schema and a user of its own (``MySqlDatabase``); the table keeps
    its name, and ``t.t`` means it although the schema has another one.

    Prompts: ``"agentbench"`` is the published protocol, ``"brief"`` the question alone.
    """

    def __init__(
        self,
        *,
        sandbox: Sandbox,
        name: str = "dbbench",
        max_new_tokens: int = 512,
        train: str | Path | None = None,
        test: str | Path | None = None,
        data: str | Path | None = None,
        prompt: Literal["agentbench", "brief"] = "agentbench",
        system_prompt: str | None = None,
        rounds: int = 5,
        backend: Literal["sqlite", "mysql"] = "sqlite",
        dsn: str | None = None,
        sql_mode: str | None = None,
        seconds: float | None = None,
        memo: bool = True,
        cache: str | Path | None = None,
        workers: int = 4,
    ) -> None:
        """Reads and checks all records (see :class:`~cycleqd_jax.tasks.base.RecordTask` for the options not listed here).

        Args:
            sandbox: where SQLite's databases live; of its limits, those of memory and disk hold for a server's too.
            name: as in configs, journals and tables.
            max_new_tokens: most tokens a reply may have.
            train: file with the records the search may see.
            test: file with the records to report on.
            data: instead of both, one file to be split evenly.
            prompt: how the problem is put.
            system_prompt: a system message before all others, in place of the chat template's own where it has one.
            rounds: most operations; the reply after the last must be the answer.
            backend: where databases are.
            dsn: the server (``Address.parse``); by default what the environment variable
                CYCLEQD_MYSQL_DSN says.
            sql_mode: of the server's sessions; by default NO_ENGINE_SUBSTITUTION, which is not strict.
            seconds: time limit of one statement, instead of the sandbox's; exceeding it ends the episode with score 0.
            memo: whether results are remembered.
            cache: folder where demonstrations are kept, or None.
            workers: threads that replay demonstrations.

        Raises:
            InputError: for an unknown option, a missing or empty file, a malformed record, or a server that is not named or
                that there is no driver for.
        """
        self.prompt = one_of(name, "prompt", prompt, ("agentbench", "brief"))
        self.system_prompt = optional_text(name, "system_prompt", system_prompt)
        self.rounds = whole(name, "rounds", rounds)
        self.backend = one_of(name, "backend", backend, ("sqlite", "mysql"))
        for option, value in {"dsn": dsn, "sql_mode": sql_mode}.items():
            if value is not None and backend == "sqlite":
                raise InputError(f"task {name!r}: expected option {option} only with backend mysql, got it with sqlite")
        if not isinstance(sql_mode, str | None) or not re.fullmatch(r"[A-Z_]*(,[A-Z_]+)*", sql_mode or ""):
            raise InputError(
                f"task {name!r}: expected option sql_mode to be names of modes with commas between, got {sql_mode!r}"
            )
        self.sql_mode = SQL_MODE if sql_mode is None else sql_mode
        self._server = _server(name, dsn) if backend == "mysql" else None
        super().__init__(
            sandbox=sandbox,
            name=name,
            max_new_tokens=max_new_tokens,
            train=train,
            test=test,
            data=data,
            seconds=seconds,
            memo=memo,
            cache=cache,
            workers=workers,
        )
        self.seconds = self.limits.wall_s
        # One process of SQLite's executes all statements, so its processor time is that of all rounds.
        self.limits = dataclasses.replace(
            self.limits, wall_s=3 * self.seconds + 10, cpu_s=self.limits.cpu_s * (self.rounds + 2) + 5
        )

    def options(self) -> dict[str, Any]:
        """What decides about prompts and verdicts."""
        return {
            "prompt": self.prompt,
            "system_prompt": self.system_prompt,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "limits": dataclasses.asdict(self.limits),
            "backend": self.backend,
            "sql_mode": None if self._server is None else self.sql_mode,
        }

    def parse(self, row: Row) -> DbRecord:
        """A DBBench record; fields that scoring doesn't use are ignored."""
        kinds = row.texts("type")
        if len(kinds) != 1:
            raise row.error("exactly one text in field 'type'", json.dumps(kinds))
        kind = kinds[0]
        columns = []
        for column in row.get("table/table_info/columns", list):
            if not isinstance(column, dict) or not isinstance(column.get("name"), str):
                raise row.error("objects with a name in field 'table/table_info/columns'", json.dumps(column)[:80])
            columns.append(column["name"])
        rows = row.get("table/table_info/rows", list)
        if not columns or not all(isinstance(cells, list) for cells in rows):
            raise row.error("columns, and rows that are lists, in field 'table/table_info'", "something else")
        labels = row.texts("label")
        md5 = None
        if kind in CHANGES:
            match = re.search(r"[0-9a-f]{32}", row.text("answer_md5"))
            if match is None:
                raise row.error("an MD5 in field 'answer_md5'", repr(row.text("answer_md5")))
            md5 = match.group()
            if len({name.lower() for name in columns}) < len(columns) or not all(columns):
                raise row.error("columns of different names, none empty", json.dumps(columns)[:200])
        if not labels:
            raise row.error("at least one text in field 'label'", "none")
        return DbRecord(
            question=row.text("description") + "\n" + row.text("add_description", ""),
            kind=kind,
            labels=labels,
            md5=md5,
            query=None if kind in CHANGES else row.text("sql/query", None),
            table=Table(row.text("table/table_name"), tuple(columns), tuple(tuple(map(str, cells)) for cells in rows)),
        )

    def environment(self, record: DbRecord) -> Environment:
        """A fresh episode of a record."""
        return DbEpisode(self, record)

    def database(self, table: Table) -> Database:
        """A fresh database that holds a table.

        Raises:
            InfraError: the sandbox is broken, or the server missing.
        """
        if self._server is None:
            return SqliteDatabase(self.sandbox, self.limits, self.seconds, table)
        return MySqlDatabase(self._server, self.limits, self.seconds, self.sql_mode, table)

    def close(self) -> None:
        """Drops what could not be dropped from the server before, and closes the connections to it. Safe to call twice."""
        if self._server is not None:
            self._server.close()

    def solutions(self, record: DbRecord) -> Iterable[Solution]:
        """Changes: the gold SQL. Questions: the record's query where its result is the label, else the label alone."""
        if record.kind in CHANGES:
            yield _operate_and_answer(record.labels[0], ["done"])
            return
        if record.query:
            yield _query_and_answer(record.query, record.labels)
        yield _answer(record.labels)

    def _demonstrate(self, record: DbRecord) -> list[Message] | None:
        lesson = super()._demonstrate(record) or []
        # An answer from nowhere would teach to guess.
        return lesson if any(m["role"] == "assistant" and operates(m["content"]) for m in lesson) else None

    def stubs(self, record: DbRecord) -> Iterable[Solution]:
        """Nothing said, nothing done, and a look at the table without an answer."""
        yield fixed("")
        yield fixed(_final(["done"]))
        yield _operate_and_answer("SELECT 1", [])


class DbEpisode:
    """One problem on its own database."""

    def __init__(self, task: DbBench, record: DbRecord) -> None:
        self.repeatable = True
        self._task = task
        self._record = record
        self._database: Database | None = None
        self._operations = 0

    def opening(self) -> list[Message]:
        """Protocol and question."""
        prefix = DBBENCH_PREFIX if self._task.prompt == "agentbench" else ()
        return [*system_message(self._task.system_prompt), *prefix, {"role": "user", "content": self._record.question}]

    def start(self) -> list[Message]:
        """Builds the database."""
        self._database = self._task.database(self._record.table)
        return self.opening()

    def step(self, reply: str) -> list[Message] | Score:
        """Executes an operation, or judges."""
        reply = clean(reply)
        if self._database is None:
            return Score(0.0, "the episode is closed")
        sql = operation(reply) if self._operations < self._task.rounds else None
        try:
            if sql is None:
                return self._judge(self._database, reply)
            if len(sql) > _LONGEST_SQL:
                return Score(0.0, "the statement is too long")
            self._operations += 1
            if _CHANCE.search(sql):
                self.repeatable = False
            ran = self._database.run(sql)
        except Killed as killed:
            self.repeatable = False
            return Score(0.0, f"killed: {killed}")
        if ran.timed_out:
            self.repeatable = False
            return Score(0.0, "a statement timed out")
        return [{"role": "user", "content": ran.output}]

    def close(self) -> None:
        """Throws the database away."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _judge(self, database: Database, reply: str) -> Score:
        record = self._record
        if record.kind in CHANGES:
            return Score(1.0, "passed") if database.md5() == record.md5 else Score(0.0, "the table is not as it should be")
        limit = self._operations >= self._task.rounds
        answer = final_answer(reply) if limit or not operates(reply) else None
        if answer is None:
            said = "round limit" if limit and operates(reply) else "neither an operation nor a final answer"
            return Score(0.0, said)
        if same_answer(answer, record.labels):
            return Score(1.0, "passed")
        return Score(0.0, f"wrong answer: {answer.strip()[:100]}")


def operates(reply: str) -> bool:
    """Whether a reply is an operation, though it may lack the SQL: its first ``Action: `` line says ``Operation``."""
    start = reply.find("Action: ")
    end = reply.find("\n", start)
    return 0 <= start < end and reply[start + len("Action: ") : end] == "Operation"


def operation(reply: str) -> str | None:
    r"""The SQL of a reply that operates, else None.

    As AgentBench: the statement is the first ```` ```sql ```` block, in one line. Plain searches rather than its regular
    expressions, which take quadratic time on long replies.
    """
    if not operates(reply):
        return None
    start = reply.find("```sql\n")
    end = reply.find("\n```", start + len("```sql\n"))
    if start < 0 or end < 0:
        return None
    return reply[start + len("```sql\n") : end].strip().replace("\n", " ")


def final_answer(reply: str) -> str | None:
    """What follows the first ``Final Answer:`` at the start of a line that isn't the first, up to its end; or None."""
    start = reply.find("\nFinal Answer:")
    if start < 0:
        return None
    start += len("\nFinal Answer:")
    end = reply.find("\n", start)
    return reply[start : None if end < 0 else end]


def parse_answer(answer: str) -> list[str]:
    """The answers in a list written as JSON or Python, or badly; anything else is one answer. Nothing is evaluated."""
    answer = answer.strip()[:_LONGEST_ANSWER]
    if not (answer.startswith("[") and answer.endswith("]")):
        return [answer]
    if answer.count("[") + answer.count("(") + answer.count("{") < 50:  # deep nesting could exhaust the parsers' stack
        for parser in (json.loads, ast.literal_eval):
            try:
                values: Any = parser(answer)
                if isinstance(values, list):  # a text of the longest numbers can't be had either
                    return [str(v[0]) if isinstance(v, list | tuple) and len(v) == 1 else str(v) for v in values]
                break
            except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                continue
    return _split_badly_written(answer[1:-1])


def same_answer(answer: str, labels: Sequence[str]) -> bool:
    """Whether an answer is right: the rules of AgentBench's result processor, without its ``eval``.

    Cells are compared after trimming blanks, quotes, a percent sign and thousands separators; words for "nothing" are "0". If
    all are numbers they must match one to one within 0.01, else the sets of texts must be equal. Stricter than AgentBench in
    one point: an answer left out altogether is no answer, though a label may be "none".
    """
    if not answer.strip() or len(answer) > _LONGEST_ANSWER:
        return False
    given = [_normal(value) for value in parse_answer(answer)]
    wanted = [_normal(label) for label in labels]
    numbers, targets = _numbers(given), _numbers(wanted)
    if numbers is None or targets is None:
        return set(given) == set(wanted)
    for number in numbers:
        near = next((i for i, target in enumerate(targets) if abs(number - target) <= _TOLERANCE), None)
        if near is None:
            return False
        del targets[near]
    return not targets


def _normal(value: str) -> str:
    value = value.strip().strip("'\"").strip()
    if value.endswith("%"):
        return value[:-1].strip()
    if not value.startswith("["):
        value = value.replace(",", "")
    return "0" if value.lower() in _NOTHING else value


def _numbers(values: Sequence[str]) -> list[float] | None:
    """The values as numbers, None where one isn't."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return None


def _split_badly_written(text: str) -> list[str]:
    """The parts of a list between commas outside quotes."""
    parts, start, quoted = [], 0, False
    for position, character in enumerate(text):
        if character in "\"'":
            quoted = not quoted
        elif character == "," and not quoted:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return [part.strip().strip("'\"") for part in parts if part.strip()]


def _operate(sql: str) -> str:
    statement = " ".join(sql.split("\n")).strip()
    return f"Action: Operation\n```sql\n{statement}\n```"


def _final(answers: Sequence[str]) -> str:
    return f"Action: Answer\nFinal Answer: {json.dumps(list(answers), ensure_ascii=False)}"


def _operate_and_answer(sql: str, answers: Sequence[str]) -> Solution:
    yield _operate(sql)
    yield _final(answers)


def _query_and_answer(sql: str, labels: Sequence[str]) -> Solution:
    output = yield _operate(sql)
    try:
        rows = ast.literal_eval(output)
        values = json.dumps([str(row[0]) for row in rows])
    except (ValueError, SyntaxError, TypeError, KeyError, IndexError, RecursionError):
        return
    if same_answer(values, labels):
        yield _final(labels)


def _answer(labels: Sequence[str]) -> Solution:
    yield _final(labels)


def _server(task: str, dsn: str | None) -> MySqlServer:
    """The server that option or environment names."""
    if dsn is None:
        dsn = os.environ.get(DSN_VARIABLE)
        if not dsn:
            raise InputError(
                f"task {task!r}: expected the address of a MySQL or MariaDB server in option dsn or in the environment "
                f"variable {DSN_VARIABLE}, such as mysql://root@/?unix_socket=/run/mysqld/mysqld.sock, got none"
            )
        return MySqlServer(Address.parse(f"environment variable {DSN_VARIABLE}", dsn))
    return MySqlServer(Address.parse(f"task {task!r}, option dsn", dsn))
