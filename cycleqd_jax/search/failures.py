"""Failures of experts, and too many failures of children in a row."""

from __future__ import annotations

import collections
from collections.abc import Collection

from cycleqd_jax.evaluation import is_transient
from cycleqd_jax.individual import Individual
from cycleqd_jax.search.journal import Journal
from cycleqd_jax.types import FailuresError

__all__ = ["check_not_finite", "check_row", "raise_unscored"]

_REASON_LENGTH, _REASONS = 160, 3
"""The most characters of a reason, and the most reasons, in the message about too many failures."""


def raise_unscored(expert: Individual, journal: Journal) -> None:
    """Raises for an expert that has a transient failure: it is not recorded.

    Raises:
        FailuresError: always.
    """
    raise FailuresError(
        f"expected scores of expert {expert.expert!r}, got: {expert.error} in {journal.path}; correct the cause and run the "
        "same command to continue"
    )


def check_not_finite(individual: Individual, journal: Journal, most: int | None, ignored: Collection[int] = ()) -> None:
    """Stops a search after every ``most`` children in a row without finite logits.

    They stay in the journal, because another evaluation would give the same. A resumed search goes on with the next child.

    Args:
        individual: the newest child in the journal; it has no finite logits.
        journal: the journal of the search.
        most: number of such children in a row that stop the search; None is no limit.
        ignored: see :func:`check_row`.

    Raises:
        FailuresError: the child is the last of ``most``, or of a multiple.
    """
    count, before = 1, individual.id - 1
    while (one := journal.get(before)) is not None and (before in ignored or (one.error and not is_transient(one.error))):
        count += before not in ignored
        before -= 1
    if most is None or count % most:
        return
    raise FailuresError(
        f"expected fewer than search.max_failures = {most} children in a row without finite logits, got {count} up to "
        f"individual {individual.id} ({individual.error}) in {journal.path}; lower genome.strength or correct the experts and "
        "choose another output, or run the same command to go on"
    )


def check_row(individual: Individual, journal: Journal, most: int | None, kept: int, ignored: Collection[int] = ()) -> None:
    """Stops a search where a child has the last of too many transient failures in a row.

    Children without finite logits neither count nor end the row. The row is removed from the journal, with all that lies
    between its first and its last failure: a journal has no gaps.

    Args:
        individual: a child with a transient failure, not recorded yet.
        journal: the journal of the search; it has all individuals before the child.
        most: number of failures in a row that stop the search; None is no limit.
        kept: individuals with ids below this stay in the journal.
        ignored: ids of individuals that this search does not evaluate. They stay, and neither count nor end the row.

    Raises:
        FailuresError: the child has the last of ``most`` failures.
    """
    assert individual.error is not None, "a child that failed"
    reasons, first, before = [individual.error], individual.id, individual.id - 1
    while (one := journal.get(before)) is not None and (one.error is not None or before in ignored):
        if one.error is not None and before not in ignored and is_transient(one.error):
            reasons.append(one.error)
            first = before
        before -= 1
    if most is None or len(reasons) < most:
        return
    kept = max(first, kept)
    journal.take_back({*range(kept, individual.id)} - {*ignored})
    counted = collections.Counter(reason[:_REASON_LENGTH] for reason in reasons).most_common(_REASONS)
    listed = ", ".join(f"{count} × {reason!r}" for reason, count in counted)
    stay = f"; individuals {first} to {kept - 1} stay quarantined" if kept > first else ""
    raise FailuresError(
        f"expected fewer than search.max_failures = {most} failed individuals in a row, got individuals {first} to "
        f"{individual.id} ({listed}{stay}) in {journal.path}; correct the cause and run the same command to continue"
    )
