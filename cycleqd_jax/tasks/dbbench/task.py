"""AgentBench's DBBench: questions about a table and changes to it, solved with SQL over several rounds."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from typing import Any, Literal

from cycleqd_jax.sandbox import Killed
from cycleqd_jax.tasks.base import RecordTask, Solution, clean_text, fixed_replies, system_message, unprepared
from cycleqd_jax.tasks.dbbench.answers import same_answer
from cycleqd_jax.tasks.dbbench.databases import Database, Ran, Table
from cycleqd_jax.tasks.dbbench.dialect import VERSION as DIALECT
from cycleqd_jax.tasks.dbbench.mysql import SQL_MODE, MySqlDatabase
from cycleqd_jax.tasks.dbbench.mysql_address import Address
from cycleqd_jax.tasks.dbbench.mysql_server import MySqlServer
from cycleqd_jax.tasks.dbbench.prompts import PREFIX
from cycleqd_jax.tasks.dbbench.records import CHANGES, DbRecord, parse_record
from cycleqd_jax.tasks.dbbench.replies import (
    TEXT,
    answer_alone,
    final_answer,
    operate_and_answer,
    operates,
    operation,
    query_and_answer,
)
from cycleqd_jax.tasks.dbbench.sqlite import SqliteDatabase
from cycleqd_jax.tasks.dbbench.tools import (
    CALLS,
    NO_CALL,
    TIMED_OUT,
    TOOL_NAMES,
    TOOL_ROUNDS,
    Commit,
    Problem,
    Statement,
    act_of,
    correct,
    opening_with_tools,
    queries,
)
from cycleqd_jax.tasks.memo import Environment
from cycleqd_jax.tasks.options import TaskOptions, option_error
from cycleqd_jax.tasks.records import Row
from cycleqd_jax.tool_calls import read_calls, tool_message
from cycleqd_jax.types import InputError, Message, Score

__all__ = ["DSN_VARIABLE", "DbBench", "DbEpisode"]

DSN_VARIABLE = "CYCLEQD_MYSQL_DSN"
"""Environment variable with the address of the server, for users who do not want a password in a config."""

_ROUNDS = {"text": 5, "tools": TOOL_ROUNDS}
_LONGEST_SQL = 100_000
_TOO_LONG = Score(0.0, "the statement is too long")
# Results that depend on random numbers, the clock or the server, on either backend.
_VARYING = re.compile(
    r"\brand\b|random|current_|\bnow\b|\bdate|\btime|unixepoch|unix_timestamp|sysdate|curdate|curtime"
    r"|localtime|\butc_|uuid|connection_id|_lock\b|_schema\b|processlist|@@|^\s*show\b",
    re.IGNORECASE,
)


class DbBench(RecordTask[DbRecord]):
    """SQL over several rounds, then a final answer.

    A reply is an operation (``Action: Operation`` and a ```` ```sql ```` block; at most ``rounds`` of them) or ends the episode
    (``Final Answer: [...]``, or any other text). Questions are judged by the answer. Changes are judged by the table at the end
    of the episode, whatever reply ended it, as in AgentBench. Every column is TEXT and compared case-insensitively. Each
    episode has a fresh database, and each statement runs in a session of its own.

    With ``protocol`` "tools", replies call tools instead (:mod:`cycleqd_jax.tasks.dbbench.tools`). An episode that does not
    commit an answer within ``rounds`` replies scores 0, also if it changed the table as it should.

    The backend ``"sqlite"`` is embedded and runs in the sandbox. The backend ``"mysql"`` is any MySQL or MariaDB server, on
    which AgentBench was developed; each episode has a schema and a user of its own (``MySqlDatabase``).
    """

    def __init__(
        self,
        options: TaskOptions,
        *,
        prompt: Literal["agentbench", "brief"] = "agentbench",
        system_prompt: str | None = None,
        rounds: int | None = None,
        protocol: Literal["text", "tools"] = "text",
        backend: Literal["sqlite", "mysql"] = "sqlite",
        dsn: str | None = None,
        sql_mode: str | None = None,
    ) -> None:
        """Reads and checks all records.

        Args:
            options: the options that all tasks share. ``seconds`` limits one statement; exceeding it ends the episode with
                score 0. The sandbox's limits of memory and disk hold for a server as well.
            prompt: ``"agentbench"`` is the published prompt, ``"brief"`` the question alone.
            system_prompt: a system message before all others, in place of the default one of the chat template, and of
                AgentBench's with ``protocol`` "tools".
            rounds: in the text protocol the largest number of operations (5 by default); the reply after the last one must be
                the answer. With tools the largest number of replies (15 by default).
            protocol: ``"text"`` is the protocol of AgentBench's paper, ``"tools"`` that of its function-calling version.
            backend: where the databases are.
            dsn: address of the server (``Address.parse``); by default the value of the environment variable
                CYCLEQD_MYSQL_DSN.
            sql_mode: SQL mode of the sessions on a server; by default NO_ENGINE_SUBSTITUTION, which is not strict.

        Raises:
            InputError: a file is missing or empty, a record is malformed, or the server's address or driver is missing.
        """
        if system_prompt is not None and not system_prompt.strip():
            raise option_error(options.name, "system_prompt", "a text or null", system_prompt)
        for option, value in {"dsn": dsn, "sql_mode": sql_mode}.items():
            if value is not None and backend == "sqlite":
                raise InputError(
                    f"expected option {option} only with backend mysql, got it with sqlite in task {options.name!r}; remove it"
                )
        if not re.fullmatch(r"[A-Z_]*(,[A-Z_]+)*", sql_mode or ""):
            raise option_error(options.name, "sql_mode", "names of SQL modes separated by commas", sql_mode)
        self.prompt = prompt
        self.system_prompt = system_prompt
        self.rounds = _ROUNDS[protocol] if rounds is None else rounds
        self.protocol = protocol
        self.backend = backend
        self.sql_mode = SQL_MODE if sql_mode is None else sql_mode
        self._server = _server(options.name, dsn) if backend == "mysql" else None
        super().__init__(options)
        # One SQLite process executes all statements of an episode, so its limit of processor time covers all rounds.
        self.limits = dataclasses.replace(
            self.limits, wall_s=3 * self.seconds + 10, cpu_s=self.limits.cpu_s * (self.rounds + 2) + 5
        )

    @classmethod
    def max_replies(cls, *, rounds: int | None = None, protocol: Literal["text", "tools"] = "text", **own: Any) -> int:
        """Largest number of replies in one episode: in the text protocol the operations and the answer."""
        return (_ROUNDS[protocol] if rounds is None else rounds) + (protocol == "text")

    def settings(self) -> dict[str, Any]:
        """Everything besides the records that affects prompts or verdicts."""
        return {
            "prompt": self.prompt,
            "system_prompt": self.system_prompt,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "limits": dataclasses.asdict(self.limits),
            "backend": self.backend,
            "sql_mode": None if self._server is None else self.sql_mode,
            "dialect": DIALECT if self._server is None else None,
            **({"protocol": self.protocol} if self.protocol != "text" else {}),
        }

    def parse(self, row: Row) -> DbRecord:
        """Parses a DBBench record."""
        return parse_record(row)

    def environment(self, record: DbRecord) -> Environment:
        """A fresh episode of a record."""
        return DbEpisode(self, record) if self.protocol == "text" else DbToolEpisode(self, record)

    def database(self, table: Table) -> Database:
        """A fresh database with a table.

        Raises:
            Killed: the table can't be built within the limits.
            InfraError: the sandbox is broken, or the server can't be reached.
        """
        if self._server is None:
            return SqliteDatabase(self.sandbox, self.limits, self.seconds, table)
        return MySqlDatabase(self._server, self.limits, self.seconds, self.sql_mode, table)

    def close(self) -> None:
        """Drops leftover databases from the server and closes the connections to it. Safe to call twice."""
        if self._server is not None:
            self._server.close()

    def solutions(self, record: DbRecord) -> Iterable[Solution]:
        """Changes: the gold SQL. Questions: the record's query if its result is the label, else the label alone."""
        write = TEXT if self.protocol == "text" else CALLS
        if record.kind in CHANGES:
            yield operate_and_answer(record.labels[0], ["done"], write)
            return
        if record.query:
            yield query_and_answer(record.query, record.labels, write)
        yield answer_alone(record.labels, write)

    def _demonstrate(self, record: DbRecord) -> list[Message] | None:
        conversation = super()._demonstrate(record) or []
        # An answer without a query would teach a model to guess.
        asks = queries if self.protocol == "tools" else _operates
        return conversation if any(asks(message) for message in conversation) else None

    def stubs(self, record: DbRecord) -> Iterable[Solution]:
        """An empty reply, an answer without an operation, and a query without an answer."""
        write = TEXT if self.protocol == "text" else CALLS
        yield fixed_replies("")
        yield fixed_replies(write.answer(["done"]))
        yield operate_and_answer("SELECT 1", [], write)


class DbEpisode:
    """One problem with a database of its own."""

    def __init__(self, task: DbBench, record: DbRecord) -> None:
        self.repeatable = True
        self._task = task
        self._record = record
        self._database: Database | None = None
        self._operations = 0
        self._failure: Score | None = None

    def opening(self) -> list[Message]:
        """The prompt and the question."""
        prefix = PREFIX if self._task.prompt == "agentbench" else ()
        return [*system_message(self._task.system_prompt), *prefix, {"role": "user", "content": self._record.question}]

    def start(self) -> list[Message]:
        """Creates the database. If its table can't be built, the record is at fault: every reply then scores 0."""
        try:
            self._database = self._task.database(self._record.table)
        except Killed as killed:
            self.repeatable = False
            self._failure = unprepared(self._record.id, str(killed))
        return self.opening()

    def step(self, reply: str) -> list[Message] | Score:
        """Executes an operation, or ends the episode with a score."""
        if self._failure is not None:
            return self._failure
        if self._database is None:
            return Score(0.0, "the episode is closed")
        try:
            return self._act(self._database, reply)
        except Killed as killed:
            self.repeatable = False
            return Score(0.0, f"killed: {killed}")

    def _act(self, database: Database, reply: str) -> list[Message] | Score:
        reply = clean_text(reply)
        sql = operation(reply) if self._operations < self._task.rounds else None
        if sql is None:
            return self._judge(database, reply)
        if len(sql) > _LONGEST_SQL:
            return _TOO_LONG
        self._operations += 1
        ran = self._run(database, sql)
        return Score(0.0, "a statement timed out") if ran.timed_out else [{"role": "user", "content": ran.output}]

    def _run(self, database: Database, sql: str) -> Ran:
        """Executes a statement, and notes whether its result may differ the next time."""
        if _VARYING.search(sql):
            self.repeatable = False
        ran = database.run(sql)
        if ran.timed_out:
            self.repeatable = False
        return ran

    def close(self) -> None:
        """Drops the database."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _judge(self, database: Database, reply: str) -> Score:
        record = self._record
        if record.kind in CHANGES:
            return self._judge_table(database)
        limit = self._operations >= self._task.rounds
        answer = final_answer(reply) if limit or not operates(reply) else None
        if answer is None:
            reason = "round limit" if limit and operates(reply) else "neither an operation nor a final answer"
            return Score(0.0, reason)
        if same_answer(answer, record.labels):
            return Score(1.0, "passed")
        return Score(0.0, f"wrong answer: {answer.strip()[:100]}")

    def _judge_table(self, database: Database) -> Score:
        if database.md5() == self._record.md5:
            return Score(1.0, "passed")
        return Score(0.0, "the table is not as it should be")


class DbToolEpisode(DbEpisode):
    """One problem in which replies call tools, as in AgentBench's function-calling version.

    All calls of a reply are executed in their order, and each gets a result. The episode ends with the first
    ``commit_final_answer``. A reply without a call gets a message.
    """

    def __init__(self, task: DbBench, record: DbRecord) -> None:
        super().__init__(task, record)
        self._replies = 0
        self._calls = 0

    def opening(self) -> list[Message]:
        """The prompt and the question, with the tools."""
        return opening_with_tools(self._record, self._task.prompt == "agentbench", self._task.system_prompt)

    def _act(self, database: Database, reply: str) -> list[Message] | Score:
        self._replies += 1
        _, calls = read_calls(reply, TOOL_NAMES)
        messages: list[Message] = [] if calls else [{"role": "user", "content": NO_CALL}]
        for call in calls:
            self._calls += 1
            result = self._execute(database, act_of(call))
            if isinstance(result, Score):
                return result
            messages.append(tool_message(self._calls, call.name, result))
        return messages if self._replies < self._task.rounds else Score(0.0, "round limit")

    def _execute(self, database: Database, act: Statement | Commit | Problem) -> str | Score:
        if isinstance(act, Problem):
            return act.text if act.goes_on else Score(0.0, act.text)
        if isinstance(act, Commit):
            return self._judge_commit(database, act)
        sql = clean_text(act.sql)
        if len(sql) > _LONGEST_SQL:
            return _TOO_LONG
        ran = self._run(database, sql)
        return TIMED_OUT if ran.timed_out else ran.output

    def _judge_commit(self, database: Database, commit: Commit) -> Score:
        if self._record.kind in CHANGES:
            return self._judge_table(database)
        if correct(commit.answer, self._record.labels):
            return Score(1.0, "passed")
        return Score(0.0, f"wrong answer: {str(commit.answer)[:100]}")


def _operates(message: Message) -> bool:
    return message["role"] == "assistant" and operates(message["content"])


def _server(task: str, dsn: str | None) -> MySqlServer:
    """The server that the option or the environment variable names."""
    if dsn is None:
        dsn = os.environ.get(DSN_VARIABLE)
        if not dsn:
            raise InputError(
                "expected the address of a MySQL or MariaDB server in option dsn or in the environment variable "
                f"{DSN_VARIABLE}, got none in task {task!r}; set one, such as mysql://root@/?unix_socket=/run/mysqld/mysqld.sock"
            )
        return MySqlServer(Address.parse(f"environment variable {DSN_VARIABLE}", dsn))
    return MySqlServer(Address.parse(f"option dsn of task {task!r}", dsn))
