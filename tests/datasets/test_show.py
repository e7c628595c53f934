"""Samples: what a person reads of a prepared corpus is what stands in it."""

import json
from collections import Counter
from pathlib import Path

import pytest

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.datasets.prepare import DataConfig, iterate_rows, prepare_documents
from llm_journey.datasets.show import show_samples


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    texts = [f"Sentence number {number} of this small corpus stands here." for number in range(40)]
    texts += ["short one", "2 3", texts[0]]
    source = tmp_path / "corpus.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    prepare_documents(DataConfig(source=str(source), held_out=0.3), tmp_path / "out", resolve=Path)
    return tmp_path / "out"


def test_samples_are_documents_of_the_corpus(prepared: Path) -> None:
    samples = show_samples(prepared, count=6)
    rows = {split: dict(iterate_rows(prepared, split)) for split in ("train", "validation")}
    assert len(samples.kept) == 6
    assert all(rows[sample.split][sample.identifier] == sample.text for sample in samples.kept)
    assert len({sample.identifier for sample in samples.kept}) == 6
    assert [sample.reason for sample in samples.dropped] == [
        "too short (2 words)",
        "too short (2 words)",
        "duplicate (of corpus.jsonl#1)",
    ]
    assert samples.report.documents_in == 43


def test_the_seed_draws_and_every_document_may_be_drawn(prepared: Path) -> None:
    assert show_samples(prepared, seed=3) == show_samples(prepared, seed=3)
    drawn = Counter(
        sample.identifier for seed in range(200) for sample in show_samples(prepared, count=4, seed=seed).kept
    )
    assert len(drawn) == 40  # 800 draws of 40 documents: 20 each on average
    assert max(drawn.values()) < 45
    assert len(show_samples(prepared, count=1000).kept) == 40


def test_one_reason_can_be_asked_for(prepared: Path) -> None:
    (sample,) = show_samples(prepared, reason="duplicate").dropped
    assert sample.identifier == "corpus.jsonl#43"
    with pytest.raises(BadInputError, match="for 'dull'; what was dropped was for: duplicate, too short"):
        show_samples(prepared, reason="dull")


def test_what_is_not_there_is_named(tmp_path: Path, prepared: Path) -> None:
    with pytest.raises(BadInputError, match="run `journey data prepare` first"):
        show_samples(tmp_path / "nowhere")
    with pytest.raises(BadInputError, match="ask for at least 1"):
        show_samples(prepared, count=0)
    (prepared / "dropped.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(JourneyError, match="damaged or missing"):
        show_samples(prepared)
