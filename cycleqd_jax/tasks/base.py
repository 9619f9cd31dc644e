"""What the three tasks share: two halves of checked records, the memo of verdicts, and demonstrations from gold solutions."""

from __future__ import annotations

import abc
import dataclasses
import itertools
import json
import math
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

from cycleqd_jax.files import digest, write_text
from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.tasks.download import local_file
from cycleqd_jax.tasks.memo import Environment, Memo
from cycleqd_jax.tasks.records import Row, read_rows, split_evenly
from cycleqd_jax.types import Episode, InputError, Message, Score, Split

__all__ = ["RecordTask", "Solution", "clean", "fixed", "one_of", "optional_text", "play", "system_message", "whole"]

R = TypeVar("R")

Solution = Generator[str, str, None]
"""A scripted player: yields replies, is sent what each led to, and returns where it gives up."""

# Part of every fingerprint: to be raised with each change of prompts, parsing, verdicts or demonstrations.
_VERSION = 4


class RecordTask(abc.ABC, Generic[R]):
    """A task whose problems are the records of a benchmark's files. Implements the ``Task`` contract.

    Attributes:
        name: as in configs, journals and tables.
        max_new_tokens: most tokens a reply may have.
        limits: the sandbox's, with the time limits of this task.
        memo: verdicts seen before, or None.
        rows: the records as they stand in the files, per split.
        records: the records as parsed, per split, in the same order.
    """

    def __init__(
        self,
        *,
        sandbox: Sandbox,
        name: str,
        max_new_tokens: int = 512,
        train: str | Path | None = None,
        test: str | Path | None = None,
        data: str | Path | None = None,
        seconds: float | None = None,
        memo: bool = True,
        cache: str | Path | None = None,
        workers: int = 4,
    ) -> None:
        """Reads and checks all records.

        Args:
            sandbox: where replies are executed.
            name: as in configs, journals and tables.
            max_new_tokens: most tokens a reply may have.
            train: file with the records the search may see, or its address (:func:`~cycleqd_jax.tasks.download.local_file`).
            test: file with the records to report on.
            data: instead of both, one file to be split evenly (:func:`~cycleqd_jax.tasks.records.split_evenly`).
            seconds: time limit of one execution, instead of the sandbox's.
            memo: whether verdicts are remembered (:class:`~cycleqd_jax.tasks.memo.Memo`).
            cache: folder where demonstrations are kept, or None.
            workers: threads that replay demonstrations.

        Raises:
            InputError: for a missing or empty file or a malformed record, naming file and line, or for an option that isn't
                of its type, naming task and option.
        """
        for option, path in {"train": train, "test": test, "data": data, "cache": cache}.items():
            if not isinstance(path, str | Path | None):
                raise InputError(f"task {name!r}: expected option {option} to be a path or null, got {path!r}")
        if (data is None) != (train is not None and test is not None) or (data is not None and (train or test)):
            given = {"train": train, "test": test, "data": data}
            raise InputError(
                f"task {name!r}: expected either the two files train and test or the one file data, "
                f"got {', '.join(key for key, value in given.items() if value is not None) or 'none of them'}"
            )
        self.name = name
        self.max_new_tokens = whole(name, "max_new_tokens", max_new_tokens)
        self.memo = Memo() if _flag(name, "memo", memo) else None
        self.sandbox = sandbox
        self.limits = sandbox.limits
        if seconds is not None:
            seconds = _duration(name, "seconds", seconds)
            self.limits = dataclasses.replace(self.limits, wall_s=seconds, cpu_s=seconds)
        self._cache = None if cache is None else Path(cache)
        self._workers = whole(name, "workers", workers)
        if data is not None:
            halves = split_evenly(self.read(local_file(data)))
        else:
            assert train is not None
            assert test is not None
            halves = (self.read(local_file(train)), self.read(local_file(test)))
            _refuse_overlap(name, *halves)
        self.rows: dict[Split, Sequence[Row]] = {"train": halves[0], "test": halves[1]}
        self.records: dict[Split, list[R]] = {split: [self._parsed(r) for r in rows] for split, rows in self.rows.items()}

    def read(self, path: str | Path) -> list[Row]:
        """The records of a file; a task whose benchmark has a layout of its own reads that too."""
        return read_rows(path)

    def _parsed(self, row: Row) -> R:
        try:
            return self.parse(row)
        except InputError:
            raise
        except Exception as error:  # of a task of one's own
            raise row.error("a record as the task has them", f"{type(error).__name__}: {error}") from error

    @abc.abstractmethod
    def parse(self, row: Row) -> R:
        """The record in a row; raises ``InputError`` where it is malformed."""

    @abc.abstractmethod
    def environment(self, record: R) -> Environment:
        """A fresh episode of a record."""

    @abc.abstractmethod
    def solutions(self, record: R) -> Iterable[Solution]:
        """Ways to solve a record, best first, for demonstrations."""

    def stubs(self, record: R) -> Iterable[Solution]:
        """Players that do nothing about a record; none may score. By default, one that says nothing."""
        yield fixed("")

    def measures(self, scores: Sequence[Score]) -> dict[str, float]:
        """Figures besides the mean that the benchmark reports, by name; scores are those of this task's episodes."""
        return {}

    @abc.abstractmethod
    def options(self) -> dict[str, Any]:
        """Everything but the record that decides about conversations and verdicts, the limits too, for fingerprints."""

    def close(self) -> None:
        """Frees what the task holds beside its episodes; safe to call twice."""

    def episodes(self, split: Split) -> Sequence[Episode]:
        """A fresh episode per problem of the split, in the order of ``rows``."""
        return [self._episode(row, record) for row, record in self._of(split)]

    def fingerprint(self, split: Split) -> str:
        """A digest of the records of the split and of all that decides about their conversations and verdicts."""
        return digest([self._fingerprint(), [row.fingerprint for row in self.rows[split]]])

    def demonstrations(self, split: Split) -> list[list[Message]]:
        """Solved conversations of the split: gold solutions replayed through the episodes, so that observations are real.

        Problems without a solution that scores 1 are left out. With a ``cache`` folder the result is kept there under a
        digest of records and options.

        Raises:
            InfraError: where the sandbox is broken.
        """
        file = None if self._cache is None else self._cache / f"{self.name}-{split}-{self.fingerprint(split)[:16]}.json"
        if file is not None and file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
        with ThreadPoolExecutor(self._workers) as pool:
            try:
                solved = list(pool.map(self._demonstrate, self.records[split]))
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
                messages, score = play(environment, solution)
            finally:
                environment.close()
            if score is not None and score.value == 1.0:
                return messages
        return None

    def _of(self, split: Split) -> Iterable[tuple[Row, R]]:
        return zip(self.rows[split], self.records[split], strict=True)

    def _episode(self, row: Row, record: R) -> Episode:
        if self.memo is None:
            return self.environment(record)
        problem = digest([self._fingerprint(), row.fingerprint])
        return self.memo.wrap(problem, lambda: self.environment(record))

    def _fingerprint(self) -> str:
        return digest([_VERSION, type(self).__name__, self.options()])


def play(episode: Episode, solution: Solution) -> tuple[list[Message], Score | None]:
    """Plays an episode with a scripted player; the caller closes the episode.

    Returns:
        The conversation, and the score (None where the player gave up).
    """
    messages = list(episode.start())
    reply = next(solution, None)
    while reply is not None:
        messages.append({"role": "assistant", "content": reply})
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


def fixed(*replies: str) -> Solution:
    """A player who says the same whatever happens: the replies in turn, the last one to the end."""
    for i in itertools.count():
        yield replies[min(i, len(replies) - 1)]


def clean(reply: str) -> str:
    """A reply that every pipe takes: lone surrogates replaced, NUL characters dropped."""
    return reply.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


def system_message(prompt: str | None) -> list[Message]:
    """The message that a conversation begins with where there is a system prompt."""
    return [] if prompt is None else [{"role": "system", "content": prompt}]


def one_of(task: str, option: str, value: Any, allowed: tuple[str, ...]) -> Any:
    """``value``, where it is allowed.

    Raises:
        InputError: naming the option and what it may be.
    """
    if value not in allowed:
        raise InputError(f"task {task!r}: expected option {option} to be one of {', '.join(allowed)}, got {value!r}")
    return value


def whole(task: str, option: str, value: Any) -> int:
    """``value``, where it is a whole number of at least 1.

    Raises:
        InputError: naming task and option.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"task {task!r}: expected option {option} to be a whole number of at least 1, got {value!r}")
    return value


def optional_text(task: str, option: str, value: Any) -> str | None:
    """``value``, where it is a text that is more than blanks, or None.

    Raises:
        InputError: naming task and option.
    """
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise InputError(f"task {task!r}: expected option {option} to be a text or null, got {value!r}")
    return value


def _flag(task: str, option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"task {task!r}: expected option {option} to be true or false, got {value!r}")
    return value


def _duration(task: str, option: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise InputError(f"task {task!r}: expected option {option} to be a finite number above 0 or null, got {value!r}")
    return float(value)


def _refuse_overlap(name: str, train: Sequence[Row], test: Sequence[Row]) -> None:
    seen = {key: row for row in train for key in (row.id, row.fingerprint)}
    for row in test:
        other = seen.get(row.fingerprint) or seen.get(row.id)
        if other is not None and (other.fingerprint == row.fingerprint or _much_in_common(row, other)):
            raise InputError(
                f"task {name!r}: expected different records for train and test, got the same one at "
                f"{other.where} and {row.where}; give two halves of the data"
            )


def _much_in_common(row: Row, other: Row) -> bool:
    """Whether records of one id are one problem, as of MBPP and its sanitised part: ids that are mere numbers prove nothing."""
    equal = (json.dumps(value) for key, value in row.fields.items() if other.fields.get(key) == value)
    return any(len(text) > 30 for text in equal)
