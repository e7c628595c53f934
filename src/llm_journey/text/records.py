"""Rows as documents: JSON Lines (plain or gzip) and Parquet. One document a row, the text under one key.

A row that cannot be used is counted, not fatal. Memory is bounded by one row (JSON Lines) or one batch of rows
(Parquet); a file that unpacks to far more than it holds (a "zip bomb") is given up in the middle.
"""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, cast

from llm_journey.text.documents import Limits, Unreadable
from llm_journey.text.plain import decode_line

_UTF8_MARK = b"\xef\xbb\xbf"
_PARQUET_BATCH_ROWS = 256
_MAX_KEYS_NAMED = 12


class RowCounts:
    """What happened to a file's rows: `faults` in words for the Problem, `used` the rows that gave a document."""

    def __init__(self, text_key: str) -> None:
        self.text_key = text_key
        self.used = 0
        self._faults: Counter[str] = Counter()
        self._first: dict[str, int] = {}
        self._keys: dict[str, None] = {}

    def fault(self, kind: str, row: int) -> None:
        self._faults[kind] += 1
        self._first.setdefault(kind, row)

    def text_of(self, row: Any, number: int) -> str | None:
        """The text of a decoded row, or None where it has none (counted)."""
        if not isinstance(row, dict):
            self.fault("no JSON object", number)
            return None
        for key in row:
            if len(self._keys) < _MAX_KEYS_NAMED:
                self._keys.setdefault(str(key)[:80])
        text = row.get(self.text_key)
        if not isinstance(text, str):
            self.fault(f"without text under {self.text_key!r}", number)
            return None
        self.used += 1
        return text

    def reason(self) -> str | None:
        """One line for the Problem, or None where every row was used."""
        if not self._faults:
            return None
        if not self.used and self._keys and self.text_key not in self._keys:
            keys = ", ".join(self._keys)
            return f"no row has the key {self.text_key!r}; keys that are there: {keys} (choose one with text_key)"
        parts = [
            f"{count} row{'s' if count > 1 else ''} {kind} (first: row {self._first[kind]})"
            for kind, count in self._faults.items()
        ]
        return "left out " + ", ".join(parts)


def read_json_lines(path: Path, counts: RowCounts, limits: Limits) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of each usable row of a .jsonl or .jsonl.gz file.

    Raises Unreadable where the file is damaged or unpacks beyond the limits; rows before that stay valid.
    """
    for number, row, fault in read_json_rows(path, limits):
        if fault is not None:
            counts.fault(fault, number)
        elif (text := counts.text_of(row, number)) is not None:
            yield number, text


def read_json_rows(path: Path, limits: Limits) -> Iterator[tuple[int, Any, str | None]]:
    """(line number from 1, row, fault) of each line that is not blank; a row is None where it is no JSON.

    fault: why there is no row, where its line is too long. Raises Unreadable as `read_json_lines` does.
    """
    with path.open("rb") as raw:
        packed = path.name.lower().endswith(".gz")
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw, mode="rb")) if packed else raw
        try:
            for number, line in _lines(file, raw if packed else None, limits):
                if line is None:
                    yield number, None, f"longer than {limits.line_bytes >> 20} MiB"
                elif stripped := line.strip():
                    yield number, _decode_row(stripped), None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Unreadable(f"damaged gzip file ({error}); only the rows before the damage were read") from None


def read_parquet(path: Path, counts: RowCounts, limits: Limits) -> Iterator[tuple[int, str]]:
    """(row number from 1, text) of each usable row of a Parquet file's text column."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise Unreadable("reading .parquet needs pyarrow: pip install 'llm-journey[data]'") from None
    try:
        with closing(parquet.ParquetFile(path, memory_map=True)) as file:
            _check_column(file, counts.text_key, path.stat().st_size, limits)
        # Dictionary columns keep a value that is repeated a million times in memory once.
        with closing(parquet.ParquetFile(path, memory_map=True, read_dictionary=[counts.text_key])) as file:
            number = total = 0
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=[counts.text_key]):
                for value in batch.column(0):
                    number += 1
                    text = counts.text_of({counts.text_key: value.as_py()}, number)
                    if text is not None:
                        total += len(text)
                        _check_expansion(total, path.stat().st_size, limits)
                        yield number, text
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise Unreadable(f"damaged Parquet file ({_one_line(error)})") from None


def _check_column(file: Any, key: str, file_bytes: int, limits: Limits) -> None:
    schema = file.schema_arrow
    if key not in schema.names:
        keys = ", ".join(schema.names[:_MAX_KEYS_NAMED])
        raise Unreadable(f"no column {key!r}; columns that are there: {keys} (choose one with text_key)")
    kind = str(schema.field(key).type)
    if not kind.removeprefix("dictionary<values=").removeprefix("large_").startswith("string"):
        raise Unreadable(f"column {key!r} holds {kind}, not text (choose another with text_key)")
    column = [str(name) for name in schema.names].index(key)
    if file.metadata.num_columns != len(schema.names):
        return  # nested columns: the rows themselves are bounded below
    unpacked = sum(
        file.metadata.row_group(group).column(column).total_uncompressed_size
        for group in range(file.metadata.num_row_groups)
    )
    _check_expansion(unpacked, file_bytes, limits)


def _decode_row(line: bytes) -> Any:
    try:
        return json.loads(decode_line(line)[0])
    except (ValueError, RecursionError):
        return None


def _lines(file: BinaryIO, packed: BinaryIO | None, limits: Limits) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, line) with None for a line over the limit; `packed` is the file that `file` unpacks."""
    number = total = 0
    while line := file.readline(limits.line_bytes + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(_UTF8_MARK)
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise Unreadable("JSON Lines in UTF-16; save the file as UTF-8")
        total += len(line)
        too_long = len(line) > limits.line_bytes
        while too_long and not line.endswith(b"\n"):
            line = file.readline(limits.line_bytes)
            total += len(line)
            if packed is not None:
                _check_expansion(total, packed.tell(), limits)
            if not line:
                break
        if packed is not None:
            _check_expansion(total, packed.tell(), limits)
        yield number, None if too_long else line


def _check_expansion(unpacked: int, packed: int, limits: Limits) -> None:
    if unpacked > limits.unpacked_bytes or (
        unpacked > limits.expansion_from and unpacked > limits.expansion * max(packed, 1)
    ):
        raise Unreadable(
            f"unpacks to over {unpacked >> 20} MiB, more than {limits.expansion} times its size or "
            f"{limits.unpacked_bytes >> 30} GiB: given up"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
