"""AgentBench's OS interaction: questions about a Linux system and changes to it, solved with bash over several rounds."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import regex

from cycleqd_jax.sandbox import Box, DockerBox, DockerShell, Killed, Shell
from cycleqd_jax.tasks.base import RecordTask, Solution, clean_text, fixed_replies, system_message, unprepared
from cycleqd_jax.tasks.memo import Environment
from cycleqd_jax.tasks.options import TaskOptions, option_error
from cycleqd_jax.tasks.os_interaction.checks import BUILTINS
from cycleqd_jax.tasks.os_interaction.folder import read_os_rows
from cycleqd_jax.tasks.os_interaction.prompts import LEAD, PREFIX
from cycleqd_jax.tasks.os_interaction.records import OsRecord, Script, parse_record
from cycleqd_jax.tasks.os_interaction.replies import TERSE, TEXT, Act, Writer, command_and_end, parse_act
from cycleqd_jax.tasks.os_interaction.tools import (
    CALLS,
    NO_CALL,
    TOOL_NAMES,
    TOOL_ROUNDS,
    Problem,
    act_of,
    opening_with_tools,
)
from cycleqd_jax.tasks.records import Row
from cycleqd_jax.tool_calls import read_calls, tool_message
from cycleqd_jax.types import Message, Score

__all__ = ["OsEpisode", "OsInteraction"]

_ROUNDS = {"text": 5, "tools": TOOL_ROUNDS}
_LONGEST_OUTPUT = 800
_KEPT_OUTPUT = 780
_TRUNCATED = "\n[truncated because the output is too long]"
_EMPTY = "The output of the OS is empty."
# The kernel refuses single arguments of 128 KiB.
_LONGEST_ARGUMENT = 30_000
_LONGEST_CODE = 100_000
_SETUP_SECONDS = 60.0
# Checks are scripts of the benchmark, some of which search the whole file system.
_CHECK_SECONDS = 30.0
_MATCH_SECONDS = 2.0
# Results that depend on random numbers, clocks or other processes.
_VARYING = re.compile(
    r"random|shuf|uuid|mktemp|\$\$|\bps\b|\btop\b|pgrep|pidof|/proc|\bdate\b|\btime\b|uptime|sleep|\bnow\b|&\s*$|\bfree\b|\bdf\b|[acm]time"
    r"|\bmin\b|jobs|who\b|last\b|/dev/|/sys",
    re.IGNORECASE | re.MULTILINE,
)


class OsInteraction(RecordTask[OsRecord]):
    """Bash over several rounds, then an answer or "finish".

    A reply in another format scores 0, as does an episode that does not end within ``rounds`` replies. AgentBench does the
    same; CycleQD's evaluation code still runs the checks then. AgentBench allows 8 rounds, the paper 5. With ``protocol``
    "tools", replies call tools instead (:mod:`cycleqd_jax.tasks.os_interaction.tools`), and one without a call gets a message.
    """

    def __init__(
        self,
        options: TaskOptions,
        *,
        prompt: Literal["agentbench", "brief"] = "agentbench",
        system_prompt: str | None = None,
        rounds: int | None = None,
        protocol: Literal["text", "tools"] = "text",
    ) -> None:
        """Reads and checks all records.

        Args:
            options: the options that all tasks share. ``train``, ``test`` and ``data`` may name files of flat records, or a
                file or the folder of AgentBench. ``seconds`` is how long the commands of one reply may take; after
                that, the model sees what they have printed so far, and they go on, as in AgentBench.
            prompt: ``"agentbench"`` is the published prompt with its solved example, ``"brief"`` the description alone, with
                observations in the format of that example.
            system_prompt: a system message before all others, in place of the default one of the chat template, and of
                AgentBench's with ``protocol`` "tools".
            rounds: largest number of replies; by default 5 in the text protocol, and 8 with tools.
            protocol: ``"text"`` is the protocol of AgentBench's paper, ``"tools"`` that of its function-calling version.

        Raises:
            InputError: a file is missing or empty, or a record is malformed.
        """
        if system_prompt is not None and not system_prompt.strip():
            raise option_error(options.name, "system_prompt", "a text or null", system_prompt)
        self.prompt = prompt
        self.system_prompt = system_prompt
        self.rounds = _ROUNDS[protocol] if rounds is None else rounds
        self.protocol = protocol
        super().__init__(options)
        self.limits = dataclasses.replace(self.limits, cpu_s=max(self.limits.cpu_s, _CHECK_SECONDS))

    @classmethod
    def read(cls, path: str | Path) -> list[Row]:
        """The flat records of a file, or of AgentBench's own folder or files (``read_os_rows``)."""
        return read_os_rows(path)

    @classmethod
    def max_replies(cls, *, rounds: int | None = None, protocol: Literal["text", "tools"] = "text", **own: Any) -> int:
        """Largest number of replies in one episode."""
        return _ROUNDS[protocol] if rounds is None else rounds

    def settings(self) -> dict[str, Any]:
        """Everything besides the records that affects prompts or verdicts."""
        return {
            "prompt": self.prompt,
            "system_prompt": self.system_prompt,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "limits": dataclasses.asdict(self.limits),
            "system": self.sandbox.system,
            **({"protocol": self.protocol} if self.protocol != "text" else {}),
        }

    def parse(self, row: Row) -> OsRecord:
        """Parses a flat record."""
        return parse_record(row)

    def stubs(self, record: OsRecord) -> Iterable[Solution]:
        """A solution that finishes at once: the checks run on an unchanged system, without an answer."""
        yield fixed_replies("Act: finish" if self.protocol == "text" else CALLS.finish)

    def environment(self, record: OsRecord) -> Environment:
        """A fresh episode of a record."""
        return OsEpisode(self, record) if self.protocol == "text" else OsToolEpisode(self, record)

    def solutions(self, record: OsRecord) -> Iterable[Solution]:
        """The gold command followed by its output as the answer or by "finish", in the shell and in a process of its own.

        Checks run in processes of their own, and some examples count processes or read standard input. If the record has no
        gold command but an answer, the solution is the answer.
        """
        write = self._writer()
        if record.example is None and record.match is not None:
            yield fixed_replies(write.answer(record.match))
        if record.example is None or record.example.language != "bash":
            return
        typed = record.example.code
        own = f"bash -c {shlex.quote(typed)} < /dev/null"
        for command, answers in ((typed, record.asks), (own, record.asks), (typed, not record.asks)):
            yield command_and_end(command, answers, write)

    def _writer(self) -> Writer:
        if self.protocol == "tools":
            return CALLS
        return TEXT if self.prompt == "agentbench" else TERSE

    def _demonstrate(self, record: OsRecord) -> list[Message] | None:
        # An answer without a command would teach a model to guess.
        return None if record.example is None else super()._demonstrate(record)


class OsEpisode:
    """One problem in a sandbox of its own."""

    def __init__(self, task: OsInteraction, record: OsRecord) -> None:
        scripts = [*record.init, record.start, record.example, *record.checks]
        self.repeatable = not any(isinstance(s, Script) and _VARYING.search(s.code) for s in scripts)
        self._task = task
        self._record = record
        self._box: Box | DockerBox | None = None
        self._shell: Shell | DockerShell | None = None
        self._rounds = 0
        self._failure: Score | None = None

    def opening(self) -> list[Message]:
        """The prompt and the problem."""
        system = system_message(self._task.system_prompt)
        if self._task.prompt == "agentbench":
            return [*system, *PREFIX, {"role": "user", "content": LEAD + self._record.description}]
        return [*system, {"role": "user", "content": self._record.description}]

    def start(self) -> list[Message]:
        """Starts the sandbox and runs the scripts that prepare the problem.

        If a script fails, the record is at fault: every reply then scores 0, with a reason that names the record.
        """
        self._box = self._task.sandbox.box(limits=self._task.limits)
        self._shell = self._box.shell()
        try:
            self._prepare()
        except Killed as killed:
            self._fail(str(killed))
        return self.opening()

    def _prepare(self) -> None:
        """Runs the scripts that prepare the problem, up to the first one that takes too long."""
        record = self._record
        assert self._box is not None
        assert self._shell is not None
        if record.init:  # init may change the shell's start-up files; as in AgentBench, the agent's shell starts before
            self._shell.run("", timeout=_SETUP_SECONDS)
        for script in record.init:
            if self._box.exec(script.argv(), timeout=_SETUP_SECONDS).timed_out:
                return self._fail(f"{script.code[:200]!r} took longer than {_SETUP_SECONDS:g} s")
        if record.start is not None and self._shell.run(record.start.code, timeout=_SETUP_SECONDS).timed_out:
            return self._fail(f"{record.start.code[:200]!r} took longer than {_SETUP_SECONDS:g} s")
        self._box.seal()  # what the reply changes is measured from here

    def _fail(self, reason: str) -> None:
        self.repeatable = False  # on another machine, the preparation may succeed
        self._failure = unprepared(self._record.id, reason)

    def step(self, reply: str) -> list[Message] | Score:
        """Executes commands, or ends the episode with a score."""
        if self._failure is not None:
            return self._failure
        self._rounds += 1
        try:
            return self._act(reply)
        except Killed as killed:
            self.repeatable = False
            return Score(0.0, f"killed: {killed}")

    def _act(self, reply: str) -> list[Message] | Score:
        act = parse_act(clean_text(reply))
        if act is None:
            return Score(0.0, "no action")
        if act.kind == "commit":
            return self._judge(act.content)
        if self._rounds >= self._task.rounds:
            return Score(0.0, "round limit")
        observation = self._run(act.content or "")
        return observation if isinstance(observation, Score) else [{"role": "user", "content": observation}]

    def close(self) -> None:
        """Closes the sandbox."""
        box, self._box, self._shell = self._box, None, None
        if box is not None:
            box.close()

    def _run(self, code: str) -> str | Score:
        """The observation after commands."""
        if self._shell is None:
            return Score(0.0, "the episode is closed")
        if len(code) > _LONGEST_CODE:
            return Score(0.0, "the command is too long")
        if _VARYING.search(code):
            self.repeatable = False
        output = ""
        if code.strip():
            done = self._shell.run(code, timeout=self._task.seconds)
            if done.timed_out:  # as in AgentBench, the model sees what was printed so far, and the command goes on
                self.repeatable = False
            output = done.output.rstrip("\n")
        if len(output) > _LONGEST_OUTPUT:
            output = output[:_KEPT_OUTPUT] + _TRUNCATED
        return self._observation(output)

    def _observation(self, output: str) -> str:
        if self._task.prompt == "brief":
            return f"The output of the OS:\n{output}"
        return f"The output of the OS:\n\n{output}" if output else _EMPTY

    def _judge(self, answer: str | None) -> Score:
        record = self._record
        if answer is not None and len(answer) > _LONGEST_ARGUMENT:
            return Score(0.0, "the answer is too long")
        if record.match is not None or record.regex is not None:
            given = answer.strip() if answer is not None and record.strip else answer
            if record.match is not None:
                return _verdict(given == record.match, answer)
            try:  # a pattern such as (a+)+$ takes exponential time on some answers
                found = None if given is None else regex.search(record.regex or "", given, timeout=_MATCH_SECONDS)
            except TimeoutError:
                self.repeatable = False
                return Score(0.0, "the search for the regex took too long")
            return _verdict(found is not None, answer)
        arguments, allowed = [str(answer)], None
        for number, check in enumerate(record.checks, start=1):
            if isinstance(check, str):
                if not BUILTINS[check](arguments[0], arguments[1]):
                    return _verdict(False, answer)
                continue
            if self._box is None:
                return Score(0.0, "the episode is closed")
            if allowed is None:
                allowed = self._demanded(self._box.changes())
            done = self._box.exec(check.argv(*arguments), timeout=_CHECK_SECONDS, trusted=True, allowed=allowed)
            if done.timed_out:
                self.repeatable = False
                return Score(0.0, f"check {number} timed out")
            if done.exit_code != 0:
                return _verdict(False, answer)
            arguments.append(done.output.replace("\0", "")[:_LONGEST_ARGUMENT])
        return _verdict(True, answer)

    def _demanded(self, changes: Mapping[str, str]) -> dict[str, str]:
        """Those changes to programs and settings that the problem demands.

        These are the changes of the gold command in a box of its own, and new files whose path the problem names.
        """
        if not changes:
            return {}
        record = self._record
        texts = [record.description, *(script.code for script in record.checks if isinstance(script, Script))]
        named = {path: kind for path, kind in changes.items() if kind == "new" and any(_names(path, text) for text in texts)}
        if record.example is None or len(named) == len(changes):
            return named
        gold = OsEpisode(self._task, record)
        try:
            gold.start()
            if gold._box is None or gold._failure is not None:
                return named
            gold._box.exec(record.example.argv(), timeout=_CHECK_SECONDS)
            return named | gold._box.changes()
        except Killed:
            return named
        finally:
            gold.close()


class OsToolEpisode(OsEpisode):
    """One problem in which replies call tools, as in AgentBench's function-calling version.

    Only the first call of a reply counts. A reply without a call gets a message.
    """

    def __init__(self, task: OsInteraction, record: OsRecord) -> None:
        super().__init__(task, record)
        self._calls = 0

    def opening(self) -> list[Message]:
        """The prompt and the problem, with the tools."""
        return opening_with_tools(self._record, self._task.prompt == "agentbench", self._task.system_prompt)

    def _act(self, reply: str) -> list[Message] | Score:
        _, calls = read_calls(reply, TOOL_NAMES)
        number, self._calls = self._calls + 1, self._calls + len(calls)
        matched = self._record.match is not None or self._record.regex is not None
        act = act_of(calls[0], matched=matched) if calls else Problem(NO_CALL)
        if isinstance(act, Problem) and not act.goes_on:
            return Score(0.0, act.text)
        if isinstance(act, Act) and act.kind == "commit":
            return self._judge(None if act.content is None else clean_text(act.content))
        if self._rounds >= self._task.rounds:
            return Score(0.0, "round limit")
        observation = act.text if isinstance(act, Problem) else self._run(clean_text(act.content or ""))
        if isinstance(observation, Score):
            return observation
        return [tool_message(number, calls[0].name, observation) if calls else {"role": "user", "content": observation}]


def _names(path: str, text: str) -> bool:
    return re.search(rf"(?<![\w./-]){re.escape(path)}(?![\w/-])", text) is not None


def _verdict(right: bool, answer: str | None) -> Score:
    if right:
        return Score(1.0, "passed")
    return Score(0.0, "the check failed" if answer is None else f"wrong answer: {answer.strip()[:100]}")
