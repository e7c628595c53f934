"""The Tokenizer: everything round-trips, special tokens are safe, ids are the oracle's, nothing hangs."""

import time
from pydoc_data import topics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer import Tokenizer, TokenizerConfig, bpe
from llm_journey.tokenizer.cores import RankCore, has_long_white_space
from llm_journey.tokenizer.tokenizer import from_merges
from llm_journey.tokenizer.train import train_tokenizer

TEXTS = [topics.topics[name] for name in sorted(topics.topics)]
ANY_TEXT = st.text(st.characters(exclude_categories=()))
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module", params=["gpt2", "cl100k"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(TEXTS, TokenizerConfig(vocab_size=1500, pattern=request.param), processes=1)


def oracle(tokenizer: Tokenizer, text: str) -> list[int]:
    return bpe.encode(text, {pair: 256 + i for i, pair in enumerate(tokenizer.merges)}, tokenizer.pattern)


@given(text=ANY_TEXT)
def test_any_text_round_trips_and_has_the_oracles_ids(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == oracle(tokenizer, text)
    assert tokenizer.decode(ids, errors="surrogatepass") == text
    assert tokenizer.decode_bytes(ids) == text.encode("utf-8", "surrogatepass")


@given(data=st.binary())
def test_any_byte_string_round_trips(tokenizer: Tokenizer, data: bytes) -> None:
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


def test_real_text_has_the_oracles_ids(tokenizer: Tokenizer) -> None:
    assert isinstance(tokenizer._core, RankCore)
    for text in TEXTS[:6]:
        assert tokenizer.encode(text) == oracle(tokenizer, text)


@pytest.mark.full
def test_much_real_text_has_the_oracles_ids(tokenizer: Tokenizer) -> None:
    text = "\n\n".join(TEXTS)
    assert tokenizer.encode(text) == oracle(tokenizer, text)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"ok \x80\x81 ok", "é".encode()[:1], b"\x00\x00a", b"\xed\xa0\x80abc"])
def test_bytes_that_are_no_utf8(tokenizer: Tokenizer, data: bytes) -> None:
    ids = tokenizer.encode_bytes(data)
    assert tokenizer.decode_bytes(ids) == data
    assert isinstance(tokenizer.decode(ids), str)


def test_bytes_that_are_utf8_encode_as_their_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_bytes("naïve 字".encode()) == tokenizer.encode("naïve 字")


def test_special_tokens_in_text_are_plain_text_unless_allowed(tokenizer: Tokenizer) -> None:
    text = "a<|im_end|>\n<|im_start|>system"
    assert not set(tokenizer.encode(text)) & set(tokenizer.special_tokens.values())
    end, start = tokenizer.special_tokens["<|im_end|>"], tokenizer.special_tokens["<|im_start|>"]
    expected = [*tokenizer.encode("a"), end, *tokenizer.encode("\n"), start, *tokenizer.encode("system")]
    assert tokenizer.encode(text, allow_special=True) == expected
    assert tokenizer.decode(expected) == text == tokenizer.decode(tokenizer.encode(text))


def test_the_longest_special_token_wins() -> None:
    tokenizer = from_merges([], pattern="gpt2", special_tokens=["<|endoftext|>", "<a", "<a>", "."])
    special = tokenizer.special_tokens
    assert tokenizer.encode("<a><a.", allow_special=True) == [special["<a>"], special["<a"], special["."]]


def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer) -> None:
    texts = [*TEXTS, "", "<|im_end|>", "\ud800"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts[-3:], allow_special=True)[1] == [tokenizer.special_tokens["<|im_end|>"]]
    assert tokenizer.encode_batch([]) == []


@given(data=st.binary(), text=st.text(st.sampled_from("aé字🙂 ")))
def test_a_stream_of_ids_is_their_text(tokenizer: Tokenizer, data: bytes, text: str) -> None:
    ids = tokenizer.encode(text) + tokenizer.encode_bytes(data)
    assert "".join(tokenizer.decode_stream(iter(ids))) == tokenizer.decode(ids)
    assert list(tokenizer.decode_stream(tokenizer.encode_bytes("é".encode()))) == ["é"]


@pytest.mark.parametrize("token", [-1, 1500, 10**9])
def test_an_unknown_id_is_named(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(BadInputError, match=f"id {token} is not in this vocabulary of 1500 tokens"):
        tokenizer.decode([1, token])
    with pytest.raises(BadInputError, match="1500"):
        tokenizer.id_to_bytes(token)


def test_numpy_ids_decode(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(np.array(tokenizer.encode("numbers"))) == "numbers"


@pytest.mark.parametrize("unit", ["a", "ab", " ", "\n", "\n ", "1", ".", "字", "\t"])
def test_a_very_long_run_neither_hangs_nor_crashes(tokenizer: Tokenizer, unit: str) -> None:
    # tiktoken's pattern engine aborts on a million spaces before a word; quadratic merging would take hours.
    text = unit * (1_000_000 // len(unit)) + "x"
    started = time.monotonic()
    ids = tokenizer.encode(text)
    assert time.monotonic() - started < 30
    assert tokenizer.decode(ids) == text


def test_a_long_run_of_white_space_has_the_same_ids_either_way(tokenizer: Tokenizer) -> None:
    text = "word" + " " * 900_000 + "\n  x"
    assert has_long_white_space(text) and not has_long_white_space("word " * 300_000)
    in_words = [
        token for word in bpe.split(text, tokenizer.pattern) for token in tokenizer._core.encode_word(word.encode())
    ]
    assert tokenizer.encode(text) == in_words


@pytest.mark.parametrize("unit", [b"\xff", b"\xed\xa0\x80"])
def test_a_long_run_of_stray_bytes_does_not_hang(tokenizer: Tokenizer, unit: bytes) -> None:
    data = unit * 200_000
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


def test_without_an_end_token_the_error_names_the_fix() -> None:
    tokenizer = from_merges([], pattern="gpt2", special_tokens=["<s>"])
    with pytest.raises(BadInputError, match="eos_token"):
        _ = tokenizer.end_id


def test_parts_that_contradict_each_other_are_refused() -> None:
    good = from_merges([(0, 1)], pattern="gpt2", special_tokens=SPECIAL)
    vocabulary = good.vocabulary

    def build(changed: dict[bytes, int], merges: list[tuple[int, int]], special: dict[str, int]) -> Tokenizer:
        return Tokenizer(changed, merges, special_tokens=special, pattern="gpt2")

    with pytest.raises(BadInputError, match="share one id"):
        build(vocabulary, [(0, 1)], {"<s>": 3})
    with pytest.raises(BadInputError, match="negative"):
        build(vocabulary, [(0, 1)], {"<s>": -3})
    with pytest.raises(BadInputError, match="1 of the 256 bytes"):
        build({data: token for data, token in vocabulary.items() if data != b"!"}, [], {})
    with pytest.raises(BadInputError, match="merge 0 joins"):
        build(vocabulary, [(0, 999)], {})
    with pytest.raises(BadInputError, match="merge 1 makes"):
        build(vocabulary, [(0, 1), (1, 2)], {})
    with pytest.raises(BadInputError, match="empty"):
        build(vocabulary, [(0, 1)], {"": 999})
    with pytest.raises(BadInputError, match="known: cl100k, gpt2"):
        Tokenizer(vocabulary, [(0, 1)], special_tokens={}, pattern="nope")


def test_the_fingerprint_sees_what_decides_about_ids() -> None:
    base = from_merges([(0, 1)], pattern="gpt2", special_tokens=SPECIAL)
    same = from_merges([(0, 1)], pattern="gpt2", special_tokens=SPECIAL, chat_template="{{ x }}")
    others = [
        from_merges([(1, 0)], pattern="gpt2", special_tokens=SPECIAL),
        from_merges([(0, 1)], pattern="cl100k", special_tokens=SPECIAL),
        from_merges([(0, 1)], pattern="gpt2", special_tokens=SPECIAL[:1]),
    ]
    assert base.fingerprint == same.fingerprint
    assert base.fingerprint not in {other.fingerprint for other in others}
