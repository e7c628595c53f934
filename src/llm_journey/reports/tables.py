"""Tables in Markdown files, generated from the ledger between markers, and a check that none is stale or typed by hand.

    <!-- ledger:NAME -->
    (the table: replaced whole)
    <!-- /ledger:NAME -->

NAME is a benchmark of the ledger. The newest row of each (benchmark, arm, metric) is shown, of the newest commit that
was measured, arms in the order in which they were first measured. Markers inside fenced code are text. Run as

    python -m llm_journey.reports.tables [--check] [--ledger benchmarks/ledger.jsonl] FILE...
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_journey.core import console, files, ledger
from llm_journey.core.errors import BadInputError, JourneyError, unknown_name
from llm_journey.reports import formatting

DEFAULT_LEDGER = Path("benchmarks/ledger.jsonl")
_OPEN = re.compile(r"^\s*<!--\s*ledger:([\w.-]+)\s*-->\s*$")
_CLOSE = re.compile(r"^\s*<!--\s*/ledger:([\w.-]+)\s*-->\s*$")
_FENCE = re.compile(r"^\s*(```+|~~~+)")
_HEAD = ("arm", "metric", "value", "unit", "spread", "n", "commit", "command")
_RIGHT = {"value", "n"}


def render_table(rows: Sequence[Mapping[str, Any]], benchmark: str) -> str:
    """The Markdown table of one benchmark. Raises BadInputError, listing the known ones, where it has no row."""
    chosen = latest(rows, benchmark)
    if not chosen:
        raise unknown_name("benchmark in the ledger", benchmark, {str(row.get("benchmark")) for row in rows})
    rule = ["---:" if name in _RIGHT else "---" for name in _HEAD]
    lines = [_HEAD, rule, *([_cell(row, name) for name in _HEAD] for row in chosen)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latest(rows: Sequence[Mapping[str, Any]], benchmark: str) -> list[Mapping[str, Any]]:
    """The newest row of each (arm, metric) of a benchmark; a later line is newer.

    Only rows of the newest commit that was measured: one table never sets figures of different code side by side.
    """
    newest: dict[tuple[str, str], Mapping[str, Any]] = {}
    found = [row for row in rows if row.get("benchmark") == benchmark]
    for row in found:
        if row.get("commit") == found[-1].get("commit"):
            newest[str(row.get("arm")), str(row.get("metric"))] = row  # keeps the place of the first
    return list(newest.values())


def fill(text: str, rows: Sequence[Mapping[str, Any]], where: str) -> tuple[str, list[str]]:
    """A Markdown text with every marked table made anew, and the names of the tables that changed.

    Raises BadInputError, naming the line, for markers that do not pair.
    """
    lines = text.split("\n")
    filled: list[str] = []
    changed: list[str] = []
    done = 0
    for start, end, name in _marked_spans(lines, where):
        table = ["", *render_table(rows, name).split("\n"), ""]
        if lines[start + 1 : end] != table:
            changed.append(name)
        filled += [*lines[done : start + 1], *table]
        done = end
    return "\n".join([*filled, *lines[done:]]), changed


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill or check the files; 0: all is as the ledger says, 1: a table is stale (--check), 2: bad input."""
    parser = argparse.ArgumentParser(prog="python -m llm_journey.reports.tables", description="Tables from the ledger.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="Markdown files with markers")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a table is stale")
    parser.add_argument("--ledger", type=Path, default=DEFAULT_LEDGER, help=f"default: {DEFAULT_LEDGER}")
    chosen = parser.parse_args(arguments)
    try:
        stale = _run(chosen.files, chosen.ledger, check=chosen.check)
    except JourneyError as error:
        console.messages().print(f"error: {error}", markup=False, soft_wrap=True)
        return error.exit_code
    return 1 if stale and chosen.check else 0


def _run(paths: Sequence[Path], ledger_path: Path, *, check: bool) -> bool:
    rows = ledger.read(ledger_path) if ledger_path.exists() else []
    if not all(isinstance(row, dict) for row in rows):
        raise BadInputError(f"{ledger_path}: holds a line that is no JSON object")
    any_changed = False
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(f"{path}: cannot be read ({error})") from None
        filled, changed = fill(text, rows, str(path))
        if not changed:
            continue
        any_changed = True
        names = ", ".join(changed)
        if check:
            said = f"{path}: not what the ledger says: {names}; run `python -m llm_journey.reports.tables {path}`"
        else:
            files.write_text(path, filled)
            said = f"{path}: written anew: {names}"
        console.messages().print(said, markup=False, soft_wrap=True)
    return any_changed


def _marked_spans(lines: Sequence[str], where: str) -> Iterator[tuple[int, int, str]]:
    """(line of the opening marker, line of the closing one, name), outside of fenced code."""
    fence = ""
    opened: tuple[int, str] | None = None
    for index, line in enumerate(lines):
        mark = _FENCE.match(line)
        if mark and opened is None and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        if fence:
            continue
        opening, closing = _OPEN.match(line), _CLOSE.match(line)
        if opening:
            if opened is not None:
                raise BadInputError(f"{where}:{index + 1}: a table opens inside the table {opened[1]!r}")
            opened = (index, opening[1])
        elif closing:
            if opened is None or opened[1] != closing[1]:
                raise BadInputError(f"{where}:{index + 1}: <!-- /ledger:{closing[1]} --> closes no table of that name")
            yield opened[0], index, opened[1]
            opened = None
    if opened is not None:
        raise BadInputError(f"{where}:{opened[0] + 1}: the table {opened[1]!r} is never closed")


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return "–"
    if name == "value" and isinstance(value, int | float):
        return formatting.significant(value, 4)
    if name == "spread" and isinstance(value, list):
        return " to ".join(formatting.significant(float(end), 4) for end in value)
    text = str(value).replace("\n", " ").replace("|", "\\|")
    return f"`{text.replace('`', '')}`" if name in {"commit", "command"} else text.replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
