"""WordPiece against transformers' BertTokenizerFast, on a vocabulary made of the words of real text."""

import unicodedata
from collections import Counter
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.tokenizer.wordpiece import WordPiece, WordPieceOptions

TEXTS = [topics.topics[name] for name in sorted(topics.topics)]
FOREIGN = (
    "Ünïcödé naïve CAFÉ Straße İstanbul ſ ΑΣ ΟΔΟΣ Русский й 日本語テキスト 中文字 한국어 ไทย हिन्दी 12,345.67 $5 a^b "
    "it's [MASK] ##ing don’t “quoted” — dash… x\u200by\u00ady \x00\x01\t\n\r\x0b\x0c\x85\xa0\u2003\u2028\u3000z "
    "\ufffd \U0002b8a0"
)
ALPHABET = sorted({*"abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()[]{}-_/\\#$%&*+<=>@^`|~", *"àéßıсσςй字中한"})


def vocabulary() -> list[str]:
    words = Counter(word for text in TEXTS[:30] for word in WordPiece(SMALL).words(text) if len(word) > 1)
    cased = Counter(word for text in TEXTS[:30] for word in text.split() if word.isalpha())
    whole = sorted({*[word for word, _ in words.most_common(800)], *[word for word, _ in cased.most_common(300)]})
    endings = sorted({f"##{word[cut:]}" for word, _ in words.most_common(400) for cut in (2, 3) if word[cut:]})
    pieces = [f"##{character}" for character in ALPHABET]
    return list(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ALPHABET, *pieces, *whole, *endings]))


SMALL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
VOCABULARY = vocabulary()
OPTIONS = [
    {"do_lower_case": True},
    {"do_lower_case": False},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
]


@pytest.fixture(scope="module", params=OPTIONS, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[WordPiece, Any]:
    """Ours, loaded from the files that transformers wrote, and theirs."""
    import transformers

    directory: Path = tmp_path_factory.mktemp("bert")
    peer = transformers.BertTokenizerFast(vocab={word: index for index, word in enumerate(VOCABULARY)}, **request.param)
    peer.save_pretrained(directory)
    return WordPiece.load(directory), peer


def test_the_file_says_how_text_is_prepared(pair: tuple[WordPiece, Any]) -> None:
    ours, peer = pair
    assert ours.vocab_size == len(peer)
    ids = ours.encode(" ".join(TEXTS[:30]))
    assert ids.count(ours.special_tokens["[UNK]"]) < 0.05 * len(ids), "the cases are real words"
    assert ours.options.lower_case == peer.backend_tokenizer.normalizer.lowercase
    assert ours.options.strip_accents == peer.backend_tokenizer.normalizer.strip_accents


@pytest.mark.parametrize("text", [FOREIGN, "", "a" * 101, "b" * 100, *TEXTS[:40]])
def test_equal_on_real_text(pair: tuple[WordPiece, Any], text: str) -> None:
    ours, peer = pair
    assert ours.encode(text, allow_special=True) == peer(text)["input_ids"]


# The tables in tokenizers are of Unicode 8; Python's unicodedata keeps those of 3.2, whose characters all agree.
TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=("Cs",)).filter(lambda c: unicodedata.ucd_3_2_0.category(c) != "Cn"),
        st.sampled_from(ALPHABET),
        st.sampled_from(" ÀÉßİſΣ\t\n\x0b\x1c\x85\xa0\u200b\u2028\ufffd#\u0301"),
    ),
    max_size=60,
)


@given(text=TEXT)
@settings(max_examples=250, deadline=None)
def test_equal_on_any_text(pair: tuple[WordPiece, Any], text: str) -> None:
    ours, peer = pair
    assert ours.encode(text, allow_special=True) == peer(text)["input_ids"]


def test_a_vocabulary_file_encodes_alike(tmp_path: Path) -> None:
    import transformers

    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    peer = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    ours = WordPiece.load(tmp_path / "vocab.txt")
    assert ours.options == WordPieceOptions()
    for text in [FOREIGN, *TEXTS[:5]]:
        assert ours.encode(text, allow_special=True) == peer(text)["input_ids"]
