"""MySQL's formats of dates and times, for SQLite. Runs in the sandbox, see ``sqlite_server.py``."""

import datetime
import re

from cycleqd_jax.tasks.dbbench.sqlite_dates import DAY, DAYS, MONTHS, SECOND, clock, full_year, parts, week
from cycleqd_jax.tasks.dbbench.sqlite_values import sql

SHORT_MONTHS, SHORT_DAYS = (tuple(name[:3] for name in names) for names in (MONTHS, DAYS))


@sql("m_date_format")
def date_format(text, pattern, timed):
    """DATE_FORMAT and, if ``timed``, TIME_FORMAT."""
    if timed:
        span = clock(text)
        if span is None:
            return None
        values = [0, 0, 0, abs(span) // SECOND // 3600, abs(span) // SECOND // 60 % 60, abs(span) // SECOND % 60, span % SECOND]
    else:
        values = parts(text)
        if values is None:
            return None
    year, month, day, hour, minute, second, micro = values
    try:
        value = datetime.date(year, month, day)
    except ValueError:
        value = None
    twelve = (hour + 11) % 12 + 1
    suffix = "th" if 10 < day % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    half = "AM" if hour % 24 < 12 else "PM"

    def one(match):
        code = match[1]
        simple = {
            "Y": f"{year:04d}", "y": f"{year % 100:02d}", "m": f"{month:02d}", "c": f"{month}", "d": f"{day:02d}",
            "e": f"{day}", "D": f"{day}{suffix}", "H": f"{hour:02d}", "k": f"{hour}", "h": f"{twelve:02d}",
            "I": f"{twelve:02d}", "l": f"{twelve}", "i": f"{minute:02d}", "s": f"{second:02d}", "S": f"{second:02d}",
            "f": f"{micro:06d}", "p": half, "T": f"{hour:02d}:{minute:02d}:{second:02d}",
            "r": f"{twelve:02d}:{minute:02d}:{second:02d} {half}",
        }  # fmt: skip
        if code in simple:
            return simple[code]
        if code in "MbWawjUuVvXx":
            if code in "Mb":
                return (MONTHS if code == "M" else SHORT_MONTHS)[month] if month else missing()
            if value is None:
                return missing()
            if code in "Wa":
                return (DAYS if code == "W" else SHORT_DAYS)[value.weekday()]
            if code in "wj":
                return f"{value.isoweekday() % 7}" if code == "w" else f"{value.timetuple().tm_yday:03d}"
            found = week(value, {"U": 0, "u": 1, "V": 2, "v": 3, "X": 2, "x": 3}[code])
            return f"{found[0]:04d}" if code in "Xx" else f"{found[1]:02d}"
        return code

    def missing():
        raise LookupError

    try:
        return re.sub(r"%(.)", one, pattern, flags=re.DOTALL)
    except LookupError:
        return None


NAMES = {"M": [*MONTHS[1:], *SHORT_MONTHS[1:]], "b": SHORT_MONTHS[1:], "W": DAYS, "a": SHORT_DAYS}
WIDTHS = {"Y": 4, "f": 6, "j": 3} | dict.fromkeys("ymcdeHkhIlisS", 2)


@sql("m_str_to_date")
def str_to_date(text, pattern, kind):
    """STR_TO_DATE; ``kind`` is date, datetime or time."""
    found, index = {}, 0
    pattern = pattern.replace("%T", "%H:%i:%S").replace("%r", "%I:%i:%S %p")
    position = 0
    while position < len(pattern):
        character = pattern[position]
        position += 1
        while index < len(text) and text[index].isspace():
            index += 1
        if character.isspace():
            continue
        if index >= len(text):
            break
        if character != "%" or position == len(pattern):
            if text[index] != character:
                return None
            index += 1
            continue
        code = pattern[position]
        position += 1
        if code in NAMES:
            names = sorted(enumerate(NAMES[code], 1), key=lambda pair: -len(pair[1]))
            number, name = next((pair for pair in names if text[index:].lower().startswith(pair[1].lower())), (0, ""))
            if not number:
                return None
            found["m" if code in "Mb" else code] = (number - 1) % 12 + 1
            index += len(name)
        elif code in "pD":
            match = re.compile(r"(\d\d?)(?:st|nd|rd|th)" if code == "D" else "([ap])m", re.IGNORECASE).match(text, index)
            if not match:
                return None
            found["d" if code == "D" else "p"] = int(match[1]) if code == "D" else match[1].lower()
            index = match.end()
        elif code in WIDTHS:
            match = re.compile(rf"\d{{1,{WIDTHS[code]}}}", re.ASCII).match(text, index)
            if not match:
                return None
            digits = match[0]
            value = full_year(digits) if code in "Yy" else int(digits.ljust(6, "0") if code == "f" else digits)
            place = {"y": "Y", "c": "m", "e": "d", "k": "H", "I": "h", "l": "h", "s": "S"}.get(code, code)
            found[place] = value
            index = match.end()
        else:
            return None
    hour = found.get("H", 0)
    if "h" in found:
        if not 1 <= found["h"] <= 12:
            return None
        hour = found["h"] % 12 + (12 if found.get("p") == "p" else 0)
    minute, second = found.get("i", 0), found.get("S", 0)
    year, month, day = found.get("Y", 0), found.get("m", 0), found.get("d", 0)
    if "j" in found and year:
        yearday = datetime.date(year, 1, 1) + (found["j"] - 1) * DAY
        month, day = yearday.month, yearday.day
    shown = f"{year:04d}-{month:02d}-{day:02d} {hour:02d}:{minute:02d}:{second:02d}.{found.get('f', 0):06d}"
    if hour > 23 or parts(shown) is None:
        return None
    if kind == "time":
        return shown[11:19]
    if kind == "date":
        return shown[:10]
    return shown[:26] if found.get("f") else shown[:19]
