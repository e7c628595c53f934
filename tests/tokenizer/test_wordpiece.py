"""WordPiece: the rules on small cases; equality with BertTokenizerFast is proven in tests/equivalence."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer.wordpiece import WordPiece, WordPieceOptions

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "a", "cafe", ",", "字", "##s", "Café"]
VOCABULARY = {word: index for index, word in enumerate(WORDS)}


def names(tokenizer: WordPiece, text: str, **options: bool) -> list[str]:
    return [WORDS[token] for token in tokenizer.encode(text, **options)]


def test_longest_pieces_from_the_left() -> None:
    tokenizer = WordPiece(VOCABULARY)
    assert names(tokenizer, "Unaffable, cafés") == ["[CLS]", "un", "##aff", "##able", ",", "cafe", "##s", "[SEP]"]
    assert names(tokenizer, "unaffably a字a", add_special=False) == ["[UNK]", "a", "字", "a"]


def test_long_words_and_controls() -> None:
    tokenizer = WordPiece(VOCABULARY | {"##a": 100})
    assert len(tokenizer.encode("a" * 100, add_special=False)) == 100
    assert tokenizer.encode("a" * 101, add_special=False) == [VOCABULARY["[UNK]"]]
    assert tokenizer.words("a\x00\u200b\ufffda\tb") == ["aa", "b"]


def test_a_cased_vocabulary_keeps_case_and_accents() -> None:
    tokenizer = WordPiece(VOCABULARY, WordPieceOptions(lower_case=False))
    assert names(tokenizer, "Café cafe", add_special=False) == ["Café", "cafe"]


def test_special_tokens_in_text_are_text_unless_allowed() -> None:
    tokenizer = WordPiece(VOCABULARY)
    assert VOCABULARY["[SEP]"] not in tokenizer.encode("a [SEP] a", add_special=False)
    assert names(tokenizer, "a [SEP]a", add_special=False, allow_special=True) == ["a", "[SEP]", "a"]


def test_decoding() -> None:
    tokenizer = WordPiece(VOCABULARY)
    assert tokenizer.decode(tokenizer.encode("Unaffable, cafés")) == "unaffable , cafes"
    with pytest.raises(BadInputError, match="id 99 "):
        tokenizer.decode([99])


def huggingface(**model: Any) -> dict[str, Any]:
    return {
        "model": {"type": "WordPiece", "vocab": VOCABULARY, "unk_token": "[UNK]", **model},
        "normalizer": {"type": "BertNormalizer", "lowercase": True, "strip_accents": None},
    }


def test_loading_from_either_file(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    assert WordPiece.load(tmp_path).vocabulary == VOCABULARY
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert WordPiece.load(tmp_path / "vocab.txt").options.lower_case is False
    (tmp_path / "tokenizer.json").write_text(json.dumps(huggingface()), encoding="utf-8")
    loaded = WordPiece.load(tmp_path)
    assert (loaded.vocabulary, loaded.options) == (VOCABULARY, WordPieceOptions())
    assert loaded.vocab_size == len(WORDS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "'model'"),
        (huggingface(type="BPE"), "not a WordPiece"),
        (huggingface(merges=[]), "not a WordPiece"),
        (huggingface(continuing_subword_prefix="@@"), "BERT's rules"),
        (huggingface() | {"normalizer": None}, "BERT's rules"),
        (huggingface(vocab={**VOCABULARY, "x": 0}), "share one id"),
        (huggingface(vocab={**VOCABULARY, "x": "y"}), "whole number"),
        (huggingface(vocab={"a": 0}), r"lacks \[UNK\]"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, content: dict[str, Any], reason: str) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BadInputError, match=reason) as caught:
        WordPiece.load(tmp_path)
    assert str(caught.value).count(str(tmp_path)) == 1


@pytest.mark.parametrize(
    ("data", "reason"), [(None, "no such file"), (b"\xff\xfe\xff", "cannot be read"), (b"a\nb\na\n", "stands twice")]
)
def test_wrong_vocabularies_are_refused(tmp_path: Path, data: bytes | None, reason: str) -> None:
    if data is not None:
        (tmp_path / "vocab.txt").write_bytes(data)
    with pytest.raises(BadInputError, match=reason):
        WordPiece.load(tmp_path)
