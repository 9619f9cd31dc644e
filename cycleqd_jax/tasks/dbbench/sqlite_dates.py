"""MySQL's functions of dates and times, for SQLite. Runs in the sandbox, see ``sqlite_server.py``.

A date is a text ``YYYY-MM-DD``, a datetime ``YYYY-MM-DD HH:MM:SS[.ffffff]``, a time ``[-]HH:MM:SS[.ffffff]``.
"""

import datetime
import decimal
import re

from cycleqd_jax.tasks.dbbench.sqlite_values import Pattern, sql

DELIMITED = Pattern(
    r"\s*(\d{1,4})[!-/:-@\[-`{-~]+(\d{1,2})[!-/:-@\[-`{-~]+(\d{1,2})"
    r"(?:(?:T|\s+)(\d{1,2})(?:[!-/:-@\[-`{-~](\d{1,2})(?:[!-/:-@\[-`{-~](\d{1,2})(?:\.(\d+))?)?)?)?",
)
PACKED = Pattern(r"\s*(\d{6,14})(?!\d)")
CLOCK = Pattern(r"\s*(-?)(?:(\d+)\s+)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?(?:\.(\d+))?")
MONTHS = (
    "", "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DAY = datetime.timedelta(days=1)
MICROSECOND = datetime.timedelta(microseconds=1)
SECOND = 1_000_000


def days_in(year, month):
    """The number of days of a month."""
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 29 if month == 2 and leap else (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)[month - 1]


def full_year(text):
    """A year of one to four digits."""
    year = int(text)
    return year if len(text) > 2 else year + (1900 if year >= 70 else 2000)


def parts(text):
    """Year, month, day, hour, minute, second and microsecond; None if a text is no date. Month and day may be 0."""
    match = DELIMITED.match(text)
    if match and text[match.end() : match.end() + 1].isdecimal():
        return None
    if match:
        year, *rest, fraction = match.groups()
        values = [full_year(year), *(int(part or 0) for part in rest)]
    else:
        match = PACKED.match(text)
        digits = match[1] if match else ""
        if len(digits) in (6, 12):
            digits = f"{full_year(digits[:2]):04d}" + digits[2:]
        if len(digits) not in (8, 14):
            return None
        fraction = None
        values = [int(digits[:4]), *(int(digits[i : i + 2] or 0) for i in range(4, 14, 2))]
    values.append(int((fraction or "0")[:6].ljust(6, "0")))
    year, month, day, hour, minute, second, _ = values
    if month > 12 or hour > 23 or minute > 59 or second > 59:
        return None
    if day > (days_in(year, month) if month and year else 31):
        return None
    return values


def moment(text):
    """A text as ``datetime``, or None."""
    values = parts(text)
    if values is None:
        return None
    year, month, day, hour, minute, second, fraction = values
    try:
        return datetime.datetime(year, month, day, hour, minute, second, fraction)
    except ValueError:
        return None


def shown_moment(value, scale=0):
    """A ``datetime`` as text."""
    text = f"{value:%H:%M:%S}"
    text = f"{value.year:04d}-{value.month:02d}-{value.day:02d} {text}"
    return text + (f".{value.microsecond:06d}"[: scale + 1] if scale else "")


def shown_day(value):
    """A ``date`` as text."""
    return f"{value.year:04d}-{value.month:02d}-{value.day:02d}"


def clock(text):
    """A time in microseconds; None if a text is no time."""
    if len(text) >= 12 and parts(text) is not None:
        values = parts(text)
        return None if values is None else ((values[3] * 60 + values[4]) * 60 + values[5]) * SECOND + values[6]
    match = CLOCK.match(text)
    if not match:
        return None
    sign, days, hours, minutes, seconds, fraction = match.groups()
    if minutes is None:  # digits alone, from the right
        digits = hours.rjust(6, "0")
        hours, minutes, seconds = digits[:-4], digits[-4:-2], digits[-2:]
    elif days is None and len(hours) > 3:
        return None
    if int(minutes) > 59 or int(seconds or 0) > 59:
        return None
    total = ((int(days or 0) * 24 + int(hours)) * 60 + int(minutes)) * 60 + int(seconds or 0)
    total = min(total, 839 * 3600 - 1) * SECOND + int((fraction or "0")[:6].ljust(6, "0"))
    return -total if sign else total


def shown_clock(value, scale=0):
    """Microseconds as the text of a time."""
    sign, value = "-" if value < 0 else "", abs(value)
    seconds, fraction = divmod(value, SECOND)
    text = f"{sign}{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return text + (f".{fraction:06d}"[: scale + 1] if scale else "")


@sql("m_number_moment")
def number_moment(value):
    """A number as the text of a date or a datetime, by its digits; parts that do not exist are not checked."""
    if value < 0:
        return None
    digits, _, fraction = f"{decimal.Decimal(repr(value)):f}".partition(".")
    number = int(digits)
    if number == 0:
        return "0000-00-00 00:00:00"
    day, time = divmod(number, SECOND) if number > 99_991_231 else (number, None)
    if not 101 <= day <= 99_991_231 or 691_231 < day < 700_101 or (time is None and 991_231 < day < 10_000_101):
        return None
    year, month_and_day = divmod(day, 10_000)
    if day <= 991_231:
        year += 1900 if year >= 70 else 2000
    shown = f"{year:04d}-{month_and_day // 100:02d}-{month_and_day % 100:02d}"
    if time is None:
        return shown
    return f"{shown} {time // 10_000:02d}:{time // 100 % 100:02d}:{time % 100:02d}" + f".{fraction}" * bool(fraction)


@sql("m_instant")
def instant(value, timed):
    """A value in a comparison of datetimes or, if ``timed``, of times; what is none counts as zero."""
    if timed:
        return time_of(value, 6) or "00:00:00.000000"
    text = value if isinstance(value, str) else number_moment(value)
    return (text and date_and_time(text, 6)) or "0000-00-00 00:00:00.000000"


@sql("m_date")
def date(text):
    """A text as a date."""
    values = parts(text)
    return None if values is None else f"{values[0]:04d}-{values[1]:02d}-{values[2]:02d}"


@sql("m_datetime")
def date_and_time(text, scale):
    """A text as a datetime."""
    values = parts(text)
    if values is None:
        return None
    day = f"{values[0]:04d}-{values[1]:02d}-{values[2]:02d} {values[3]:02d}:{values[4]:02d}:{values[5]:02d}"
    return day + (f".{values[6]:06d}"[: scale + 1] if scale else "")


@sql("m_time")
def time_of(text, scale):
    """A text as a time."""
    value = clock(text)
    return None if value is None else shown_clock(value, scale)


@sql("m_date_number")
def date_number(text):
    """A date, datetime or time as the number that its digits make."""
    sign = "-" if text.startswith("-") else ""
    whole, _, fraction = text.partition(".")
    number = int(sign + re.sub(r"\D", "", whole))
    return number + float("0." + fraction) if fraction else number


@sql("m_part")
def part(text, name):
    """A part of a date, such as the year."""
    if name in ("HOUR", "MINUTE", "SECOND", "MICROSECOND"):
        value = clock(text)
        if value is None:
            return None
        value = abs(value)
        return {"HOUR": value // SECOND // 3600, "MINUTE": value // SECOND // 60 % 60, "SECOND": value // SECOND % 60}.get(
            name, value % SECOND
        )
    values = parts(text)
    if values is None:
        return None
    year, month, day = values[:3]
    simple = {"YEAR": year, "MONTH": month, "DAY": day, "QUARTER": (month + 2) // 3, "YEAR_MONTH": year * 100 + month}
    if name in simple:
        return simple[name]
    try:
        value = datetime.date(year, month, day)
    except ValueError:
        return None
    if name == "WEEK":
        return week(value, 0)[1]
    if name == "DAYNAME":
        return DAYS[value.weekday()]
    if name == "TO_DAYS":
        return value.toordinal() + 365
    return {"DAYOFWEEK": value.isoweekday() % 7 + 1, "WEEKDAY": value.weekday(), "DAYOFYEAR": value.timetuple().tm_yday}[name]


@sql("m_monthname")
def month_name(text):
    """MONTHNAME."""
    values = parts(text)
    return None if values is None or not values[1] else MONTHS[values[1]]


@sql("m_last_day")
def last_day(text):
    """LAST_DAY."""
    values = parts(text)
    if values is None or not values[1]:
        return None
    return f"{values[0]:04d}-{values[1]:02d}-{days_in(values[0] or 4, values[1]):02d}"


@sql("m_from_days")
def from_days(count):
    """FROM_DAYS."""
    return shown_day(datetime.date.fromordinal(count - 365)) if 366 <= count <= 3_652_424 else "0000-00-00"


@sql("m_makedate")
def make_date(year, day):
    """MAKEDATE."""
    year = year + (2000 if year < 70 else 1900) if 0 <= year < 100 else year
    if day < 1 or not 1 <= year <= 9999:
        return None
    try:
        return shown_day(datetime.date(year, 1, 1) + (day - 1) * DAY)
    except OverflowError:
        return None


@sql("m_maketime")
def make_time(hour, minute, second):
    """MAKETIME."""
    if not (0 <= minute < 60 and 0 <= second < 60):
        return None
    value = min((abs(hour) * 60 + minute) * 60 + second, 839 * 3600 - 1)
    return shown_clock(-value * SECOND if hour < 0 else value * SECOND)


def week(day, mode):
    """Year and week of a date, by MySQL's modes 0 to 7."""
    monday, keeps_year = mode & 1, not mode & 2
    first_whole = bool(mode & 4) if monday else not mode & 4
    first = datetime.date(day.year, 1, 1)

    def start(year):
        """The first day of week 1, as an ordinal."""
        january = datetime.date(year, 1, 1)
        offset = january.weekday() if monday else january.isoweekday() % 7
        if first_whole:
            return january.toordinal() + (7 - offset) % 7
        return january.toordinal() - offset + (7 if offset > 3 else 0)

    ordinal = day.toordinal()
    if ordinal < start(first.year):
        if keeps_year:
            return day.year, 0
        return day.year - 1, (ordinal - start(day.year - 1)) // 7 + 1
    if not keeps_year and day.year < 9999 and ordinal >= start(day.year + 1):
        return day.year + 1, 1
    return day.year, (ordinal - start(day.year)) // 7 + 1


@sql("m_week")
def week_of(text, mode, with_year):
    """WEEK and YEARWEEK."""
    value = moment(text)
    if value is None:
        return None
    year, number = week(value.date(), (mode | 2 if with_year else mode) & 7)
    return year * 100 + number if with_year else number


@sql("m_datediff")
def date_difference(first, second):
    """DATEDIFF."""
    first, second = moment(first), moment(second)
    return None if first is None or second is None else first.toordinal() - second.toordinal()


@sql("m_timestampdiff")
def timestamp_difference(unit, first, second):
    """TIMESTAMPDIFF."""
    first, second = moment(first), moment(second)
    if first is None or second is None:
        return None
    if unit in ("YEAR", "QUARTER", "MONTH"):
        early, late = min(first, second), max(first, second)
        months = (late.year - early.year) * 12 + late.month - early.month
        if (late.day, late.time()) < (early.day, early.time()):
            months -= 1
        count = months // {"YEAR": 12, "QUARTER": 3, "MONTH": 1}[unit]
        return count if first <= second else -count
    difference = (second - first) // MICROSECOND
    size = {"WEEK": 604_800, "DAY": 86_400, "HOUR": 3_600, "MINUTE": 60, "SECOND": 1}.get(unit, 0) * SECOND or 1
    return abs(difference) // size * (1 if difference >= 0 else -1)


@sql("m_date_add")
def date_add(text, amount, unit, sign, kind):
    """DATE_ADD and DATE_SUB; ``kind`` is the result's type: date, datetime, or text (a datetime if the text has a time).

    A text is ``precise`` if its time is shown with six digits after the point.
    """
    if unit not in ("YEAR", "QUARTER", "MONTH", "WEEK", "DAY", "HOUR", "MINUTE", "SECOND", "MICROSECOND"):
        numbers = [int(n) for n in re.findall(r"\d+", str(amount))]
        names = unit.split("_")
        if len(numbers) > 2 or set(names) - {"YEAR", "MONTH", "DAY", "HOUR", "MINUTE", "SECOND"}:
            return None
        numbers = [0] * (2 - len(numbers)) + numbers
        if str(amount).lstrip().startswith("-"):
            sign = -sign
        for number, name in zip(numbers, names, strict=True):
            text = date_add(text, number, name, sign, kind)
            if text is None:
                return None
        return text
    if unit != "SECOND" or not isinstance(amount, float):
        amount = int(amount)
    value = moment(text)
    if value is None:
        return None
    amount *= sign
    try:
        if unit in ("YEAR", "QUARTER", "MONTH"):
            months = value.year * 12 + value.month - 1 + amount * {"YEAR": 12, "QUARTER": 3, "MONTH": 1}[unit]
            year, month = divmod(months, 12)
            value = value.replace(year=year, month=month + 1, day=min(value.day, days_in(year, month + 1)))
        else:
            value += amount * datetime.timedelta(**{f"{unit.lower()}s": 1})
    except (ValueError, OverflowError):
        return None
    timed = unit in ("HOUR", "MINUTE", "SECOND", "MICROSECOND")
    if kind == "date" or (kind in ("text", "precise") and not timed and not re.search(r"\d[T\s]+\d", text)):
        return shown_day(value)
    return shown_moment(value, 6 if value.microsecond or kind == "precise" else 0)


@sql("m_now", varying=True)
def now(kind):
    """NOW, CURDATE, CURTIME and, by UTC, their UTC_ forms."""
    universal = kind.startswith("utc_")
    value = datetime.datetime.now(datetime.UTC if universal else None)
    kind = kind.removeprefix("utc_")
    return {"date": shown_day(value), "time": f"{value:%H:%M:%S}"}.get(kind) or shown_moment(value)


@sql("m_unix")
def unix_timestamp(text):
    """UNIX_TIMESTAMP of a date."""
    value = moment(text)
    return None if value is None else max(0, int(value.timestamp()))


@sql("m_from_unix")
def from_unix(seconds):
    """FROM_UNIXTIME."""
    if not 0 <= seconds < 2**31:
        return None
    return shown_moment(datetime.datetime.fromtimestamp(int(seconds)))
