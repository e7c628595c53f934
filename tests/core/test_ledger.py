"""The ledger of measurements: whole rows, appended, read back as they were."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from llm_journey.core import ledger, lineage
from llm_journey.core.errors import BadInputError, JourneyError, unknown_name


def _row(value: float = 1.5, **changes: Any) -> dict[str, Any]:
    named: dict[str, Any] = {
        "benchmark": "speed",
        "arm": "ours",
        "metric": "tokens/s",
        "value": value,
        "unit": "1/s",
        "command": "run it",
        "config": {"width": 8},
    }
    return ledger.row(**(named | changes))


def test_a_row_says_what_made_it() -> None:
    row = _row(spread=(1.0, 2.0), n=3, seed=7)
    what = {"benchmark", "arm", "metric", "value", "unit", "spread", "n"}
    assert set(row) == what | {"seed", "command", "commit", "config_sha256", "hardware", "versions", "date"}
    assert row["spread"] == [1.0, 2.0] and row["n"] == 3 and len(row["config_sha256"]) == 64
    assert row["versions"]["python"] and row["hardware"]["cores"] >= 1
    assert _row(config={"width": 9})["config_sha256"] != row["config_sha256"]


def test_rows_are_appended_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.jsonl"
    first, second = _row(1.0), _row(2.0, command="separators \u2028 and \x85 are text")
    ledger.append(path, [first])
    before = path.read_bytes()
    ledger.append(path, [second, first])
    assert path.read_bytes().startswith(before)
    assert ledger.read(path) == [first, second, first]
    path.write_bytes(b"")
    assert ledger.read(path) == []


@pytest.mark.parametrize("line", ["{", "[1]", "5", "", '{"a": 1}{"b": 2}'])
def test_a_line_that_is_no_row_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    with pytest.raises(BadInputError, match=r"ledger\.jsonl:2: not a JSON object"):
        ledger.read(path)


def test_nothing_that_json_cannot_hold_is_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with pytest.raises(ValueError, match="JSON"):
        ledger.append(path, [_row(1.0), _row(float("nan"))])
    assert not path.exists()


def test_a_flush_that_fails_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        ledger.append(tmp_path / "ledger.jsonl", [_row()])


def test_lineage_outside_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lineage, "__file__", str(tmp_path / "site" / "a" / "b" / "lineage.py"))
    assert lineage.commit() is None
    assert set(lineage.describe()) == {"command", "versions", "hardware", "commit"}
    assert lineage.hardware()["processor"]


def test_exit_codes_and_unknown_names() -> None:
    error = unknown_name("order", "zigzag", ("windows", "documents"))
    assert str(error) == "unknown order 'zigzag'; known: documents, windows"
    assert (error.exit_code, JourneyError("x").exit_code) == (2, 1)
