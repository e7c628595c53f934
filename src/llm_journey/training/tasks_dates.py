"""Dates as people write them, and their ISO 8601 form: a task whose every answer is known and whose data has no end.

    "the 3rd of March, 1998"  ->  "1998-03-03"          "3/3/98 (US)"  ->  "1998-03-03"

Years run from 1950 to 2049, so that two digits name one year. A form that could be read in two ways says which way it
is meant: "(UK)" puts the day first, "(US)" the month. Other languages, calendars and relative dates are left out.
"""

import datetime
import random
from collections.abc import Callable

FIRST_YEAR, LAST_YEAR = 1950, 2049
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII")
_ONES = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
         "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")  # fmt: skip
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip

Style = Callable[[datetime.date, random.Random], str]


def write_date(day: datetime.date, style: str, generator: random.Random) -> str:
    """`day` in one of STYLES; `generator` decides the small things (a leading zero, a comma, capitals)."""
    text = STYLES[style](day, generator)
    return generator.choice((str, str, str, str, str.lower, str.upper))(text)


def all_dates() -> list[datetime.date]:
    """Every day of the years that the task knows, in order."""
    first, last = datetime.date(FIRST_YEAR, 1, 1), datetime.date(LAST_YEAR, 12, 31)
    return [first + datetime.timedelta(days=number) for number in range((last - first).days + 1)]


def date_pairs(seed: int, held_out: float, num_pairs: int) -> dict[str, list[tuple[str, str]]]:
    """(as written, ISO form) for "train" (`num_pairs` of them) and "validation" (the share `held_out` more).

    The share `held_out` of all dates is set aside first: no date of the one split is ever asked for in the other.
    """
    generator = random.Random(seed)
    days = all_dates()
    generator.shuffle(days)
    num_held_out = min(max(round(held_out * len(days)), 1), len(days) - 1)
    wanted = {
        "train": (days[num_held_out:], num_pairs),
        "validation": (days[:num_held_out], max(round(held_out * num_pairs), 1)),
    }
    return {
        split: [_pair(generator.choice(of), generator) for _ in range(count)] for split, (of, count) in wanted.items()
    }


def _pair(day: datetime.date, generator: random.Random) -> tuple[str, str]:
    return write_date(day, generator.choice(tuple(STYLES)), generator), day.isoformat()


def _number(value: int, generator: random.Random) -> str:
    """A day or month in figures, with or without a leading zero."""
    return generator.choice((str(value), f"{value:02}"))


def _figures(value: int) -> str:
    suffix = "th" if value in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")
    return f"{value}{suffix}"


def _word(value: int) -> str:
    """A whole number from 1 to 99 in words."""
    if value < len(_ONES):
        return _ONES[value]
    tens, ones = _TENS[value // 10], _ONES[value % 10]
    return f"{tens}-{ones}" if ones else tens


def _ordinal_word(value: int) -> str:
    start, hyphen, last = _word(value).rpartition("-")
    regular = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    return f"{start}{hyphen}{_ORDINALS.get(last, regular)}"


def _year_words(year: int) -> str:
    century, rest = divmod(year, 100)
    if century == 20 and rest < 10:
        return "two thousand" + (f" and {_word(rest)}" if rest else "")
    return _word(century) + (f" {_word(rest)}" if rest else " hundred")


def _month(day: datetime.date) -> str:
    return _MONTHS[day.month - 1]


def _comma(generator: random.Random) -> str:
    return generator.choice((",", ""))


def _day_slash_month(day: datetime.date, generator: random.Random) -> str:
    mark = generator.choice("/-")
    parts = (_number(day.day, generator), _number(day.month, generator), _year(day, generator))
    return mark.join(parts) + " (UK)"


def _month_slash_day(day: datetime.date, generator: random.Random) -> str:
    mark = generator.choice("/-")
    parts = (_number(day.month, generator), _number(day.day, generator), _year(day, generator))
    return mark.join(parts) + " (US)"


def _year(day: datetime.date, generator: random.Random) -> str:
    return generator.choice((str(day.year), f"{day.year % 100:02}"))


STYLES: dict[str, Style] = {
    "day month year": lambda day, _: f"{day.day} {_month(day)} {day.year}",
    "the 3rd of March": lambda day, g: (
        f"{g.choice(('the ', ''))}{_figures(day.day)} of {_month(day)}{_comma(g)} {day.year}"
    ),
    "March 3, 1998": lambda day, g: f"{_month(day)} {day.day}{_comma(g)} {day.year}",
    "March 3rd, 1998": lambda day, g: f"{_month(day)} {_figures(day.day)}{_comma(g)} {day.year}",
    "3 Mar 1998": lambda day, g: f"{_number(day.day, g)} {_month(day)[:3]}{g.choice(('.', ''))} {day.year}",
    "3-Mar-98": lambda day, g: f"{_number(day.day, g)}-{_month(day)[:3]}-{_year(day, g)}",
    "Mar 3, 1998": lambda day, g: f"{_month(day)[:3]}{g.choice(('.', ''))} {day.day}{_comma(g)} {day.year}",
    "Tuesday, 3 March 1998": lambda day, g: f"{_WEEKDAYS[day.weekday()]}{_comma(g)} {day.day} {_month(day)} {day.year}",
    "Tue, Mar 3 1998": lambda day, g: (
        f"{_WEEKDAYS[day.weekday()][:3]}{_comma(g)} {_month(day)[:3]} {_number(day.day, g)} {day.year}"
    ),
    "03/03/98 (UK)": _day_slash_month,
    "03/03/98 (US)": _month_slash_day,
    "3.3.1998": lambda day, g: f"{_number(day.day, g)}.{_number(day.month, g)}.{_year(day, g)}",
    "1998/3/3": lambda day, g: (
        f"{day.year}{(mark := g.choice('/-.'))}{_number(day.month, g)}{mark}{_number(day.day, g)}"
    ),
    "19980303": lambda day, _: f"{day:%Y%m%d}",
    "3.III.1998": lambda day, g: f"{day.day}{(mark := g.choice('. '))}{_ROMAN[day.month - 1]}{mark}{day.year}",
    "3 March '98": lambda day, _: f"{day.day} {_month(day)} '{day.year % 100:02}",
    "the third of March 1998": lambda day, g: (
        f"{g.choice(('the ', ''))}{_ordinal_word(day.day)} of {_month(day)}{_comma(g)} {day.year}"
    ),
    "March the third, 1998": lambda day, g: f"{_month(day)} the {_ordinal_word(day.day)}{_comma(g)} {day.year}",
    "3 March nineteen ninety-eight": lambda day, g: f"{day.day} {_month(day)}{_comma(g)} {_year_words(day.year)}",
    "the third of March, nineteen ninety-eight": lambda day, g: (
        f"the {_ordinal_word(day.day)} of {_month(day)}{_comma(g)} {_year_words(day.year)}"
    ),
}
