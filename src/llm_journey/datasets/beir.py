"""Retrieval test sets in BEIR's layout (Thakur et al. 2021).

corpus.jsonl       {"_id", "title", "text"} a line
queries.jsonl      {"_id", "text"} a line
qrels/SPLIT.tsv    query-id, corpus-id, score; a heading first
"""

import csv
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_journey.core.errors import BadInputError
from llm_journey.text.readers import Limits
from llm_journey.text.records import read_json_rows


@dataclass(frozen=True)
class RetrievalSet:
    """texts: of documents by id, title and text joined by a space. queries and judgements: of those with a relevant
    document, in the file's order. left_out: queries without one."""

    texts: dict[str, str]
    queries: dict[str, str]
    judgements: dict[str, dict[str, float]]
    left_out: int


def read_retrieval_set(folder: Path, split: str = "test") -> RetrievalSet:
    """The documents, questions and judgements of a folder.

    Raises BadInputError naming the file and line of what is missing or wrong: a row without an id, an id that stands
    twice, a judgement of a query or a document that is not there.
    """
    judged = folder / "qrels" / f"{split}.tsv"
    for path in (folder / "corpus.jsonl", folder / "queries.jsonl", judged):
        if not path.is_file():
            raise BadInputError(
                f"{path}: no such file; a folder in BEIR's layout has corpus.jsonl, queries.jsonl, qrels/"
            )
    texts = {
        name: " ".join(part for part in (row.get("title"), row.get("text")) if isinstance(part, str) and part)
        for name, row in _rows(folder / "corpus.jsonl")
    }
    questions = {name: str(row.get("text") or "") for name, row in _rows(folder / "queries.jsonl")}
    gains = _judgements(judged, texts, questions)
    answered = {
        name: text for name, text in questions.items() if any(gain > 0 for gain in gains.get(name, {}).values())
    }
    if not answered:
        raise BadInputError(f"{judged}: judges no document of any query as relevant")
    return RetrievalSet(texts, answered, {name: gains[name] for name in answered}, len(questions) - len(answered))


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    seen: set[str] = set()
    for number, row, fault in read_json_rows(path, Limits()):
        name = row.get("_id") if isinstance(row, dict) else None
        if fault is not None or not isinstance(name, str | int):
            raise BadInputError(f"{path}, line {number}: {fault or 'is no object with an _id'}")
        if str(name) in seen:
            raise BadInputError(f"{path}, line {number}: the id {str(name)[:80]!r} stands twice")
        seen.add(str(name))
        yield str(name), row


def _judgements(path: Path, texts: Collection[str], questions: Collection[str]) -> dict[str, dict[str, float]]:
    gains: dict[str, dict[str, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file, delimiter="\t"), start=1):
            if number == 1 and row[:1] == ["query-id"]:
                continue
            if len(row) != 3:
                raise BadInputError(f"{path}, line {number}: has {len(row)} fields, not query-id, corpus-id, score")
            query, document, gain = row
            if query not in questions or document not in texts:
                raise BadInputError(f"{path}, line {number}: no query {query!r} or no document {document!r}")
            try:
                value = float(gain)
            except ValueError:
                raise BadInputError(f"{path}, line {number}: the score {gain[:40]!r} is no number") from None
            if not math.isfinite(value):
                raise BadInputError(f"{path}, line {number}: the score is not finite")
            gains.setdefault(query, {})[document] = value
    return gains
