"""From what a source serves to the files that the catalog names: small, exact conversions.

Each reads a folder of downloaded files and writes the resulting files, byte for byte the same on every machine, so
that their sha256 can be pinned. A shuffle here is Python's `random.Random(0).shuffle`, which is specified to be stable.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from llm_journey.core.errors import unknown_name

Converter = Callable[[Path, Path], None]


def convert(name: str, source: Path, target: Path) -> None:
    """Run the conversion `name` from the files in folder `source` into folder `target`."""
    try:
        converter = CONVERTERS[name]
    except KeyError:
        raise unknown_name("conversion", name, CONVERTERS) from None
    converter(source, target)


def _wiki_summaries(source: Path, target: Path) -> None:
    """{title: {"title", "extract", ...}} -> one {"title", "text"} a line, in the order of the source."""
    articles = json.loads((source / "summaries_en-us.json").read_text(encoding="utf-8"))
    rows = ({"title": article["title"], "text": article["extract"]} for article in articles.values())
    _write_rows(target / "wiki-summaries.jsonl", rows)


def _gsm8k(source: Path, target: Path) -> None:
    """Half of the test part: the first 660 rows of a seeded shuffle."""
    rows = list(_read_rows(source / "test.jsonl"))
    random.Random(0).shuffle(rows)
    _write_rows(target / "dev.jsonl", rows[:660])


def _halueval(source: Path, target: Path) -> None:
    """Half of the general part: the first 2,250 lines, as they are, of a seeded shuffle."""
    lines = (source / "general_data.json").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    random.Random(0).shuffle(lines)
    _write_text(target / "general.jsonl", "".join(f"{line}\n" for line in lines[:2250]))


def _self_instruct(source: Path, target: Path) -> None:
    """Each seed task with its first (and only) instance laid flat."""
    rows = (
        {
            "id": task["id"],
            "instruction": task["instruction"],
            "input": task["instances"][0]["input"],
            "output": task["instances"][0]["output"],
            "is_classification": task["is_classification"],
        }
        for task in _read_rows(source / "seed_tasks.jsonl")
    )
    _write_rows(target / "seed_tasks.jsonl", rows)


def _read_rows(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _write_rows(path: Path, rows: Iterable[Any]) -> None:
    _write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8"))


CONVERTERS: dict[str, Converter] = {
    "wiki-summaries": _wiki_summaries,
    "gsm8k": _gsm8k,
    "halueval": _halueval,
    "self-instruct": _self_instruct,
}
