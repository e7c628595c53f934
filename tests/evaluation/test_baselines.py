"""Baselines of prepared data: every arm is there, they are counted on the same text, and measured once."""

import json
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.prepare import DataConfig, iterate_texts, prepare_documents
from llm_journey.datasets.shards import TokenShards, write_shards
from llm_journey.evaluation import baselines
from llm_journey.evaluation.baselines import NAMES, measure, ngram_bits_per_byte
from llm_journey.evaluation.compressors import bits_per_byte_compressed, join_texts
from llm_journey.evaluation.ngram import KneserNey

END = 256


def _encode(texts: list[str]) -> list[list[int]]:
    return [list(text.encode("utf-8")) for text in texts]


def _shards(directory: Path, split: str, texts: Iterable[str], vocab_size: int = 257) -> TokenShards:
    write_shards(texts, _encode, directory, split=split, vocab_size=vocab_size, end_id=END, shard_tokens=5000)
    return TokenShards.open(directory, split)


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Path, TokenShards, TokenShards]:
    generator = random.Random(0)
    words = ["the", "river", "city", "is", "a", "small", "town", "in", "naïve", "north", "of", "and", "old"]
    source = tmp_path / "source.jsonl"
    rows = [{"text": " ".join(generator.choices(words, k=60)) + f" number {index}."} for index in range(200)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "prepared"
    prepare_documents(DataConfig(source=str(source), held_out=0.1), folder, resolve=Path)
    shards = tmp_path / "shards"
    return (
        folder,
        _shards(shards, "train", iterate_texts(folder, "train")),
        _shards(shards, "validation", iterate_texts(folder, "validation")),
    )


def test_every_baseline_is_measured_on_the_held_out_text(
    prepared: tuple[Path, TokenShards, TokenShards], tmp_path: Path
) -> None:
    folder, train, validation = prepared
    measured = measure(folder, train, validation, cache=tmp_path / "cache")
    assert tuple(measured) == NAMES
    texts = {split: list(iterate_texts(folder, split)) for split in ("train", "validation")}
    compressed = bits_per_byte_compressed(join_texts(texts["train"]), join_texts(texts["validation"]))
    assert {name: measured[name] for name in compressed} == compressed
    held_out_bytes = sum(len(text.encode()) for text in texts["validation"])
    for order in (1, 3, 5):
        model = KneserNey(order, 257, END).fit(_encode(texts["train"]))
        expected = model.bits_per_byte(_encode(texts["validation"]), held_out_bytes)
        assert measured[f"kneser_ney_{order}"] == pytest.approx(expected, rel=1e-12)
    assert measured["kneser_ney_5"] < measured["kneser_ney_1"]
    assert measured["xz_primed"] < measured["xz"] < measured["gzip"] * 1.2


def test_a_second_call_reads_the_cache_and_other_data_does_not(
    prepared: tuple[Path, TokenShards, TokenShards], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, train, validation = prepared
    monkeypatch.setenv("JOURNEY_HOME", str(tmp_path / "home"))
    first = measure(folder, train, validation)
    [cached] = list((tmp_path / "home" / "cache" / "baselines").iterdir())

    def never(prepared: Path) -> dict[str, float]:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(baselines, "_compressed", never)
        assert measure(folder, train, validation) == first
        other = _shards(tmp_path / "other", "validation", ["other text"])
        with pytest.raises(AssertionError, match="measured again"):
            measure(folder, train, other)
    for damaged in ("{", '{"gzip": 1}', json.dumps({**first, "xz": None}), "[]"):
        cached.write_text(damaged)
        assert measure(folder, train, validation) == first
        assert json.loads(cached.read_text()) == first


def test_a_cache_that_cannot_be_written_does_not_lose_the_result(
    prepared: tuple[Path, TokenShards, TokenShards], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert set(measure(*prepared, cache=tmp_path / "file")) == set(NAMES)


def test_splits_of_different_tokenizers_are_refused(tmp_path: Path) -> None:
    train = _shards(tmp_path / "a", "train", ["text"])
    validation = _shards(tmp_path / "b", "validation", ["text"], vocab_size=300)
    with pytest.raises(BadInputError, match="257 and 300 tokens"):
        measure(tmp_path, train, validation)


def test_long_training_data_is_cut_at_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["abab" * 5, "abcabc" * 5, "xyzxyz" * 50]
    validation = _shards(tmp_path, "validation", ["abab"])
    monkeypatch.setattr(baselines, "MAX_NGRAM_TOKENS", 60)
    cut = ngram_bits_per_byte(_shards(tmp_path, "train", texts), validation)
    assert cut == ngram_bits_per_byte(_shards(tmp_path, "train", texts[:2]), validation)
    one_long = ngram_bits_per_byte(_shards(tmp_path, "train", texts[2:]), validation)
    assert all(np.isfinite(value) for value in one_long.values())


def test_only_the_last_texts_that_fill_the_limit_are_kept() -> None:
    texts = [f"{index:03d}" for index in range(100)]
    kept = baselines._last_bytes(texts, 10)
    assert kept == b"097\n098\n099\n"
    assert baselines._last_bytes([], 10) == b""
