"""The append-only ledger of measurements: one JSON object a line, from which every table is generated.

A row: benchmark, arm, metric, value, unit, spread (low, high), n, seed, command, commit, config_sha256, hardware,
versions, date.
"""

import datetime
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_journey.core import lineage
from llm_journey.core.errors import BadInputError
from llm_journey.core.files import sha256_json


def row(
    *,
    benchmark: str,
    arm: str,
    metric: str,
    value: float,
    unit: str,
    command: str,
    config: Any,
    spread: Sequence[float] | None = None,
    n: int = 1,
    seed: int | None = None,
) -> dict[str, Any]:
    """A whole ledger row; lineage is filled in from this machine."""
    made_by = lineage.describe()
    return {
        "benchmark": benchmark,
        "arm": arm,
        "metric": metric,
        "value": value,
        "unit": unit,
        "spread": list(spread) if spread is not None else None,
        "n": n,
        "seed": seed,
        "command": command,
        "config_sha256": sha256_json(config),
        "commit": made_by["commit"],
        "hardware": made_by["hardware"],
        "versions": made_by["versions"],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append rows in one write, flushed to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(item, ensure_ascii=False, allow_nan=False) + "\n" for item in rows)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """All rows of a ledger, oldest first. Raises BadInputError naming a line that is no JSON object."""
    rows = []
    text = path.read_text(encoding="utf-8").removesuffix("\n")
    for number, line in enumerate(text.split("\n") if text else (), start=1):  # a string may hold other line ends
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise BadInputError(f"{path}:{number}: not a JSON object")
        rows.append(value)
    return rows
