"""Rows of chats from where they are kept: JSON Lines, JSON, Parquet, or a hub data set, streamed."""

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.core.paths import cache_dir
from llm_journey.text.documents import Limits, Unreadable
from llm_journey.text.records import read_json_rows

CHAT_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
_JSON_BYTES = 256 << 20
_ROWS = 256


def chat_rows(source: str, *, split: str = "train") -> Iterator[tuple[str, Any]]:
    """(where, row) of each row of a file, a folder, a glob, or else of a data set on the hub; None for what is no JSON.

    A hub data set is named `owner/name`, or `owner/name:configuration`; nothing of it is stored but what `datasets`
    itself keeps in the cache. Raises BadInputError where there is no such source or no file of a known kind, and
    JourneyError where it cannot be read on.
    """
    path = Path(source).expanduser()
    if not (path.exists() or _is_glob(source)):
        if path.suffix or path.is_absolute() or source.count("/") != 1:
            raise BadInputError(
                f"{source}: no such file; give a file, a folder, a glob, or a hub data set as owner/name"
            )
        yield from _hub_rows(source, split)
        return
    files = chat_files(source)
    if not files:
        raise BadInputError(f"{source}: no file of chats there; known kinds: {', '.join(CHAT_SUFFIXES)}")
    for file in files:
        yield from _file_rows(file)


def chat_files(source: str) -> list[Path]:
    """The files of a file, a folder or a glob, sorted; none of what is none of these."""
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(item for item in path.rglob("*") if item.is_file() and _is_chat_file(item))
    if _is_glob(source):
        return sorted(Path(name) for name in glob.iglob(str(path), recursive=True) if _is_chat_file(Path(name)))  # noqa: PTH207
    return []


def _is_glob(source: str) -> bool:
    return any(mark in source for mark in "*?[")


def _is_chat_file(path: Path) -> bool:
    return path.name.lower().endswith(CHAT_SUFFIXES) and path.is_file()


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    name = path.name.lower()
    try:
        if name.endswith((".jsonl", ".jsonl.gz")):
            for number, row, fault in read_json_rows(path, Limits()):
                yield f"{path}:{number}", row if fault is None else None
        elif name.endswith(".parquet"):
            yield from _parquet_rows(path)
        elif name.endswith(".json"):
            yield from _json_rows(path)
        else:
            raise BadInputError(f"{path}: no file of chats; known kinds: {', '.join(CHAT_SUFFIXES)}")
    except Unreadable as unreadable:
        raise BadInputError(f"{path}: {unreadable}") from None
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.stat().st_size > _JSON_BYTES:
        raise BadInputError(f"{path}: larger than {_JSON_BYTES >> 20} MiB; save it as JSON Lines, which is streamed")
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path}: no JSON ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(rows, list):
        raise BadInputError(f"{path}: no list of rows; save each row as a line of a .jsonl file")
    yield from ((f"{path}: row {number}", row) for number, row in enumerate(rows, 1))


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise BadInputError("reading .parquet needs pyarrow: pip install 'llm-journey[data]'") from None
    number = 0
    try:
        with parquet.ParquetFile(path, memory_map=True) as file:
            for batch in file.iter_batches(batch_size=_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, ValueError) as error:
        raise BadInputError(f"{path}: damaged Parquet file ({' '.join(str(error).split())[:120]})") from None


def _hub_rows(source: str, split: str) -> Iterator[tuple[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise BadInputError("a hub data set needs datasets: pip install 'llm-journey[data]'") from None
    name, _, configuration = source.partition(":")
    try:
        rows = datasets.load_dataset(
            name, configuration or None, split=split, streaming=True, cache_dir=str(cache_dir() / "datasets")
        )
        for number, row in enumerate(rows, 1):
            yield f"{source}: row {number}", row
    except Exception as error:  # its errors have no type in common
        raise JourneyError(f"{source}: cannot be read from the hub ({' '.join(str(error).split())[:200]})") from error
