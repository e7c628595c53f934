"""Test sets in BEIR's layout, and what is wrong with one, by file and line."""

import json
from pathlib import Path

import pytest

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.beir import read_retrieval_set


def write(folder: Path, *, judged: str = "1\ta\t2\n2\tb\t0\n") -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": "a", "title": "Bridges", "text": "of stone"}, {"_id": "b", "title": "", "text": "Boats"}]
    queries = [{"_id": 1, "text": "stone bridges"}, {"_id": "2", "text": "boats"}]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")
    return folder


def test_what_is_read(tmp_path: Path) -> None:
    found = read_retrieval_set(write(tmp_path))
    assert found.texts == {"a": "Bridges of stone", "b": "Boats"}
    assert found.queries == {"1": "stone bridges"} and found.judgements == {"1": {"a": 2.0}} and found.left_out == 1


@pytest.mark.parametrize(
    ("judged", "reason"),
    [
        ("1\tz\t1\n", r"line 2: no query '1' or no document 'z'"),
        ("9\ta\t1\n", r"line 2: no query '9'"),
        ("1\ta\n", r"line 2: has 2 fields"),
        ("1\ta\thigh\n", r"line 2: the score 'high' is no number"),
        ("1\ta\tnan\n", r"line 2: the score is not finite"),
        ("1\ta\t0\n", r"judges no document of any query as relevant"),
    ],
)
def test_wrong_judgements(judged: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=reason):
        read_retrieval_set(write(tmp_path, judged=judged))


def test_wrong_rows(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"corpus\.jsonl: no such file"):
        read_retrieval_set(tmp_path)
    write(tmp_path)
    with pytest.raises(BadInputError, match=r"dev\.tsv: no such file"):
        read_retrieval_set(tmp_path, "dev")
    path = tmp_path / "corpus.jsonl"
    for line, reason in (
        ('{"text": "x"}', "is no object with an _id"),
        ("{", "is no object"),
        ('{"_id": "a"}', "stands twice"),
    ):
        path.write_text(f'{{"_id": "a", "text": "y"}}\n{line}\n', encoding="utf-8")
        with pytest.raises(BadInputError, match=rf"corpus\.jsonl, line 2: .*{reason}"):
            read_retrieval_set(tmp_path)
