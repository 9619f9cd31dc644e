"""AgentBench's OS interaction: questions about, and changes to, a Linux system, solved with bash over several rounds."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from cycleqd_jax.sandbox import InfraError, Killed, Sandbox
from cycleqd_jax.tasks.agentbench import OS_LEAD, OS_PREFIX
from cycleqd_jax.tasks.base import RecordTask, Solution, clean, fixed, one_of, optional_text, system_message, whole
from cycleqd_jax.tasks.memo import Environment
from cycleqd_jax.tasks.os_interaction.folder import read_os_rows
from cycleqd_jax.tasks.records import Row
from cycleqd_jax.types import Message, Score

__all__ = ["Act", "OsInteraction", "OsRecord", "Script", "parse_act", "same_size"]

_LONGEST_OUTPUT = 800
_KEPT_OUTPUT = 780
_TRUNCATED = "\n[truncated because the output is too long]"
_EMPTY = "The output of the OS is empty."
# The kernel refuses single arguments of 128 KiB.
_LONGEST_ARGUMENT = 30_000
_LONGEST_CODE = 100_000
_SETUP_SECONDS = 60.0
# Checks are the benchmark's own scripts, some of which search the whole file system.
_CHECK_SECONDS = 30.0
# Chance, clocks and other processes.
_CHANCE = re.compile(
    r"random|shuf|uuid|mktemp|\$\$|\bps\b|\btop\b|pgrep|pidof|/proc|\bdate\b|\btime\b|uptime|sleep|\bnow\b|&\s*$|\bfree\b|\bdf\b|[acm]time"
    r"|\bmin\b|jobs|who\b|last\b|/dev/|/sys",
    re.IGNORECASE | re.MULTILINE,
)

Language = Literal["bash", "python"]
Builtin = Literal["integer-match", "string-match", "size-match"]


@dataclasses.dataclass(frozen=True)
class Script:
    """A program to be run in the box.

    Attributes:
        language: of the code.
        code: the program.
    """

    language: Language
    code: str

    def argv(self, *arguments: str) -> list[str]:
        """The command line, as AgentBench builds it."""
        if self.language == "bash":
            return ["bash", "-c", self.code, *(["--", *arguments] if arguments else [])]
        return ["python3", "-c", self.code, *arguments]


@dataclasses.dataclass(frozen=True)
class OsRecord:
    """One problem; either ``match`` or ``checks`` judges.

    Attributes:
        description: the problem, in words.
        init: run one after another before the episode, each on its own.
        start: typed into the agent's shell before the episode, or None.
        match: the answer, or None.
        regex: instead of it, a pattern the answer must contain, or None.
        strip: whether blanks around the answer are of no matter.
        checks: run in order on the answer and the outputs of those before; all must succeed.
        example: the gold command, or None.
    """

    description: str
    init: tuple[Script, ...]
    start: Script | None
    match: str | None
    regex: str | None
    strip: bool
    checks: tuple[Script | Builtin, ...]
    example: Script | None

    @property
    def asks(self) -> bool:
        """Whether an answer is compared with something (rather than the state of the system being checked)."""
        return self.match is not None or self.regex is not None or self.example in self.checks


class OsInteraction(RecordTask[OsRecord]):
    """Bash over several rounds, then an answer or "finish"; at most ``rounds`` replies.

    A reply that isn't in the format, or no end within the rounds, scores 0 as in AgentBench (CycleQD's evaluation still runs
    the checks then). AgentBench allows 8 rounds, the paper 5.

    Prompts: ``"agentbench"`` is the published protocol with its solved example, ``"brief"`` the description alone, with
    observations of the form of that example's.
    """

    def __init__(
        self,
        *,
        sandbox: Sandbox,
        name: str = "os_interaction",
        max_new_tokens: int = 512,
        train: str | Path | None = None,
        test: str | Path | None = None,
        data: str | Path | None = None,
        prompt: Literal["agentbench", "brief"] = "agentbench",
        system_prompt: str | None = None,
        rounds: int = 5,
        seconds: float | None = None,
        memo: bool = True,
        cache: str | Path | None = None,
        workers: int = 4,
    ) -> None:
        """Reads and checks all records (see :class:`~cycleqd_jax.tasks.base.RecordTask` for the options not listed here).

        Args:
            sandbox: where the systems live.
            name: as in configs, journals and tables.
            max_new_tokens: most tokens a reply may have.
            train: file with the records the search may see; flat records, or a file or the folder of AgentBench.
            test: likewise, with the records to report on.
            data: instead of both, one file or folder to be split evenly.
            prompt: how the problem is put.
            system_prompt: a system message before all others, in place of the chat template's own where it has one.
            rounds: most replies.
            seconds: time limit of one reply's commands, instead of the sandbox's; exceeding it ends the episode with score 0.
            memo: whether results are remembered.
            cache: folder where demonstrations are kept, or None.
            workers: threads that replay demonstrations.

        Raises:
            InputError: for an unknown option, a missing or empty file, or a malformed record.
        """
        self.prompt = one_of(name, "prompt", prompt, ("agentbench", "brief"))
        self.system_prompt = optional_text(name, "system_prompt", system_prompt)
        self.rounds = whole(name, "rounds", rounds)
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
        self.limits = dataclasses.replace(self.limits, cpu_s=max(self.limits.cpu_s, _CHECK_SECONDS))

    def options(self) -> dict[str, Any]:
        """What decides about prompts and verdicts."""
        return {
            "prompt": self.prompt,
            "system_prompt": self.system_prompt,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "limits": dataclasses.asdict(self.limits),
            "system": self.sandbox.system,
        }

    def read(self, path: str | Path) -> list[Row]:
        """Flat records, or AgentBench's own folder or files (see ``read_os_rows``)."""
        return read_os_rows(path)

    def parse(self, row: Row) -> OsRecord:
        """A record of AgentBench's OS tasks, standard or training."""
        example = _script(row, "example_script", row.get("example_script", list, None))
        init = [_script(row, "init_script", item) for item in row.get("init_script", list, None) or ()]
        match = row.get("match", dict, None)
        raw = row.get("check", list, None)
        if (match is None) == (raw is None) or (raw is not None and not raw):
            raise row.error("either match or a list of checks", "both or neither")
        answer, regex = (None, None) if match is None else (match.get("answer"), match.get("regex"))
        if match is not None and isinstance(answer, str) == isinstance(regex, str):
            raise row.error("an answer or a regex in field 'match'", json.dumps(match)[:80])
        if regex is not None:
            try:
                re.compile(regex)
            except re.error as error:
                raise row.error("a regular expression in field 'match'", str(error)) from error
        checks: list[Script | Builtin] = []
        for item in raw or ():
            check = example if item is None else _check(row, item)
            if check is None:
                raise row.error("an example_script, which a check of null stands for", "none")
            checks.append(check)
        for position, check in enumerate(checks):
            if isinstance(check, str) and position == 0:
                raise row.error("a script before a builtin check in field 'check'", f"{check!r} first")
        return OsRecord(
            description=row.text("description"),
            init=tuple(script for script in init if script is not None),
            start=_script(row, "start", row.get("start", list, None)),
            match=answer,
            regex=regex,
            strip=bool(match and match.get("strip", True)),
            checks=tuple(checks),
            example=example,
        )

    def stubs(self, record: OsRecord) -> Iterable[Solution]:
        """A player who finishes at once: the checks run on a system that nobody has touched, and on no answer."""
        yield fixed("Act: finish")

    def environment(self, record: OsRecord) -> Environment:
        """A fresh episode of a record."""
        return OsEpisode(self, record)

    def solutions(self, record: OsRecord) -> Iterable[Solution]:
        """The gold command, then its output as the answer, or "finish"; likewise typed as a process of its own.

        The latter is how checks run: some examples count processes, or read their input where they find no file. Where the
        benchmark gives no command but the answer, that.
        """
        if record.example is None and record.match is not None:
            yield fixed(f"Act: answer({record.match})")
        if record.example is None or record.example.language != "bash":
            return
        think, typed = self.prompt == "agentbench", record.example.code
        own = f"bash -c {shlex.quote(typed)} < /dev/null"
        for command, answers in ((typed, record.asks), (own, record.asks), (typed, not record.asks)):
            yield _command_and_end(command, answers, think)

    def _demonstrate(self, record: OsRecord) -> list[Message] | None:
        # An answer from nowhere would teach to guess.
        return None if record.example is None else super()._demonstrate(record)


class OsEpisode:
    """One problem in its own box."""

    def __init__(self, task: OsInteraction, record: OsRecord) -> None:
        scripts = [*record.init, record.start, record.example, *record.checks]
        self.repeatable = not any(isinstance(s, Script) and _CHANCE.search(s.code) for s in scripts)
        self._task = task
        self._record = record
        self._box: Any = None
        self._shell: Any = None
        self._rounds = 0

    def opening(self) -> list[Message]:
        """Protocol and problem."""
        system = system_message(self._task.system_prompt)
        if self._task.prompt == "agentbench":
            return [*system, *OS_PREFIX, {"role": "user", "content": OS_LEAD + self._record.description}]
        return [*system, {"role": "user", "content": self._record.description}]

    def start(self) -> list[Message]:
        """Makes the box, and in it what the problem is about."""
        record = self._record
        try:
            self._box = self._task.sandbox.box(limits=self._task.limits)
            self._shell = self._box.shell()
            if record.init:  # which may change what a shell reads at its start: as in AgentBench, the agent's is older
                self._shell.run("", timeout=_SETUP_SECONDS)
            done = [(script, self._box.exec(script.argv(), timeout=_SETUP_SECONDS)) for script in record.init]
            if record.start is not None:
                done.append((record.start, self._shell.run(record.start.code, timeout=_SETUP_SECONDS)))
        except Killed as killed:  # nothing of the model's has run yet
            raise InfraError(f"the system of {record.description[:80]!r} could not be made: {killed}") from killed
        for script, completed in done:
            if completed.timed_out:
                raise InfraError(f"a script that prepares a problem took too long: {script.code[:200]!r}")
        return self.opening()

    def step(self, reply: str) -> list[Message] | Score:
        """Runs commands, or judges."""
        act = parse_act(clean(reply))
        self._rounds += 1
        try:
            if act is None:
                return Score(0.0, "no action")
            if act.kind == "commit":
                return self._judge(act.content)
            if self._rounds >= self._task.rounds:
                return Score(0.0, "round limit")
            return self._run(act.content or "")
        except Killed as killed:
            self.repeatable = False
            return Score(0.0, f"killed: {killed}")

    def close(self) -> None:
        """Throws the box away."""
        box, self._box, self._shell = self._box, None, None
        if box is not None:
            box.close()

    def _run(self, code: str) -> list[Message] | Score:
        if len(code) > _LONGEST_CODE:
            return Score(0.0, "the command is too long")
        if _CHANCE.search(code):
            self.repeatable = False
        output = ""
        if code.strip():
            done = self._shell.run(code, timeout=self._task.seconds)
            if done.timed_out:
                self.repeatable = False
                return Score(0.0, "a command timed out")
            output = done.output.rstrip("\n")
        if len(output) > _LONGEST_OUTPUT:
            output = output[:_KEPT_OUTPUT] + _TRUNCATED
        return [{"role": "user", "content": self._observation(output)}]

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
                right = given == record.match
            else:
                right = given is not None and re.search(record.regex or "", given) is not None
            return _verdict(right, answer)
        arguments = [str(answer)]
        for number, check in enumerate(record.checks, start=1):
            if isinstance(check, str):
                if not _BUILTINS[check](arguments[0], arguments[1]):
                    return _verdict(False, answer)
                continue
            done = self._box.exec(check.argv(*arguments), timeout=_CHECK_SECONDS, trusted=True)
            if done.timed_out:
                self.repeatable = False
                return Score(0.0, f"check {number} timed out")
            if done.exit_code != 0:
                return _verdict(False, answer)
            arguments.append(done.output.replace("\0", "")[:_LONGEST_ARGUMENT])
        return _verdict(True, answer)


@dataclasses.dataclass(frozen=True)
class Act:
    """What a reply does.

    Attributes:
        kind: ``"bash"`` or ``"commit"``.
        content: the commands, or the answer (None for "finish").
    """

    kind: Literal["bash", "commit"]
    content: str | None


def parse_act(reply: str) -> Act | None:
    """What a reply does, or None: the last ``Act:`` that is one, as in AgentBench.

    All ```` ```bash ```` blocks of a reply that acts with bash are run together, separated by empty lines; an unclosed block
    isn't one. An answer is what stands between the first and the last parenthesis of its line.
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


def same_size(first: str, second: str) -> bool:
    """AgentBench's size-match: whole numbers with a unit; anything else (``4.0K``, ``10KB``) equals nothing."""
    try:
        return _size(first) == _size(second)
    except ValueError:
        return False


def _size(text: str) -> int:
    text = text.strip()
    for suffix, power in (("B", 0), ("Byte", 0), ("K", 1), ("M", 2), ("G", 3), ("T", 4), ("P", 5)):
        if text.endswith(suffix):
            return int(text[: -len(suffix)]) * 1024**power
    return int(text)


def _same_integer(first: str, second: str) -> bool:
    try:
        return int(first) == int(second)
    except ValueError:
        return False


def _same_text(first: str, second: str) -> bool:
    return _normal(first) == _normal(second)


def _normal(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


_BUILTINS = {"integer-match": _same_integer, "string-match": _same_text, "size-match": same_size}


def _bash_blocks(reply: str) -> Iterable[str]:
    opening, closing = "```bash\n", "\n```"
    position = reply.find(opening)
    while position >= 0:
        end = reply.find(closing, position + len(opening))
        if end < 0:
            return
        yield reply[position + len(opening) : end]
        position = reply.find(opening, end + len(closing))


def _verdict(right: bool, answer: str | None) -> Score:
    if right:
        return Score(1.0, "passed")
    return Score(0.0, "the check failed" if answer is None else f"wrong answer: {answer.strip()[:100]}")


def _script(row: Row, field: str, item: Any) -> Script | None:
    if item is None:
        return None
    if not isinstance(item, list) or len(item) != 2 or not all(isinstance(part, str) for part in item):
        raise row.error(f"[language, code] in field {field!r}", json.dumps(item)[:80])
    language, code = item
    if language not in ("bash", "python"):
        raise row.error(f"bash or python in field {field!r}", repr(language))
    return Script(language, code)


def _check(row: Row, item: Any) -> Script | Builtin | None:
    if isinstance(item, dict):
        builtin = item.get("builtin")
        if builtin not in _BUILTINS:
            raise row.error(f"one of {', '.join(_BUILTINS)} in field 'check'", json.dumps(item)[:80])
        return builtin
    return _script(row, "check", item)


def _command_and_end(command: str, answers: bool, think: bool) -> Solution:
    def said(thought: str, act: str) -> str:
        return f"Think: {thought}\n\nAct: {act}" if think else f"Act: {act}"

    output = yield said("I run a command for this.", f"bash\n\n```bash\n{command}\n```")
    text = output.partition("The output of the OS:\n")[2].strip()
    if not answers:
        yield said("The task is done.", "finish")
    elif "\n" not in text:  # an answer is one line
        yield said("The output is the answer.", f"answer({text})")
