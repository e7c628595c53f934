"""Files of pairs: what is read, what is refused by line, and that a held-out source is never trained on."""

import json
import random
from pathlib import Path

import pytest

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.pair_files import is_pair_file, read_pair_file, split_pairs

PAIRS = [(f"source {number}", f"target {number % 7}") for number in range(400)]


def _jsonl(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_both_forms_say_the_same(tmp_path: Path) -> None:
    lines = _jsonl(tmp_path / "a.jsonl", [{"target": b, "id": 3, "source": a} for a, b in PAIRS])
    table = tmp_path / "a.TSV"
    rows = ["target\tnote\tsource", *(f"{b}\t\t{a}" for a, b in PAIRS)]
    table.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode() + b"\r\n\r\n")
    assert read_pair_file(lines) == read_pair_file(table) == PAIRS
    assert read_pair_file(lines, 3) == PAIRS[:3]
    assert is_pair_file(str(lines)) and is_pair_file(str(table)) and not is_pair_file("dates")


def test_texts_are_taken_as_they_stand_and_each_pair_once(tmp_path: Path) -> None:
    odd = [(" a\u00a0 ", "e\u0301\n"), ("b", "\u2028"), (" a\u00a0 ", "e\u0301\n"), ("b", "x")]
    file = _jsonl(tmp_path / "a.jsonl", [{"source": a, "target": b} for a, b in odd])
    assert read_pair_file(file) == [odd[0], odd[1], odd[3]]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", '{"source": "a", "target": "b"}\n[1]\n', r"a\.jsonl:2: no JSON object"),
        ("a.jsonl", '{"source": "a", "answer": "b"}\n', r":1: no text under 'target'; its keys are: source, answer"),
        ("a.jsonl", '{"source": 1, "target": "b"}\n', r":1: no text under 'source'"),
        ("a.jsonl", '{"source": "a", "target": ""}\n', r":1: no text under 'target'"),
        ("a.jsonl", '{"source": "a", "target": "b"}\n', "holds 1 pairs; at least two"),
        ("a.jsonl", "", "holds 0 pairs"),
        ("a.jsonl", "[" * 100_000, ":1: no JSON object"),
        ("a.tsv", "a\tb\nc\td\n", r":1: the first line must name the columns, 'source' and 'target'"),
        ("a.tsv", "source\ttarget\na\tb\n\nc\n", r":4: 1 columns, the first line names 2"),
        ("a.tsv", "source\ttarget\na\t\n", r":2: the column 'target' is empty"),
        ("a.tsv", "source\ttarget\n" + "a" * (2 << 20) + "\tb\n", r":2: longer than 1 MiB"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(name: str, content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(BadInputError, match=reason):
        read_pair_file(tmp_path / name)


def test_what_cannot_be_read_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"source\ttarget\n\xff\tb\n")
    with pytest.raises(BadInputError, match=":2: not UTF-8"):
        read_pair_file(tmp_path / "a.tsv")
    with pytest.raises(BadInputError, match="no such file"):
        read_pair_file(tmp_path / "b.tsv")


def test_no_source_is_on_both_sides_and_more_pairs_move_none() -> None:
    pairs = [*PAIRS, *((source, f"{target}!") for source, target in PAIRS[::2])]
    split = split_pairs(pairs, 0.1, 0)
    sources = {name: {source for source, _ in side} for name, side in split.items()}
    assert not sources["train"] & sources["validation"]
    assert sorted(split["train"] + split["validation"]) == sorted(pairs)
    assert 20 <= len(sources["validation"]) <= 60, "about a tenth of 400"
    shuffled = random.Random(1).sample(pairs, len(pairs))
    more = split_pairs([*shuffled, *((f"new {number}", "x") for number in range(200))], 0.1, 0)
    assert {source for source, _ in more["validation"] if not source.startswith("new")} == sources["validation"]
    assert {source for source, _ in split_pairs(pairs, 0.1, 1)["validation"]} != sources["validation"]


@pytest.mark.parametrize("held_out", [1e-12, 1 - 1e-12])
def test_neither_side_is_ever_empty(held_out: float) -> None:
    split = split_pairs(PAIRS[:5], held_out, 0)
    assert split["train"] and split["validation"]
