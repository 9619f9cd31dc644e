"""The protocol of OS interaction: the actions of replies, and the replies of scripted solutions."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from cycleqd_jax.tasks.base import Solution

__all__ = ["TERSE", "TEXT", "Act", "Writer", "command_and_end", "parse_act"]


@dataclasses.dataclass(frozen=True)
class Act:
    """The action of a reply.

    Attributes:
        kind: ``"bash"`` executes commands, ``"commit"`` ends the episode.
        content: the commands, or the answer (None for "finish").
    """

    kind: Literal["bash", "commit"]
    content: str | None


def parse_act(reply: str) -> Act | None:
    """The action of a reply, or None: the last valid ``Act:``, as in AgentBench.

    All closed ```` ```bash ```` blocks of a bash action are joined, separated by empty lines. An answer is the text between the
    first and the last parenthesis of its line.
    """
    for line in reversed(re.findall(r"Act:\s*+([^\n]+)", reply)):
        lowered = line[:6].lower()
        if lowered.startswith("bash"):
            return Act("bash", "\n\n".join(_bash_blocks(reply)))
        if lowered == "finish":
            return Act("commit", None)
        if lowered == "answer":
            left, right = line.find("("), line.rfind(")")
            if left >= 0 and right >= 0:
                return Act("commit", line[left + 1 : right])
    return None


def _bash_blocks(reply: str) -> Iterable[str]:
    opening, closing = "```bash\n", "\n```"
    position = reply.find(opening)
    while position >= 0:
        end = reply.find(closing, position + len(opening))
        if end < 0:
            return
        yield reply[position + len(opening) : end]
        position = reply.find(opening, end + len(closing))


class Writer(NamedTuple):
    """The replies of scripted solutions in one protocol.

    Attributes:
        command: the reply that executes a command.
        finish: the reply that ends the episode without an answer.
        answer: the reply that answers.
        lines: whether an answer may have several lines.
    """

    command: Callable[[str], str]
    finish: str
    answer: Callable[[str], str]
    lines: bool


def _text_writer(think: bool) -> Writer:
    def reply(thought: str, act: str) -> str:
        return f"Think: {thought}\n\nAct: {act}" if think else f"Act: {act}"

    return Writer(
        command=lambda command: reply("I run a command for this.", f"bash\n\n```bash\n{command}\n```"),
        finish=reply("The task is done.", "finish"),
        answer=lambda answer: reply("The output is the answer.", f"answer({answer})"),
        lines=False,
    )


TEXT = _text_writer(think=True)
"""The replies of the text protocol, with thoughts as in AgentBench's prompt."""

TERSE = _text_writer(think=False)
"""The replies of the text protocol without thoughts."""


def command_and_end(command: str, answers: bool, write: Writer) -> Solution:
    """A solution that executes a command and ends the episode.

    Args:
        command: the command.
        answers: whether the solution answers with the output; otherwise it finishes without an answer.
        write: writes its replies.
    """
    output = yield write.command(command)
    text = output.partition("The output of the OS:\n")[2].strip()
    if not answers:
        yield write.finish
    elif write.lines or "\n" not in text:
        yield write.answer(text)
