"""The tool-call protocol of OS interaction, from AgentBench's function-calling version (THUDM/AgentBench, Apache-2.0).

The prompt, the results of calls and the treatment of wrong calls are those of ``src/server/tasks/os_interaction/task.py``;
tools and round limit are those of ``configs/tasks/os.yaml`` (main branch of October 2025). As there, the first argument of a
call counts, whatever its name, and the thought of ``finish_action`` is the answer.
"""

from __future__ import annotations

from typing import NamedTuple

from cycleqd_jax.tasks.base import system_message
from cycleqd_jax.tasks.os_interaction.prompts import LEAD
from cycleqd_jax.tasks.os_interaction.records import OsRecord
from cycleqd_jax.tasks.os_interaction.replies import Act, Writer
from cycleqd_jax.tool_calls import Call, function_tool, write_call
from cycleqd_jax.types import Message, Tool

__all__ = ["CALLS", "NO_CALL", "TOOLS", "TOOL_NAMES", "TOOL_ROUNDS", "Problem", "act_of", "opening_with_tools"]

TOOL_ROUNDS = 8
"""The largest number of replies."""

TOOLS: tuple[Tool, ...] = (
    function_tool(
        "bash_action",
        "Execute bash code to perform an operation in the Linux environment.",
        "script",
        {"type": "string", "description": "The bash script to be executed."},
    ),
    function_tool(
        "finish_action",
        "Indicate that the task has been finished or need some additional information to be finished.",
        "thought",
        {"type": "string", "description": "The thought or reason indicating the task is finished."},
    ),
    function_tool(
        "answer_action",
        "Provide the answer to the question.",
        "answer",
        {"type": "string", "description": "The answer to the question."},
    ),
)
"""The tools that a model may call."""

TOOL_NAMES = tuple(tool["function"]["name"] for tool in TOOLS)
"""Their names."""

_SYSTEM = """\
You are an assistant that will act like a person. I will play the role of a Linux (Ubuntu) operating system.
Your goal is to implement the operations required by me or answer the questions proposed by me.
For each of your turns, you should first think about what you should do, and then call exactly one of the provided tools \
according to the situation.
If you think the output is too long, I will truncate it. The truncated output is not complete. \
You have to deal with the truncating problem by yourself.
Attention, your bash code should not contain any input operation. Once again, you should use one tool in each turn, \
and should not respond without function calling.
Note that if you think the task has been finished, or there is some message missing to completely complete the task, \
you should respond with calling the function "finish_action", as no additional information will be provided.
Also, note that if you have gotten the answer to the question, you should call the "answer_action" tool \
instead of simply writing your answer in your response.
Your answers should be exact and precise (for example, a single number), do not answer with full sentences or phrases.
Always use a tool provided instead of simply responding with content."""

NO_CALL = "No executable tool calls found. Please call a tool instead"
"""The message that follows a reply without a tool call."""

_UNKNOWN = "Invalid function call. Please call a tool instead"


class Problem(NamedTuple):
    """A call that can't be executed.

    Attributes:
        text: the result that the model sees, or the reason of the score.
        goes_on: whether the episode goes on; otherwise it scores 0.
    """

    text: str
    goes_on: bool = True


def act_of(call: Call, *, matched: bool) -> Act | Problem:
    """What a call asks for.

    AgentBench answers calls of unknown tools and arguments that are not a JSON object with a message. A script that is not a
    text is not executed. A missing script or answer makes its code fail, which scores 0.

    Args:
        call: the call.
        matched: whether the answer is compared with a text or a pattern; then an answer of another type is wrong. Checks get
            it as a text.
    """
    if call.error is not None:
        return Problem(call.error)
    if not isinstance(call.arguments, dict):
        return Problem(f"{type(call.arguments).__name__!r} object has no attribute 'values'")
    if call.name not in TOOL_NAMES:
        return Problem(_UNKNOWN)
    values = list(call.arguments.values())
    if not values:
        return Act("commit", None) if call.name == "finish_action" else Problem("a call without arguments", goes_on=False)
    if call.name == "bash_action":
        return Act("bash", values[0] if isinstance(values[0], str) else "")
    if values[0] is None or isinstance(values[0], str):
        return Act("commit", values[0])
    return Problem("the answer is not a text", goes_on=False) if matched else Act("commit", str(values[0]))


def opening_with_tools(record: OsRecord, published: bool, system_prompt: str | None) -> list[Message]:
    """The first messages, the first of them with the tools.

    Args:
        record: the problem.
        published: whether to use the published prompt; otherwise the description alone.
        system_prompt: the system message, in place of AgentBench's.
    """
    question = LEAD + record.description if published else record.description
    system_prompt = system_prompt or (_SYSTEM if published else None)
    first, *others = [*system_message(system_prompt), Message(role="user", content=question)]
    return [{**first, "tools": list(TOOLS)}, *others]


CALLS = Writer(
    command=lambda command: write_call("bash_action", {"script": command}),
    finish=write_call("finish_action", {"thought": "The task is done."}),
    answer=lambda answer: write_call("answer_action", {"answer": answer}),
    lines=True,
)
"""The replies of scripted solutions."""
