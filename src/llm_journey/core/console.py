"""Data goes to standard output, everything said to a person goes to standard error. `NO_COLOR` is obeyed by rich."""

import json
import sys
from functools import cache
from typing import Any

from rich.console import Console


@cache
def messages() -> Console:
    """The console for progress and messages (standard error)."""
    return Console(stderr=True, highlight=False)


@cache
def output() -> Console:
    """The console for tables and text that a person asked for (standard output)."""
    return Console(highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on standard output, for scripts."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()
