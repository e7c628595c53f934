"""JSON Lines and Parquet: usable rows are read, faults are counted in one line, bombs are given up."""

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from llm_journey.text.documents import Limits, Unreadable
from llm_journey.text.records import RowCounts, read_json_lines, read_parquet

MIB = 1 << 20


def read_lines(path: Path, limits: Limits | None = None, key: str = "text") -> tuple[list[tuple[int, str]], str | None]:
    counts = RowCounts(key)
    return list(read_json_lines(path, counts, limits or Limits())), counts.reason()


def test_rows_and_their_faults(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "first"}\r\n'
        b"\n"
        b'{"text": "caf\xe9"}\n'
        b'{"text": 7}\n'
        b'["no object"]\n'
        b'{"text": "cut\n'
        b'{"text": "' + b"x" * 300 + b'"}\n'
        b'{"other": 1}\n'
        b'{"text": "last \\ud83d\\ude00"}'
    )
    found, reason = read_lines(path, Limits(line_bytes=200))
    assert found == [(1, "first"), (3, "café"), (9, "last 😀")]
    assert reason == (
        "left out 2 rows without text under 'text' (first: row 4), 2 rows no JSON object (first: row 5), "
        "1 row longer than 0 MiB (first: row 7)"
    )


def test_a_key_that_is_nowhere_names_the_ones_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"title": "a", "body": "b"}\n{"body": "c", "id": 3}\n', encoding="utf-8")
    found, reason = read_lines(path)
    assert found == []
    assert reason == "no row has the key 'text'; keys that are there: title, body, id (choose one with text_key)"
    assert read_lines(path, key="body") == ([(1, "b"), (2, "c")], None)


def test_deeply_nested_rows_are_faults(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("[" * 200_000 + "\n" + '{"text": "good"}\n', encoding="utf-8")
    found, reason = read_lines(path)
    assert found == [(2, "good")]
    assert reason == "left out 1 row no JSON object (first: row 1)"


def test_utf16_rows_name_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n', encoding="utf-16")
    with pytest.raises(Unreadable, match="save the file as UTF-8"):
        read_lines(path)


def test_gzip_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n') + gzip.compress(b'{"text": "two"}\n'))
    assert read_lines(path) == ([(1, "one"), (2, "two")], None)


def test_a_truncated_gzip_file_keeps_the_rows_before_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    rows = b"".join(b'{"text": "%d"}\n' % number for number in range(50_000))
    path.write_bytes(gzip.compress(rows)[:-2000])
    found = []
    with pytest.raises(Unreadable, match="damaged gzip file"):
        for _, text in read_json_lines(path, RowCounts("text"), Limits()):
            found.append(text)
    assert found[:3] == ["0", "1", "2"]
    assert len(found) > 1000


@pytest.mark.parametrize("line", [b"\0" * MIB, b'{"text": "aaaa"}\n' * (MIB // 17)])
def test_a_gzip_bomb_is_given_up(tmp_path: Path, line: bytes) -> None:
    """ogx#6099: a zip bomb took 17 GB in a reader; here one line without end, and millions of equal rows."""
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(100):
            file.write(line)
    assert path.stat().st_size < MIB
    limits = Limits(expansion_from=8 * MIB, line_bytes=MIB, expansion=100)
    with pytest.raises(Unreadable, match="more than 100 times its size"):
        read_lines(path, limits)


def write_parquet(path: Path, columns: dict[str, object], **options: object) -> Path:
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def read_columns(path: Path, limits: Limits | None = None, key: str = "text") -> list[tuple[int, str]]:
    return list(read_parquet(path, RowCounts(key), limits or Limits()))


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_parquet_rows(tmp_path: Path, kind: pyarrow.DataType) -> None:
    texts = pyarrow.array(["one", None, "zwölf", "one"] * 300, type=kind)
    path = write_parquet(tmp_path / "a.parquet", {"id": list(range(1200)), "text": texts}, row_group_size=500)
    counts = RowCounts("text")
    found = list(read_parquet(path, counts, Limits()))
    assert found[:3] == [(1, "one"), (3, "zwölf"), (4, "one")]
    assert len(found) == 900
    assert counts.reason() == "left out 300 rows without text under 'text' (first: row 2)"


def test_parquet_columns_are_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"body": ["x"], "score": [1], "tags": [["a", "b"]]})
    with pytest.raises(Unreadable, match="no column 'text'; columns that are there: body, score, tags"):
        read_columns(path)
    with pytest.raises(Unreadable, match="column 'score' holds int64, not text"):
        read_columns(path, key="score")
    with pytest.raises(Unreadable, match="column 'tags' holds list"):
        read_columns(path, key="tags")
    assert read_columns(path, key="body") == [(1, "x")]


def test_a_parquet_bomb_is_given_up(tmp_path: Path) -> None:
    """One long value that a dictionary repeats: small on disk, endless when read."""
    value = json.dumps(list(range(20_000)))
    path = write_parquet(tmp_path / "bomb.parquet", {"text": [value] * 2000})
    assert path.stat().st_size < MIB
    with pytest.raises(Unreadable, match="more than 200 times its size"):
        read_columns(path, Limits(expansion_from=8 * MIB))


@pytest.mark.parametrize("place", [10, -12, -200])
def test_a_flipped_parquet_byte_is_no_crash(tmp_path: Path, place: int) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": [f"row {number}" for number in range(500)]})
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    try:
        assert len(read_columns(path)) <= 500
    except Unreadable as unreadable:
        assert "\n" not in str(unreadable)
