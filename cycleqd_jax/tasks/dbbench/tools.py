"""The tool-call protocol of DBBench, from AgentBench's function-calling version (THUDM/AgentBench, Apache-2.0).

The prompt, the results of calls and the treatment of wrong calls are those of ``src/server/tasks/dbbench/task.py``; tools and
round limit are those of ``configs/tasks/dbbench.yaml`` (main branch of October 2025). As there, the first argument of a call
counts, whatever its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from cycleqd_jax.tasks.base import system_message
from cycleqd_jax.tasks.dbbench.answers import same_answer, same_cells
from cycleqd_jax.tasks.dbbench.records import DbRecord
from cycleqd_jax.tasks.dbbench.replies import Writer
from cycleqd_jax.tool_calls import Call, function_tool, write_call
from cycleqd_jax.types import Message, Tool

__all__ = [
    "CALLS",
    "NO_CALL",
    "TIMED_OUT",
    "TOOLS",
    "TOOL_NAMES",
    "TOOL_ROUNDS",
    "Commit",
    "Problem",
    "Statement",
    "act_of",
    "correct",
    "opening_with_tools",
    "queries",
]

TOOL_ROUNDS = 15
"""The largest number of replies."""

TOOLS: tuple[Tool, ...] = (
    function_tool(
        "execute_sql",
        "Executes a given SQL statement on the database and returns the result.",
        "query",
        {"type": "string", "description": "The SQL query to be executed."},
    ),
    function_tool(
        "commit_final_answer",
        "Commits the final answer after all operations are completed.",
        "answers",
        {"type": "array", "items": {"type": "string"}, "description": "The list of final answers to commit."},
    ),
)
"""The tools that a model may call."""

TOOL_NAMES = tuple(tool["function"]["name"] for tool in TOOLS)
"""Their names."""

_SYSTEM = """\
I will ask you a question, then you should help me operate a MySQL database with SQL to answer the question.
You have to explain the problem and your solution to me and write down your thoughts.
After thinking and explaining thoroughly, every round you can choose to operate or to answer with the two specific tools \
provided.
If you should execute a SQL query, use the `execute_sql` function, Your SQL should be in one line.
Every time you can only execute one SQL statement. I will only execute the statement in the first SQL code block. \
Every time you write a SQL, I will execute it for you and give you the output.
If you are done operating, and you want to commit your final answer, then use the `commit_final_answer` function.
DO NOT use this tool unless you are sure about your answer. I expect an accurate and correct answer.
Your answer should be accurate. Your answer must be exactly the same as the correct answer.
If the question is about modifying the database, then after done operation, your answer field can be anything.
If your response cannot match any pattern I mentioned earlier, you will be judged as FAIL immediately.
You should always use the tools provided to submit your answer. Be careful not to write it in the content field.
Your input will be raw MySQL response, you have to deal with it by yourself."""

NO_CALL = "Internal error: No tool calls found despite finish reason."
"""The message that follows a reply without a tool call."""

TIMED_OUT = "Error: SQL execution timed out."
"""The result of a statement that exceeded the time limit; the episode goes on."""

_NOT_JSON = "Error: Failed to parse tool call. Tool call format is incorrect."
_UNKNOWN = "Invalid function call. Please call a tool instead."


class Statement(NamedTuple):
    """A call that executes a statement.

    Attributes:
        sql: the statement.
    """

    sql: str


class Commit(NamedTuple):
    """A call that ends the episode.

    Attributes:
        answer: a list, a text, or another JSON value that counts as false.
    """

    answer: Any


class Problem(NamedTuple):
    """A call that can't be executed.

    Attributes:
        text: the result that the model sees, or the reason of the score.
        goes_on: whether the episode goes on; otherwise it scores 0.
    """

    text: str
    goes_on: bool = True


def act_of(call: Call) -> Statement | Commit | Problem:
    """What a call asks for.

    AgentBench answers calls of unknown tools, arguments that are not JSON and a missing or wrong query with a message. An
    answer that is missing, or neither a list nor a text, makes its code fail, which scores 0.
    """
    if call.error is not None:
        return Problem(_NOT_JSON)
    if call.name not in TOOL_NAMES:
        return Problem(_UNKNOWN)
    try:
        value = list(call.arguments.values())[0]  # noqa: RUF015 - the text of its errors is a result
    except (AttributeError, IndexError) as error:
        executes = call.name == "execute_sql"
        return Problem(f"Error executing query: {error}" if executes else "an answer without arguments", goes_on=executes)
    if call.name == "execute_sql":
        if isinstance(value, str):
            return Statement(value)
        return Problem(f"Error executing query: expected the query as a text, got {type(value).__name__}")
    if value and not isinstance(value, list | str):
        return Problem("the answer is neither a list nor a text", goes_on=False)
    return Commit(value)


def correct(answer: Any, labels: Sequence[str]) -> bool:
    """Whether the answer of a :class:`Commit` is correct, by the rules of :func:`same_answer`."""
    return same_cells([str(item) for item in answer], labels) if isinstance(answer, list) else same_answer(str(answer), labels)


def opening_with_tools(record: DbRecord, published: bool, system_prompt: str | None) -> list[Message]:
    """The first messages, the first of them with the tools.

    Args:
        record: the problem.
        published: whether to use the published prompt; otherwise the question alone.
        system_prompt: the system message, in place of AgentBench's.
    """
    question = record.question
    if published:
        system_prompt = system_prompt or _SYSTEM
        evidence = f"Evidence about the question: {record.evidence}\n" if record.evidence else ""
        addition = f"Additional table information about the question: {record.addition}\n" if record.addition else ""
        question = f"{evidence}{addition}Question: {record.description}\n"
    first, *others = [*system_message(system_prompt), Message(role="user", content=question)]
    return [{**first, "tools": list(TOOLS)}, *others]


def queries(message: Message) -> bool:
    """Whether a message executes a statement."""
    return any(call["function"]["name"] == "execute_sql" for call in message.get("tool_calls", ()))


def _write_operation(sql: str) -> str:
    return write_call("execute_sql", {"query": " ".join(sql.split("\n")).strip()})


def _write_answer(answers: Sequence[str]) -> str:
    return write_call("commit_final_answer", {"answers": list(answers)})


CALLS = Writer(_write_operation, _write_answer)
"""The replies of scripted solutions."""
