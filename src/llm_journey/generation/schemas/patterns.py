r"""Regexes in the words of llguidance's engine (Rust's), which means other things by some of the same signs.

A pattern is read as ECMA 262 (JSON Schema Core 2020-12, section 6.4) and Python both read it, and written anew. Where
those two differ, it becomes what both permit: \d, \w and \s are ASCII's, \D, \W and \S leave out what either takes for
a digit, word character or space, and `.` is no line's end. What one of them does not take, or would read otherwise, is
refused: `a**`, `a++`, `[]a]`, `[^]`, halves of surrogate pairs, references, look-around. To Rust `[a-z&&[^aeiou]]` is
an intersection; to both of them it is a set with a bracket behind it.

In JSON, llguidance 1.9 writes a set of all control characters as any escape, `\"` and `\\` among them, so that `[^"]`
let quotation marks through (derivre, `quote_all_ctrl`). A set that lacks one of those two therefore loses U+0001 here,
and what is positive all control characters that are not written (schemas.spelling).
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import regex

from llm_journey.core.errors import BadInputError
from llm_journey.generation.schemas.spelling import UNWRITTEN

MAX_REPEATS, _MAX_REPEATS_ALONE, _MAX_SIZE, _MAX_DEPTH = 1 << 16, 1000, 200_000, 100
_LONGEST_COUNT = 16  # characters of a repetition
_LAST, _DROPPED = 0x10FFFF, 1
_BEFORE_SURROGATES, _AFTER_SURROGATES = 0xD7FF, 0xE000
_MATCH_SECONDS, _ALL_MATCH_SECONDS = 0.05, 0.5
_QUOTED = (ord('"'), ord("\\"))
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_DIGITS, _WORDS, _SPACES = [(48, 57)], [(48, 57), (65, 90), (95, 95), (97, 122)], [(9, 13), (32, 32)]
# What either language takes for more than ASCII's, as Rust writes it. (\d and \w would become ASCII's on the way.)
_WIDE = {
    "d": r"\p{Nd}",
    "w": r"\p{Alphabetic}\p{M}\p{N}\p{Pc}",
    "s": r"\s\x{1c}-\x{1f}\x{feff}",
}
_ASCII = {"d": _DIGITS, "w": _WORDS, "s": _SPACES}
_LINE_ENDS = [(10, 10), (13, 13), (0x2028, 0x2029)]

Ranges = list[tuple[int, int]]


@dataclass(frozen=True)
class Pattern:
    """text: for Rust's engine. exact: whether each reader means just this; otherwise it is a part of what they mean."""

    text: str
    exact: bool


def translated(pattern: str, *, unicode: bool = False, line_end: bool = False) -> Pattern:
    r"""A pattern of a JSON schema as Rust's engine has it.

    line_end: `$` also stands before a last line break, as Python has it (ECMA has not). unicode: it is no pattern of a
    schema but a regex of its own: \d, \w and \s are Unicode's, `.` is all but a line
    break, and no set loses a character. Raises BadInputError for what is no regex, is refused (above), or repeats more
    than 65,536 times (alone: a thousand, as in RE2).
    """
    reader = _Reader(pattern, unicode, line_end)
    text, size = reader.alternatives(0)
    if reader.at < len(pattern):
        raise reader.wrong("unbalanced parenthesis")
    if size > _MAX_SIZE:
        raise BadInputError(
            f"the regex {_shown(pattern)} stands for {size:,} characters; at most {_MAX_SIZE:,} are taken"
        )
    return Pattern(text, reader.exact)


@dataclass
class _Set:
    """The characters of a class: ranges, and parts that only Rust's names can say."""

    ranges: Ranges = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    has_quoted: bool = False  # whether a named part holds both quotation mark and backslash
    unknown: bool = False  # whether a named part may hold control characters


class _Reader:
    """Recursive descent; each rule returns its text, and how many characters it stands for when written out."""

    def __init__(self, pattern: str, unicode: bool, line_end: bool) -> None:
        self.pattern, self.unicode, self.line_end = pattern, unicode, line_end
        self.at, self.exact = 0, True
        self.folds = False  # whether case makes no difference here

    def wrong(self, what: str, at: int | None = None) -> BadInputError:
        place = self.at if at is None else at
        return BadInputError(f"the regex {_shown(self.pattern)} is wrong: {what} at position {place}")

    def alternatives(self, depth: int) -> tuple[str, int]:
        if depth > _MAX_DEPTH:
            raise self.wrong(f"groups nested deeper than {_MAX_DEPTH}")
        found, total = [], 0
        while True:
            text, size = self._sequence(depth)
            found.append(text)
            total += size + 1
            if not self._take("|"):
                return "|".join(found), total

    def _sequence(self, depth: int) -> tuple[str, int]:
        parts, total = [], 0
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            start = self.at
            text, size, repeatable = self._atom(depth)
            counts = self._counts()
            if counts is not None and not repeatable:
                raise self.wrong("nothing to repeat", start)
            if counts is not None:
                text, size = text + counts[0], size * counts[1]
                after = self.at
                if self._take("?"):
                    text += "?"  # how eagerly it matches makes no difference to what matches
                elif self._take("+") or self._counts() is not None:
                    raise self.wrong("multiple repeat", after)
            parts.append(text)
            total += size
        return "".join(parts), total

    def _counts(self) -> tuple[str, int] | None:
        """A repetition, and how often it may write out what it repeats; None where none is here."""
        for sign in "*+?":
            if self._take(sign):
                return sign, 1
        end = self.pattern.find("}", self.at, self.at + _LONGEST_COUNT) if self._next() == "{" else -1
        least, comma, most = self.pattern[self.at + 1 : end].partition(",") if end > 0 else ("", "", "")
        if not all(each.isascii() and each.isdecimal() for each in (least, most) if each) or not (least or most):
            return None  # a brace that stands for itself
        if not least and not self.unicode:
            raise self.wrong(f"{{,{most}}}, which not all read alike,")
        shown, limit = self.pattern[self.at : end + 1], _MAX_REPEATS_ALONE if self.unicode else MAX_REPEATS
        if any(int(each) > limit for each in (least, most) if each):
            raise BadInputError(f"the regex repeats {_shown(shown)}; at most {limit} repetitions are taken")
        if least and most and int(least) > int(most):
            raise self.wrong("a least number of repetitions above the most")
        self.at = end + 1
        return f"{{{least or 0}{comma}{most}}}", max(1, int(least or 0), int(most or 0))

    def _atom(self, depth: int) -> tuple[str, int, bool]:
        sign = self.pattern[self.at]
        self.at += 1
        match sign:
            case "(":
                return *self._group(depth), True
            case "[":
                return self._class(), 1, True
            case "^":
                return sign, 0, False
            case "$":
                return (r"\n?$" if self.line_end else sign), 0, False
            case ".":
                self.exact = False
                return self._negated(_Set([(10, 10)] if self.unicode else _LINE_ENDS)), 1, True
            case "*" | "+" | "?":
                raise self.wrong("nothing to repeat", self.at - 1)
            case "{":
                self.at -= 1
                if self._counts() is not None:
                    raise self.wrong("nothing to repeat")
                self.at += 1
            case "\\":
                found = self._escape()
                if isinstance(found, int) and _is_surrogate(found):
                    raise self.wrong("half of a pair of surrogates, which not all read alike,", self.at - 6)
                return self._one(found) if isinstance(found, int) else self._positive(found), 1, True
        return self._one(ord(sign)), 1, True

    def _group(self, depth: int) -> tuple[str, int]:
        start, folds = self.at - 1, self.folds
        if self._take("?"):
            if self._take("i)") and start == 0:
                self.exact, self.folds = False, True
                return "", 0
            if self._take("i:"):
                self.exact, self.folds = False, True
            elif not self._take(":"):
                self._named_group(start)
        text, size = self.alternatives(depth + 1)
        if not self._take(")"):
            raise self.wrong("missing )", start)
        self.folds = folds
        return f"(?:{text})", size

    def _named_group(self, start: int) -> None:
        """`(?<name>` (ECMA's) or `(?P<name>` (Python's): the name says nothing about what matches."""
        self._take("P")
        end = self.pattern.find(">", self.at)
        if not self._take("<") or not self.pattern[self.at : end].isidentifier():
            raise self.wrong("look-around, a flag, or a reference, which are not followed,", start)
        self.at = end + 1

    def _escape(self) -> "int | _Set":
        """What stands behind a backslash: a character, or a set of them."""
        if self.at >= len(self.pattern):
            raise self.wrong("a backslash at the end")
        sign = self.pattern[self.at]
        self.at += 1
        if sign in "dws":
            self.exact = False
            return _Set(named=[_WIDE[sign]]) if self.unicode else _Set(list(_ASCII[sign]))
        if sign in "DWS":
            self.exact = False
            return _Set(named=[f"[^{_WIDE[sign.lower()]}]"], has_quoted=True)
        if sign in "pP":
            if self.folds:
                raise self.wrong("a property where case makes no difference", self.at - 2)
            return _Set(named=[f"\\{sign}{self._property()}"], unknown=True)
        if sign in "xu":
            return self._code(2 if sign == "x" else 4)
        if sign == "c" and self._next().isascii() and self._next().isalpha():
            self.at += 1
            return ord(self.pattern[self.at - 1]) % 32
        if sign in _CONTROLS and not (sign == "0" and self._next().isdecimal()):
            return _CONTROLS[sign]
        if sign.isascii() and sign.isalnum():
            raise self.wrong(f"\\{sign}, which not all read alike,", self.at - 2)
        return ord(sign)

    def _property(self) -> str:
        end = self.pattern.find("}", self.at)
        name = self.pattern[self.at + 1 : end]
        if (
            self._next() != "{"
            or not 0 < len(name) <= 60
            or not all(c.isascii() and (c.isalnum() or c in "_=") for c in name)
        ):
            raise self.wrong("a property that is not written \\p{...}")
        self.at = end + 1
        return f"{{{name}}}"

    def _code(self, digits: int) -> int:
        """A character by its number: xHH, uHHHH, or u{H...}."""
        end = self.at + digits
        if self._take("{"):
            end = self.pattern.find("}", self.at, self.at + 7)
            value = _hex(self.pattern[self.at : end]) if end > 0 else None
            self.at = end + 1
        else:
            value = _hex(self.pattern[self.at : end]) if end <= len(self.pattern) else None
            self.at = end
        if value is None or value > _LAST:
            raise self.wrong("a number that stands for no character")
        return value

    def _class(self) -> str:
        start = self.at - 1
        negated = self._take("^")
        if self._next() == "]":
            raise self.wrong("an empty set, which not all read alike,", start)
        found = _Set()
        while not self._take("]"):
            if self.at >= len(self.pattern):
                raise self.wrong("unterminated character set", start)
            low = self._member(negated)
            if isinstance(low, int) and self._next() == "-" and self._next(2)[1:] not in ("]", ""):
                self.at += 1
                high = self._member(negated)
                if not isinstance(high, int) or high < low:
                    raise self.wrong("a range that does not end at a character behind its first")
                found.ranges.append((low, high))
                continue
            if isinstance(low, int):
                found.ranges.append((low, low))
            else:
                found.ranges += low.ranges
                found.named += low.named
                found.has_quoted |= low.has_quoted
                found.unknown |= low.unknown
        return self._negated(found) if negated else self._positive(found)

    def _member(self, negated: bool) -> "int | _Set":
        """A character of a set, or a set in it; in a negated one, the most that any reader means."""
        sign = self.pattern[self.at : self.at + 1]
        self.at += 1
        if sign != "\\":
            return ord(sign) if sign else self._escape()
        if self._next() == "b":
            self.at += 1
            return 8
        following = self._next()
        found = self._escape()
        if not negated or isinstance(found, int) or following in "pP" or self.unicode:
            return found
        if following in "dws":
            return _Set(named=[_WIDE[following]])
        return _Set(_complement(_ASCII[following.lower()]))

    def _one(self, value: int) -> str:
        return self._positive(_Set([(value, value)]))

    def _positive(self, chosen: _Set) -> str:
        ranges = _merged(_folded(chosen.ranges) if self.folds else chosen.ranges)
        if not self.unicode and not (chosen.has_quoted or all(_holds(ranges, each) for each in _QUOTED)):
            for value in UNWRITTEN:
                ranges = _without(ranges, value)
            if chosen.unknown:
                return f"[[{_written(ranges)}{''.join(chosen.named)}]--\\x{{{_DROPPED}}}]"
        if not ranges and not chosen.named:
            return "[a&&b]"  # nothing
        if len(ranges) == 1 and ranges[0][0] == ranges[0][1] and not chosen.named:
            return _character(ranges[0][0])
        return f"[{_written(ranges)}{''.join(chosen.named)}]"

    def _negated(self, left_out: _Set) -> str:
        ranges = left_out.ranges
        if self.folds:  # of what is not ASCII, engines differ in what is a letter's other case
            ranges = [*_folded(ranges), (128, _LAST)]
        ranges = _merged(ranges)
        lacks = left_out.unknown or any(_holds(ranges, each) for each in _QUOTED)
        if not self.unicode and lacks and not _holds(ranges, _DROPPED):
            ranges = _merged([(_DROPPED, _DROPPED), *ranges])
        parts = _written(ranges) + "".join(left_out.named)
        return f"[^{parts}]" if parts else r"[\x{0}-\x{10ffff}]"

    def _next(self, count: int = 1) -> str:
        return self.pattern[self.at : self.at + count]

    def _take(self, text: str) -> bool:
        found = self.pattern.startswith(text, self.at)
        self.at += len(text) if found else 0
        return found


def _character(value: int) -> str:
    plain = value < 128 and chr(value).isalnum()
    return chr(value) if plain else f"\\x{{{value:x}}}"


def _written(ranges: Sequence[tuple[int, int]]) -> str:
    return "".join(_character(low) if low == high else f"{_character(low)}-{_character(high)}" for low, high in ranges)


def _holds(ranges: Ranges, value: int) -> bool:
    return any(low <= value <= high for low, high in ranges)


def _without(ranges: Ranges, value: int) -> Ranges:
    parts = [part for low, high in ranges for part in ((low, min(high, value - 1)), (max(low, value + 1), high))]
    return sorted({(low, high) for low, high in parts if low <= high})


def _merged(ranges: Ranges) -> Ranges:
    """The same characters in ascending ranges with gaps between them, none ending at a surrogate.

    Rust, asked for all but two ranges that meet at the surrogates, gives two characters of them.
    """
    found: Ranges = []
    for low, high in sorted(ranges):
        low = _AFTER_SURROGATES if _is_surrogate(low) else low
        high = _BEFORE_SURROGATES if _is_surrogate(high) else high
        if high < low:
            continue
        last = found[-1][1] if found else -2
        if low <= (_AFTER_SURROGATES if last == _BEFORE_SURROGATES else last + 1):
            found[-1] = (found[-1][0], max(last, high))
        else:
            found.append((low, high))
    return found


def _is_surrogate(value: int) -> bool:
    return _BEFORE_SURROGATES < value < _AFTER_SURROGATES


def _folded(ranges: Ranges) -> Ranges:
    """With the other case of each ASCII letter, and of each character that stands alone."""
    found = list(ranges)
    for low, high in ranges:
        for first, last, shift in ((65, 90, 32), (97, 122, -32)):
            if max(low, first) <= min(high, last):
                found.append((max(low, first) + shift, min(high, last) + shift))
        if low == high and not _is_surrogate(low):
            sign = chr(low)
            other = [each for each in (sign.lower(), sign.upper()) if len(each) == 1 and each.lower() == sign.lower()]
            found += [(ord(each), ord(each)) for each in other]
    return found


def _complement(ranges: Ranges) -> Ranges:
    edges = [-1, *(edge for low, high in sorted(ranges) for edge in (low, high)), _LAST + 1]
    return [(low + 1, high - 1) for low, high in zip(edges[::2], edges[1::2], strict=True) if low + 1 < high]


def _hex(text: str) -> int | None:
    return int(text, 16) if text and all(sign in "0123456789abcdefABCDEF" for sign in text) else None


def _shown(text: str) -> str:
    return repr(text[:80])


def within_patterns(schema: dict[str, Any]) -> dict[str, Any]:
    """One node of a schema, its patterns translated: strings and names that match are fewer, never more.

    Where a name might match by one reading and not by another, no name is free beside the patterns, but for those that
    are required and match none. (A name that ends in a line break matches as Python has it.) Raises BadInputError as
    `translated` does.
    """
    found = dict(schema)
    if isinstance(found.get("pattern"), str):
        found["pattern"] = translated(found["pattern"]).text
    named = found.get("patternProperties")
    if not isinstance(named, dict) or not named:
        return found
    patterns = {pattern: translated(pattern) for pattern in named}
    rest, needed = found.get("additionalProperties", True), found.get("required")
    if rest is not False and all(each.exact for each in patterns.values()):
        patterns = {pattern: translated(pattern, line_end=True) for pattern in named}
    elif rest is not False:
        free = [name for name in _names(needed) if not any(matches(pattern, name) is not False for pattern in patterns)]
        found["properties"] = dict.fromkeys(free, rest) | _mapping(found.get("properties"))
        found["additionalProperties"] = False
    texts: dict[str, list[Any]] = {}
    for pattern, each in named.items():
        texts.setdefault(patterns[pattern].text, []).append(each)
    found["patternProperties"] = {text: each[0] if len(each) == 1 else {"allOf": each} for text, each in texts.items()}
    if isinstance(found.get("properties"), dict):  # of plain names all readers and this engine say the same
        odd = [name for name in found["properties"] if not (name.isascii() and name.isprintable())]
        for name in odd:
            more = [each for pattern, each in named.items() if matches(pattern, name) is not False]
            found["properties"] = found["properties"] | {name: {"allOf": [found["properties"][name], *more]}}
    return found


def _names(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


_deadline: ContextVar[float] = ContextVar("_deadline", default=float("inf"))


@contextmanager
def bounded_matching() -> Iterator[None]:
    """While inside, `matches` takes half a second in all, and knows nothing after it."""
    token = _deadline.set(time.monotonic() + _ALL_MATCH_SECONDS)
    try:
        yield
    finally:
        _deadline.reset(token)


def matches(pattern: str, name: str) -> bool | None:
    """Whether a name matches, as Python reads the pattern; None where it is no plain regex or takes long."""
    left = min(_MATCH_SECONDS, _deadline.get() - time.monotonic())
    if left <= 0:
        return None
    try:
        translated(pattern)  # before a regex is compiled that would take all memory
        return regex.search(pattern, name, timeout=left) is not None
    except (BadInputError, regex.error, TimeoutError, RecursionError, OverflowError, ValueError):
        return None
