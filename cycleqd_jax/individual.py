"""The journal's record of one individual. The search writes it to ``history.jsonl``, and the report reads it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cycleqd_jax.schema import check_schema
from cycleqd_jax.types import InputError

__all__ = ["Individual", "expected_individuals", "read_lines"]

_CHECKSUM = re.compile(rb',"checksum":"([0-9a-f]{16})"')
"""Within a line: the first digits of the SHA-256 of what is before it. No string in JSON has these characters."""

_FIRST = b'{"id":'
"""The first bytes of a line."""

_COSTS = ("seconds", "tokens")
"""Fields that follow the checksum: they differ between equal runs."""


def _checksum(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:16]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name that comes twice in an object")
    return found


def expected_individuals(items: int, used: Sequence[int], experts: int, batch_size: int) -> int:
    """How many individuals a search with racing evaluates within a limit of problems, if no further child stops early.

    Args:
        items: the most problems, those of the experts included.
        used: the problems of the first n individuals together, for every n; one or more individuals.
        experts: number of experts.
        batch_size: children of a whole generation.
    """

    def rest(done: int) -> int:
        """How many individuals fit after so many."""
        return max(items - used[done], 0) // used[1]

    count = len(used) - 1
    first = count - max(count - experts, 0) % batch_size  # of the generation that goes on
    if rest(first) < batch_size:
        return first + rest(first)  # it has fewer children, and is the last one
    return max(first + batch_size, count + rest(count))


def _dump(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False, separators=(",", ":"))


def _json(kind: str, is_valid: Callable[[Any], bool], *, optional: bool = False) -> dict[str, Any]:
    """Metadata of a field: what its JSON value must be, the check, and whether records without a value leave it out."""
    return {"kind": kind, "is_valid": is_valid, "optional": optional}


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _or_null(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_valid(value)


def _list_of(is_valid: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and length in (None, len(value)) and all(map(is_valid, value))


def _object_of(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(is_valid, value.values()))


@dataclasses.dataclass(frozen=True)
class Individual:
    """An expert or a child: one line of the journal ``history.jsonl``. The fields have the order of the JSON object.

    Attributes:
        id: 0 to K − 1 for the experts; the ids of the children follow.
        generation: -1 for an expert; generations of children start at 0.
        expert: the task for which an expert is fine-tuned; None for a child.
        active: the task that provided quality for a child, or whose expert gave the directions of its mutation; None for an
            expert, and for a child that is given by its coefficients.
        parents: ids of the two parents; -1 for no parent.
        omega: raw crossover weights ω1, ω2; None for an expert, and for a child that is given by its coefficients.
        key: raw data of the child's PRNG key; None for an expert.
        coefficients: the genome of a child of CMA-ES, NSGA-II or random search: a list for each group of layers with the
            coefficient of each expert, float32. None, and absent in JSON, for an expert, and for a child that its parents, its
            active task and its key determine.
        digest: the digest of the genome, 16 hexadecimal digits (:func:`~cycleqd_jax.search.tree_digest`). None, and absent in
            JSON, in journals of versions that did not record it.
        asked: for a child of a steady search, the number of children inserted and the number of children made before it.
            None, and absent in JSON, for others.
        scores: f_k by task; None if the individual is quarantined, or was not evaluated on all problems: racing stopped it. A
            run that extends another one evaluates the elites of that run only.
        error: why the individual is quarantined, or None.
        items: score of every problem, by task; empty if the individual has no scores. Of a child that racing stopped, the
            scores of the problems in ``evaluated``.
        evaluated: the positions of the train problems that a child was evaluated on, by task, ascending, where racing stopped
            it. None, and absent in JSON, for others.
        seconds: wall time by stage.
        tokens: the fields of :class:`~cycleqd_jax.types.TokenCounts`, by name. None, and absent in JSON, where they were not
            counted.
    """

    id: int = dataclasses.field(metadata=_json("an integer", _is_integer))
    generation: int = dataclasses.field(metadata=_json("an integer", _is_integer))
    expert: str | None = dataclasses.field(metadata=_json("a string or null", _or_null(_is_text)))
    active: str | None = dataclasses.field(metadata=_json("a string or null", _or_null(_is_text)))
    parents: tuple[int, int] = dataclasses.field(metadata=_json("two integers", _list_of(_is_integer, 2)))
    omega: tuple[float, float] | None = dataclasses.field(
        metadata=_json("two finite numbers or null", _or_null(_list_of(_is_number, 2)))
    )
    key: tuple[int, ...] | None = dataclasses.field(metadata=_json("integers or null", _or_null(_list_of(_is_integer))))
    coefficients: tuple[Sequence[float], ...] | None = dataclasses.field(
        default=None,
        metadata=_json("lists of finite numbers or null", _or_null(_list_of(_list_of(_is_number))), optional=True),
    )
    digest: str | None = dataclasses.field(default=None, metadata=_json("a string or null", _or_null(_is_text), optional=True))
    asked: tuple[int, int] | None = dataclasses.field(
        default=None, metadata=_json("two integers or null", _or_null(_list_of(_is_integer, 2)), optional=True)
    )
    scores: Mapping[str, float] | None = dataclasses.field(
        default=None, metadata=_json("a finite number for each task, or null", _or_null(_object_of(_is_number)))
    )
    error: str | None = dataclasses.field(default=None, metadata=_json("a string or null", _or_null(_is_text)))
    items: Mapping[str, Sequence[float]] = dataclasses.field(
        default_factory=dict, metadata=_json("a list of finite numbers for each task", _object_of(_list_of(_is_number)))
    )
    evaluated: Mapping[str, Sequence[int]] | None = dataclasses.field(
        default=None,
        metadata=_json("a list of integers for each task, or null", _or_null(_object_of(_list_of(_is_integer))), optional=True),
    )
    seconds: Mapping[str, float] = dataclasses.field(
        default_factory=dict, metadata=_json("a finite number for each stage", _object_of(_is_number))
    )
    tokens: Mapping[str, int] | None = dataclasses.field(
        default=None,
        metadata=_json("an integer for each kind of token, or null", _or_null(_object_of(_is_integer)), optional=True),
    )

    @property
    def problem_count(self) -> int:
        """How many problems it was evaluated on, over all tasks; 0 if it has no scores of any."""
        return sum(map(len, self.items.values()))

    def to_json(self) -> str:
        """The line of the journal, without its newline. It has a checksum of all fields but the costs.

        Raises:
            ValueError: a number is NaN or infinite.
        """
        record = {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None or not field.metadata["optional"]
        }
        costs = {name: record.pop(name) for name in _COSTS if name in record}
        line = _dump(record)[:-1]
        return f'{line},"checksum":"{_checksum(line.encode())}",{_dump(costs)[1:]}'

    @classmethod
    def from_json(cls, line: str | bytes, place: str) -> Individual:
        """Reads a line of the journal. Unknown fields are ignored, except for ``schema`` and ``checksum``.

        Lines of older versions have no checksum.

        Args:
            line: the line.
            place: where the line is, for error messages: ``"line 3 of run/history.jsonl"``.

        Raises:
            InputError: the line is not a JSON object, or a field is missing or of another type, or a number is NaN or infinite,
                or the line is of a newer schema, or its checksum is that of another line.
        """
        line = line.encode() if isinstance(line, str) else line
        try:
            raw = json.loads(line, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            raise InputError(f"expected a journal record in JSON, got {error} in {place}; restore the file") from error
        present = raw if isinstance(raw, dict) else {}
        check_schema(present, place)
        if "checksum" in present:
            stated = _CHECKSUM.search(line)
            names = list(present)
            after = {*names[names.index("checksum") + 1 :]}
            if stated is None or stated[1].decode() != _checksum(line[: stated.start()]) or not after <= {*_COSTS}:
                raise InputError(
                    f"expected a journal record as the run wrote it, got one of another checksum in {place}; restore the file"
                )
        fields = [field for field in dataclasses.fields(cls) if field.name in present or not field.metadata["optional"]]
        missing = [field.name for field in fields if field.name not in present]
        if missing:
            raise InputError(
                f"expected a journal record with {', '.join(field.name for field in fields)}, got none of "
                f"{', '.join(missing)} in {place}; restore the file"
            )
        for field in fields:
            value = raw[field.name]
            if not field.metadata["is_valid"](value):
                kind = field.metadata["kind"]
                raise InputError(f"expected {field.name} to be {kind}, got {value!r:.80} in {place}; restore the file")
        found: dict[str, Any] = {field.name: raw[field.name] for field in fields}
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
        return cls(**values)


def read_lines(lines: Iterable[bytes], path: Path) -> Iterator[tuple[Individual | None, bytes]]:
    """The individuals of a journal.

    A crash leaves the first bytes of a last line without its newline, and zeros where the disk did not get the rest.

    Args:
        lines: the lines with their newlines, as a binary file gives them.
        path: path of the journal, for errors.

    Yields:
        An individual and its line. Of an incomplete last line, None in its place.

    Raises:
        InputError: a line is not a record or was changed, an id comes twice, or the end is not the beginning of a line.
    """
    numbers: dict[int, int] = {}
    checked = False
    for number, line in enumerate(lines, 1):
        place = f"line {number} of {path}"
        if not line.endswith(b"\n"):
            written = line.rstrip(b"\0")
            if not (written.startswith(_FIRST) or _FIRST.startswith(written)):
                raise InputError(f"expected a line of a journal, got {line[:40]!r} in {place}; restore the file")
            yield None, line
            return
        individual = Individual.from_json(line[:-1], place)
        if individual.id in numbers:
            raise InputError(
                f"expected distinct ids, got id {individual.id} of line {numbers[individual.id]} again in {place}; restore "
                "the file"
            )
        numbers[individual.id] = number
        found = _CHECKSUM.search(line) is not None
        if checked and not found:  # no version that writes checksums leaves one out
            raise InputError(f"expected a checksum, as in the line before, got none in {place}; restore the file")
        checked = found
        yield individual, line
