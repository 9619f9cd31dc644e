"""MySQL's functions of times of day and spans, as functions of SQLite. Runs in the sandbox."""

from cycleqd_jax.tasks.dbbench.sqlite_dates import MICROSECOND, SECOND, clock, moment, parts, shown_clock
from cycleqd_jax.tasks.dbbench.sqlite_values import Fault, sql

__all__ = []


def whole_clock(value):
    """Microseconds as the text of a time without a fraction, which the type of the result has no place for."""
    if value % SECOND:
        raise Fault("1235 (42000): This version of MySQL doesn't yet support 'fractions of seconds'")
    return shown_clock(value)


@sql("m_sec_to_time")
def seconds_to_time(seconds):
    """SEC_TO_TIME."""
    return whole_clock(round(max(-(839 * 3600 - 1), min(839 * 3600 - 1, seconds)) * SECOND))


@sql("m_time_to_sec")
def time_to_seconds(text):
    """TIME_TO_SEC."""
    value = clock(text)
    return None if value is None else value / SECOND if value % SECOND else value // SECOND


@sql("m_whole_time")
def whole_time(text):
    """A text of a time, which must have no fraction of a second."""
    value = clock(text)
    if value is not None:
        whole_clock(value)
    return text


@sql("m_timediff")
def time_difference(first, second):
    """TIMEDIFF."""
    if len(first) >= 10 and len(second) >= 10 and parts(first) is not None and parts(second) is not None:
        left, right = moment(first), moment(second)
        return None if left is None or right is None else whole_clock((left - right) // MICROSECOND)
    left, right = clock(first), clock(second)
    return None if left is None or right is None else whole_clock(left - right)
