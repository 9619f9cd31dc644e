"""The base class of all tasks: records by split, cached verdicts, and demonstrations from gold solutions."""

from __future__ import annotations

import abc
import dataclasses
import itertools
import json
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from cycleqd_jax.files import digest, write_text
from cycleqd_jax.tasks.download import local_file
from cycleqd_jax.tasks.memo import Environment, Memo
from cycleqd_jax.tasks.options import TaskOptions
from cycleqd_jax.tasks.records import Row, by_digest, read_rows, split_evenly
from cycleqd_jax.tool_calls import reply_message
from cycleqd_jax.types import Episode, InputError, Message, Score, Split

__all__ = [
    "RecordTask",
    "Solution",
    "clean_text",
    "fixed_replies",
    "is_unprepared",
    "play_solution",
    "refuse_overlap",
    "system_message",
    "unprepared",
]

R = TypeVar("R")

_CORRECT_IT = "; correct or remove the record"

Solution = Generator[str, str, None]
"""A scripted solution. It yields replies and receives the message that follows each reply. It returns early if it cannot solve
the problem."""

# Part of every fingerprint. Raise it with each change of prompts, parsing, verdicts or demonstrations.
_VERSION = 12


class RecordTask(abc.ABC, Generic[R]):
    r"""A task whose problems are the records of files. Implements the ``Task`` contract.

    A subclass takes ``options`` and its own options as keyword arguments of ``__init__``, and passes ``options`` on.

    Attributes:
        name: name of the task in configs, journals and tables.
        max_new_tokens: largest number of tokens of a reply.
        sandbox: executes the replies.
        limits: the limits of the sandbox, with the time limit of this task.
        seconds: time limit of one execution.
        memo: the cache of verdicts, or None.
        pool: the records of the train file or half, before parsing and before any are held out.
        rows: the records before parsing, per split. There are no validation records before :meth:`hold_out`.
        records: the parsed records, per split, in the same order.

    >>> import json, pathlib
    >>> from cycleqd_jax.sandbox import Sandbox
    >>> from cycleqd_jax.tasks import RecordTask, TaskOptions, fixed_replies
    >>> class Capitals(RecordTask):
    ...     def parse(self, row):
    ...         return row.text("country"), row.text("capital")
    ...     def environment(self, record):
    ...         raise NotImplementedError("see the tutorial")
    ...     def solutions(self, record):
    ...         yield fixed_replies(record[1])
    ...     def settings(self):
    ...         return {}
    >>> records = [{"id": 1, "country": "France", "capital": "Paris"}, {"id": 2, "country": "Peru", "capital": "Lima"}]
    >>> text = "\n".join(map(json.dumps, records))
    >>> size = pathlib.Path("capitals.jsonl").write_text(text)
    >>> with Sandbox(workers=1) as sandbox:
    ...     task = Capitals(TaskOptions(sandbox, "capitals", data="capitals.jsonl"))
    >>> {split: len(found) for split, found in task.records.items()}
    {'train': 1, 'validation': 0, 'test': 1}
    """

    default_seconds: ClassVar[float | None] = None
    """Time limit of one execution if ``options.seconds`` is None; None takes the limit of the sandbox."""

    def __init__(self, options: TaskOptions) -> None:
        """Reads and checks all records.

        Args:
            options: the options that all tasks share.

        Raises:
            InputError: a file is missing or empty, or a record is malformed; the message names the file and the line.
        """
        self.name = options.name
        self.max_new_tokens = options.max_new_tokens
        self.memo = Memo() if options.memo else None
        self.sandbox = options.sandbox
        self.limits = options.sandbox.limits
        seconds = self.default_seconds if options.seconds is None else options.seconds
        if seconds is not None:
            self.limits = dataclasses.replace(self.limits, wall_s=seconds, cpu_s=seconds)
        self.seconds = self.limits.wall_s
        self._cache = None if options.cache is None else Path(options.cache)
        self._workers = options.workers
        if options.data is not None:
            halves = split_evenly(self.read(local_file(options.data)))
        else:
            assert options.train is not None
            assert options.test is not None
            halves = (self.read(local_file(options.train)), self.read(local_file(options.test)))
            refuse_overlap(options.name, *halves, "train and test")
        self.pool: Sequence[Row] = halves[0]
        self.rows: dict[Split, Sequence[Row]] = {"train": halves[0], "validation": [], "test": halves[1]}
        self.records: dict[Split, list[R]] = {split: [self.parse_row(r) for r in rows] for split, rows in self.rows.items()}

    @classmethod
    def read(cls, path: str | Path) -> list[Row]:
        """The records of a local file; override it for a benchmark that has another file format.

        Raises:
            InputError: there is no such file, or it is malformed.
        """
        return read_rows(path)

    @classmethod
    def count(cls, path: str | Path) -> int:
        """The number of records in a file; needs neither an instance nor a sandbox.

        Args:
            path: path of the file, or its URL.

        Raises:
            InputError: there is no such file, or it is malformed.
        """
        return len(cls.read(local_file(path)))

    @classmethod
    def max_replies(cls, **own: Any) -> int:
        """Largest number of replies in one episode.

        Args:
            own: the task's own options.
        """
        return 1

    def parse_row(self, row: Row) -> R:
        """Parses a row; whatever :meth:`parse` raises becomes an error that names the record.

        Raises:
            InputError: the record is malformed.
        """
        try:
            return self.parse(row)
        except InputError:
            raise
        except Exception as error:  # a task outside this package may raise anything
            raise row.error("a record in the format of the task", f"{type(error).__name__}: {error}") from error

    @abc.abstractmethod
    def parse(self, row: Row) -> R:
        """Parses a row; raises ``InputError`` if it is malformed."""

    @abc.abstractmethod
    def environment(self, record: R) -> Environment:
        """A fresh episode of a record."""

    @abc.abstractmethod
    def solutions(self, record: R) -> Iterable[Solution]:
        """Solutions of a record, best first, for demonstrations."""

    def shuffle(self) -> None:
        """Orders the train records by the digests of their ids, as the halves of a split file are."""
        order = {row.where: i for i, row in enumerate(by_digest(self.pool))}
        pairs = sorted(self._pairs("train"), key=lambda pair: order[pair[0].where])
        self.pool = [row for row, _ in pairs]
        self.rows |= {"train": self.pool}
        self.records |= {"train": [record for _, record in pairs]}

    def hold_out(self, rows: Sequence[Row]) -> None:
        """Makes records the validation records, and removes them from the train records.

        Args:
            rows: records of the train file or half, or of another file.

        Raises:
            InputError: a record of another file is a train or a test record too, or is malformed.
        """
        held = {row.where for row in rows}
        kept = [(row, record) for row, record in self._pairs("train") if row.where not in held]
        train = [row for row, _ in kept]
        refuse_overlap(self.name, train, rows, "train and validation")
        refuse_overlap(self.name, rows, self.rows["test"], "validation and test")
        self.rows |= {"train": train, "validation": list(rows)}
        self.records |= {"train": [record for _, record in kept], "validation": [self.parse_row(row) for row in rows]}

    def stubs(self, record: R) -> Iterable[Solution]:
        """Solutions that do nothing; none of them may score. By default, one that yields empty replies."""
        yield fixed_replies("")

    def measures(self, scores: Sequence[Score]) -> dict[str, float]:
        """Figures besides the mean score that the benchmark reports, by name, from the scores of this task's episodes."""
        return {}

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything besides the records that affects conversations or verdicts, the limits included; for fingerprints."""

    def close(self) -> None:
        """Releases the resources that the task holds besides its episodes; safe to call twice."""

    def episodes(self, split: Split) -> Sequence[Episode]:
        """A fresh episode for every problem of the split, in the order of ``rows``."""
        return [self._episode(row, record) for row, record in self._pairs(split)]

    def problems(self, split: Split | None) -> Sequence[str]:
        """The fingerprint of every record; None is the train file or half, whose records train and validation share."""
        return [row.fingerprint for row in (self.pool if split is None else self.rows[split])]

    def test_on_all(self, most: int | None) -> None:
        """Makes all records test records, in the order of the digests of their ids.

        Args:
            most: how many are kept; None keeps all.
        """
        records = {row.where: record for split in ("train", "test") for row, record in self._pairs(split)}
        rows = by_digest([*self.rows["train"], *self.rows["test"]])[:most]
        self.pool = []
        self.rows = {"train": [], "validation": [], "test": rows}
        self.records = {"train": [], "validation": [], "test": [records[row.where] for row in rows]}

    def fingerprint(self, split: Split) -> str:
        """A digest of the records of the split and of all settings that affect conversations or verdicts."""
        return digest([self._fingerprint(), [row.fingerprint for row in self.rows[split]]])

    def demonstrations(self, split: Split, start: int = 0) -> list[list[Message]]:
        """Solved conversations of the split. Gold solutions are replayed in the episodes, so the observations are real.

        Problems without a solution that scores 1 are left out. With a ``cache`` folder the conversations are stored there, in a
        file named by the fingerprint.

        Args:
            split: the problems.
            start: how many of the first problems are left out.

        Raises:
            InfraError: the sandbox is broken.
        """
        part = f"{split}-{start}" if start else split
        file = None if self._cache is None else self._cache / f"{self.name}-{part}-{self.fingerprint(split)[:16]}.json"
        if file is not None and file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
        with ThreadPoolExecutor(self._workers) as pool:
            try:
                solved = list(pool.map(self._demonstrate, self.records[split][start:]))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        conversations = [messages for messages in solved if messages is not None]
        if file is not None:
            write_text(file, json.dumps(conversations, ensure_ascii=False))
        return conversations

    def _demonstrate(self, record: R) -> list[Message] | None:
        for solution in self.solutions(record):
            environment = self.environment(record)
            try:
                messages, score = play_solution(environment, solution)
            finally:
                environment.close()
            if score is not None and score.value == 1.0:
                return messages
        return None

    def _pairs(self, split: Split) -> Iterable[tuple[Row, R]]:
        return zip(self.rows[split], self.records[split], strict=True)

    def _episode(self, row: Row, record: R) -> Episode:
        if self.memo is None:
            return self.environment(record)
        problem = digest([self._fingerprint(), row.fingerprint])
        return self.memo.wrap(problem, lambda: self.environment(record))

    def _fingerprint(self) -> str:
        return digest([_VERSION, type(self).__name__, self.settings()])


def play_solution(episode: Episode, solution: Solution) -> tuple[list[Message], Score | None]:
    """Plays an episode with a scripted solution; the caller closes the episode.

    Returns:
        The conversation, and the score. The score is None if the solution returned early.
    """
    messages = list(episode.start())
    reply = next(solution, None)
    while reply is not None:
        messages.append(reply_message(messages, reply))
        result = episode.step(reply)
        if isinstance(result, Score):
            solution.close()
            return messages, result
        messages.extend(result)
        try:
            reply = solution.send(messages[-1]["content"])
        except StopIteration:
            reply = None
    return messages, None


def fixed_replies(*replies: str) -> Solution:
    """A solution that yields the given replies in turn, whatever the observations, and repeats the last one forever."""
    for i in itertools.count():
        yield replies[min(i, len(replies) - 1)]


def clean_text(reply: str) -> str:
    """A reply that can be encoded and passed to a process: lone surrogates are replaced, NUL characters removed."""
    return reply.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


def unprepared(record_id: str, reason: str) -> Score:
    """The score of all replies to a record whose own preparation fails. This is a fault of the data, not an ``InfraError``."""
    return Score(0.0, f"the record {record_id} can't be prepared: {reason}{_CORRECT_IT}")


def is_unprepared(score: Score) -> bool:
    """Whether a score is one of :func:`unprepared`."""
    return score.reason.startswith("the record ") and score.reason.endswith(_CORRECT_IT)


def system_message(prompt: str | None) -> list[Message]:
    """The system message as a list; an empty list without a system prompt."""
    return [] if prompt is None else [{"role": "system", "content": prompt}]


def refuse_overlap(name: str, rows: Sequence[Row], others: Sequence[Row], splits: str) -> None:
    """Raises where two splits have a problem in common, under the same id or another.

    Args:
        name: name of the task.
        rows: the records of one split.
        others: the records of the other split.
        splits: the names of both, for the message.

    Raises:
        InputError: naming the record in both files.
    """
    seen = {key: row for row in rows for key in (row.id, row.problem)}
    for row in others:
        other = seen.get(row.problem) or seen.get(row.id)
        if other is not None and (other.problem == row.problem or _shares_text(row, other)):
            raise InputError(
                f"expected different records for {splits}, got the same one in {other.where} and {row.where} of task "
                f"{name!r}; give files without common or repeated records"
            )


def _shares_text(row: Row, other: Row) -> bool:
    """Whether two records with one id are the same problem: equal ids alone may be mere line numbers."""
    equal = (json.dumps(value) for key, value in row.fields.items() if other.fields.get(key) == value)
    return any(len(text) > 30 for text in equal)
