"""Tables from the ledger: newest rows, exact check, markers in code left alone, clear errors."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_journey.core.errors import BadInputError
from llm_journey.reports.tables import fill, main, render_table


def _row(arm: str, metric: str, value: float, **more: Any) -> dict[str, Any]:
    return {
        "benchmark": "pretrain", "arm": arm, "metric": metric, "value": value, "unit": "s", "spread": None, "n": 1,
        "commit": "abc123", "command": "python benchmarks/pretrain.py", **more,
    }  # fmt: skip


ROWS = [
    _row("ours", "time", 30.0),
    _row("nanoGPT", "time", 128.0),
    _row("ours", "time", 20.5, spread=[19.25, 21.75], n=3),
    _row("x", "y", 1.0, benchmark="other"),
]
TABLE = """| arm | metric | value | unit | spread | n | commit | command |
| --- | --- | ---: | --- | --- | ---: | --- | --- |
| ours | time | 20.50 | s | 19.25 to 21.75 | 3 | `abc123` | `python benchmarks/pretrain.py` |
| nanoGPT | time | 128.0 | s | – | 1 | `abc123` | `python benchmarks/pretrain.py` |"""
MARKED = "# Title\n\n<!-- ledger:pretrain -->\n{}\n<!-- /ledger:pretrain -->\n\nmore\n"


def test_the_newest_row_of_each_arm_and_metric_is_shown() -> None:
    assert render_table(ROWS, "pretrain") == TABLE


def test_filling_is_idempotent_and_touches_nothing_else() -> None:
    filled, changed = fill(MARKED.format("typed by hand"), ROWS, "README.md")
    assert changed == ["pretrain"]
    assert filled == MARKED.format("\n" + TABLE + "\n")
    assert fill(filled, ROWS, "README.md") == (filled, [])


def test_markers_in_fenced_code_are_text() -> None:
    text = "````\n```\n<!-- ledger:none -->\n````\n~~~md\n<!-- ledger:none -->\n~~~\n" + MARKED.format("")
    filled, changed = fill(text, ROWS, "README.md")
    assert changed == ["pretrain"]
    assert filled.count("<!-- ledger:none -->") == 2


def test_cells_cannot_break_the_table() -> None:
    made = render_table([_row("a|b\n<script>", "m", 1e-7, command="x | y `z`", commit=None)], "pretrain")
    assert made.split("\n")[2] == r"| a\|b &lt;script> | m | 1.000e-07 | s | – | 1 | – | `x \| y z` |"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- ledger:nothing -->\n<!-- /ledger:nothing -->", "'nothing'; known: other, pretrain"),
        ("a\n<!-- ledger:pretrain -->\n", r"F:2: the table 'pretrain' is never closed"),
        ("<!-- /ledger:pretrain -->", "F:1: .* closes no table"),
        ("<!-- ledger:pretrain -->\n<!-- /ledger:other -->", "F:2: .* closes no table"),
        ("<!-- ledger:pretrain -->\n<!-- ledger:other -->", "F:2: a table opens inside"),
    ],
)
def test_bad_markers(text: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        fill(text, ROWS, "F")


def _prepare(tmp_path: Path, table: str) -> list[str]:
    (tmp_path / "README.md").write_text(MARKED.format(table), encoding="utf-8")
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return ["--ledger", str(tmp_path / "ledger.jsonl"), str(tmp_path / "README.md")]


def test_the_check_fails_on_a_stale_table_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _prepare(tmp_path, "\n" + TABLE.replace("20.50", "10.50") + "\n")
    before = (tmp_path / "README.md").read_bytes()
    assert main(["--check", *arguments]) == 1
    assert (tmp_path / "README.md").read_bytes() == before
    assert main(arguments) == 0
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == MARKED.format("\n" + TABLE + "\n")
    assert main(["--check", *arguments]) == 0
    assert capsys.readouterr().out == ""


def test_a_new_measurement_makes_a_table_stale(tmp_path: Path) -> None:
    arguments = _prepare(tmp_path, "\n" + TABLE + "\n")
    assert main(["--check", *arguments]) == 0
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write(json.dumps(_row("ours", "time", 19.0)) + "\n")
    assert main(["--check", *arguments]) == 1


def test_bad_input_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "llm_journey.reports.tables", "--check", str(tmp_path / "absent.md")],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "absent.md: cannot be read" in run.stderr
    (tmp_path / "README.md").write_text("text")
    for broken in ("{broken\n", "[1]\n"):
        (tmp_path / "ledger.jsonl").write_text(broken)
        assert main(["--ledger", str(tmp_path / "ledger.jsonl"), str(tmp_path / "README.md")]) == 2
