"""The vocabulary report, on a vocabulary small enough to count by hand."""

import json

import pytest

from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer import TokenizerConfig
from llm_journey.tokenizer.report import script_of, vocabulary_report
from llm_journey.tokenizer.train import train_tokenizer


def test_figures_by_hand() -> None:
    # Learned from "ab ab": ab, then " ab".
    tokenizer = train_tokenizer(["ab ab"], TokenizerConfig(vocab_size=1000))
    report = vocabulary_report(tokenizer, iter(["ab ab", "é 7", ""]))
    # ab | " ab" | two bytes of é | " " | "7"
    assert (report.num_texts, report.num_bytes, report.num_tokens, report.num_words) == (3, 9, 6, 4)
    assert report.bytes_per_token == pytest.approx(9 / 6)
    assert report.fertility == pytest.approx(6 / 4)
    assert report.whole_words == pytest.approx(2 / 4)
    assert (report.vocab_size, report.num_special_tokens) == (261, 3)
    assert report.num_unused == 258 - 6
    assert report.coverage == pytest.approx(6 / 258)
    assert [(row.text, row.count) for row in report.longest[:2]] == [(" ab", 1), ("ab", 1)]
    assert report.lengths == {1: 256, 2: 1, 3: 1}
    assert report.tokens_by_script == {
        "Parts of characters": 128,
        "Punctuation and symbols": 60,
        "Latin": 54,
        "Numbers": 10,
        "White space": 6,
    }
    assert report.bytes_by_script["Latin"] == 5 and report.bytes_by_script["Parts of characters"] == 2
    assert sum(report.bytes_by_script.values()) == 9


def test_json_holds_it_all() -> None:
    tokenizer = train_tokenizer(["some words"], TokenizerConfig(vocab_size=300))
    value = json.loads(json.dumps(vocabulary_report(tokenizer, ["some more"]).to_json(), allow_nan=False))
    assert value["lengths"]["1"] == 256
    assert set(value["longest"][0]) == {"id", "text", "num_bytes", "count"}
    assert len(value["unused"]) == 20


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_is_an_error(texts: list[str]) -> None:
    tokenizer = train_tokenizer(["some words"], TokenizerConfig(vocab_size=300))
    with pytest.raises(BadInputError, match="no text"):
        vocabulary_report(tokenizer, texts)


def test_white_space_alone_is_text() -> None:
    tokenizer = train_tokenizer(["some words"], TokenizerConfig(vocab_size=300))
    report = vocabulary_report(tokenizer, [" \n"])
    assert (report.num_words, report.fertility, report.whole_words) == (0, 2.0, 0.0)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        (" the", "Latin"),
        ("привет", "Cyrillic"),
        ("1字", "Han"),
        ("\ufffd", "Parts of characters"),
        (" 12", "Numbers"),
        ("\n\n", "White space"),
        (" ...", "Punctuation and symbols"),
        ("ᚠ", "Other letters"),
    ],
)
def test_scripts(text: str, script: str) -> None:
    assert script_of(text) == script
