"""What a run folder holds, read leniently: a run may be unfinished, killed, or lack every optional file.

Only `run.json` is needed. A file that is damaged is left out and named under `problems`, so that a report says what it
could not show. Values come from files, so nothing here trusts their types.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from llm_journey.core.errors import BadInputError

_MAX_FILE_BYTES = 256 << 20
# Shares of right answers, which only some objectives have, with their names for people.
SHARES = {
    "exact_match": "exact match",
    "token_accuracy": "tokens right, those before given",
    "answer_accuracy": "answers' tokens right, those before given",
    "masked_accuracy": "masked tokens right",
    "span_accuracy": "span tokens right, those before given",
    "unigram_accuracy": "always the commonest token",
    "bigram_accuracy": "always the likeliest after the one before",
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run folder's content; `training` and `validation` are the rows of metrics.jsonl by kind, ordered by step."""

    directory: Path
    information: Row
    training: tuple[Row, ...]
    validation: tuple[Row, ...]
    samples: tuple[Row, ...]
    vocabulary: Row
    preparation: Row
    recipe: str
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        """The run's name; its folder's where run.json gives none."""
        return str(self.information.get("name") or self.directory.name)

    @property
    def status(self) -> str:
        """running, finished, interrupted or failed; "unknown" where run.json does not say."""
        return str(self.information.get("status") or "unknown")

    @property
    def figures(self) -> dict[str, float]:
        """The finite numbers among the run's figures; validation figures of a run cut short come from its last row."""
        found = numbers(self.information.get("figures"))
        last = numbers(self.validation[-1]) if self.validation else {}
        for key in ("validation_loss", "perplexity", "bits_per_byte", *SHARES):
            if key not in found and key in last:
                found[key] = last[key]
        return found

    @property
    def seconds(self) -> float | None:
        """Training time in seconds, None where it was not recorded."""
        seconds = self.information.get("seconds")
        return float(seconds) if is_number(seconds) else None

    @property
    def baselines(self) -> dict[str, float]:
        """Bits per byte of each baseline, by name."""
        return numbers(self.information.get("baselines"))

    def section(self, key: str) -> Row:
        """A mapping inside run.json, empty where it is missing or something else."""
        value = self.information.get(key)
        return value if isinstance(value, dict) else {}


def read_run(directory: Path) -> Run:
    """Read a run folder. Raises BadInputError where it is none or where its run.json cannot be read."""
    problems: list[str] = []
    information = _read_information(directory)
    rows = sorted(_read_rows(directory / "metrics.jsonl", problems), key=lambda row: row["step"])
    return Run(
        directory=directory,
        information=information,
        training=tuple(row for row in rows if "loss" in row),
        validation=tuple(row for row in rows if "validation_loss" in row),
        samples=tuple(_read_rows(directory / "samples.jsonl", problems)),
        vocabulary=read_mapping(directory / "vocabulary.json", problems),
        preparation=read_mapping(directory / "preparation.json", problems),
        recipe=_read_text(directory / "recipe.yaml", problems) or "",
        problems=tuple(problems),
    )


def series(rows: Iterable[Mapping[str, Any]], value: str, by: str = "step") -> tuple[list[float], list[float]]:
    """The points (row[by], row[value]) of the rows where both are finite numbers, as two lists."""
    points = [(row[by], row[value]) for row in rows if is_number(row.get(by)) and is_number(row.get(value))]
    return [float(x) for x, _ in points], [float(y) for _, y in points]


def numbers(value: Any) -> dict[str, float]:
    """The finite numbers of a mapping; nothing where it is no mapping."""
    if not isinstance(value, Mapping):
        return {}
    return {str(key): float(item) for key, item in value.items() if is_number(item)}


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a finite int or float (a bool is not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_information(directory: Path) -> Row:
    path = directory / "run.json"
    if not path.is_file():
        raise BadInputError(f"{directory}: no run.json here, so this is no run folder; `journey runs list` shows runs")
    problems: list[str] = []
    value = read_mapping(path, problems)
    if problems:
        raise BadInputError(f"{path}: {problems[0].partition(': ')[2]}; give another run")
    return value


def read_mapping(path: Path, problems: list[str]) -> Row:
    """The JSON object in a file, empty where there is none; what is wrong with the file goes to `problems`."""
    text = _read_text(path, problems)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        problems.append(f"{path.name}: not a JSON object")
        return {}
    return value


def _read_rows(path: Path, problems: list[str]) -> list[Row]:
    """The rows of a JSON-lines file that are objects with a step; others (a torn last line) are counted."""
    rows: list[Row] = []
    left_out = 0
    for line in (_read_text(path, problems) or "").split("\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and is_number(row.get("step")):
            rows.append(row)
        else:
            left_out += 1
    if left_out:
        problems.append(f"{path.name}: {left_out} {'line' if left_out == 1 else 'lines'} could not be read")
    return rows


def _read_text(path: Path, problems: list[str]) -> str | None:
    """A file's text, None where it is absent; a file that is too large or unreadable is a problem."""
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > _MAX_FILE_BYTES:
            problems.append(f"{path.name}: larger than {_MAX_FILE_BYTES >> 20} MiB")
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        problems.append(f"{path.name}: cannot be read ({error.strerror})")
        return None
