"""The protocol of DBBench: what a reply asks for, and the replies of scripted solutions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cycleqd_jax.tasks.base import Solution
from cycleqd_jax.tasks.dbbench.answers import same_answer
from cycleqd_jax.tasks.syntax import literal

__all__ = [
    "TEXT",
    "Writer",
    "answer_alone",
    "final_answer",
    "operate_and_answer",
    "operates",
    "operation",
    "query_and_answer",
    "write_answer",
    "write_operation",
]


def operates(reply: str) -> bool:
    """Whether the first ``Action: `` line of a reply is ``Action: Operation``; the SQL may be missing."""
    start = reply.find("Action: ")
    end = reply.find("\n", start)
    return 0 <= start < end and reply[start + len("Action: ") : end] == "Operation"


def operation(reply: str) -> str | None:
    r"""The SQL of an operation in one line; None if the reply is no operation or has no SQL.

    The SQL is the first ```` ```sql ```` block, as in AgentBench. Its regular expressions take quadratic time on long replies,
    so this function searches for fixed texts.
    """
    if not operates(reply):
        return None
    start = reply.find("```sql\n")
    end = reply.find("\n```", start + len("```sql\n"))
    if start < 0 or end < 0:
        return None
    return reply[start + len("```sql\n") : end].strip().replace("\n", " ")


def final_answer(reply: str) -> str | None:
    """The rest of the first line that starts with ``Final Answer:``, the first line of the reply excepted; or None."""
    start = reply.find("\nFinal Answer:")
    if start < 0:
        return None
    start += len("\nFinal Answer:")
    end = reply.find("\n", start)
    return reply[start : None if end < 0 else end]


def write_operation(sql: str) -> str:
    """The reply that executes a statement."""
    statement = " ".join(sql.split("\n")).strip()
    return f"Action: Operation\n```sql\n{statement}\n```"


def write_answer(answers: Sequence[str]) -> str:
    """The reply that gives the final answer."""
    return f"Action: Answer\nFinal Answer: {json.dumps(list(answers), ensure_ascii=False)}"


class Writer(NamedTuple):
    """The replies of scripted solutions in one protocol.

    Attributes:
        operation: the reply that executes a statement.
        answer: the reply that gives the final answer.
    """

    operation: Callable[[str], str]
    answer: Callable[[Sequence[str]], str]


TEXT = Writer(write_operation, write_answer)
"""The replies of the text protocol."""


def operate_and_answer(sql: str, answers: Sequence[str], write: Writer = TEXT) -> Solution:
    """A solution that executes a statement and then answers."""
    yield write.operation(sql)
    yield write.answer(answers)


def query_and_answer(sql: str, labels: Sequence[str], write: Writer = TEXT) -> Solution:
    """A solution that executes a query and answers if the result is the label. Otherwise it returns early."""
    output = yield write.operation(sql)
    try:
        rows = literal(output)
        values = json.dumps([str(row[0]) for row in rows])
    except (ValueError, SyntaxError, TypeError, KeyError, IndexError, RecursionError, MemoryError):
        return
    if same_answer(values, labels):
        yield write.answer(labels)


def answer_alone(labels: Sequence[str], write: Writer = TEXT) -> Solution:
    """A solution that answers without a query."""
    yield write.answer(labels)
