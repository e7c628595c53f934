"""Errors at the boundary. Each message is one line: what is wrong, where, what is allowed, what to do."""

from collections.abc import Iterable


class JourneyError(Exception):
    """Something failed although the input was well formed (a full disk, no network). Exit code 1."""

    exit_code = 1


class BadInputError(JourneyError):
    """What was asked for cannot be done as asked: a wrong key, a missing file, an unknown name. Exit code 2."""

    exit_code = 2


def unknown_name(kind: str, name: str, known: Iterable[object]) -> BadInputError:
    """The error for a name that is in no lookup; it lists the known ones."""
    names = ", ".join(sorted(str(item) for item in known))
    return BadInputError(f"unknown {kind} {name!r}; known: {names}")
