"""Training a tokenizer: its configuration, its edges, and what comes out."""

import itertools
from pydoc_data import topics

import pytest

from llm_journey.core.config import dump, validate
from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer import Tokenizer, TokenizerConfig, bpe
from llm_journey.tokenizer.chat_template import DEFAULT_TEMPLATE
from llm_journey.tokenizer.train import train_tokenizer

TEXTS = [topics.topics[name] for name in sorted(topics.topics)[:20]]


def test_layout_of_ids() -> None:
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=400))
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.vocab_size == 400
    assert tokenizer.special_tokens == {"<|endoftext|>": 397, "<|im_start|>": 398, "<|im_end|>": 399}
    assert tokenizer.end_id == 397
    assert tokenizer.merges == bpe.train(bpe.count_words(TEXTS, "gpt2"), 400 - 256 - 3)
    assert tokenizer.id_to_bytes(0) == b"!" and tokenizer.id_to_bytes(397) == b"<|endoftext|>"
    assert tokenizer.chat_template == DEFAULT_TEMPLATE


def test_the_order_of_documents_and_the_number_of_processes_do_not_matter() -> None:
    config = TokenizerConfig(vocab_size=500, pattern="cl100k")
    fingerprints = {
        train_tokenizer(texts, config, processes=processes).fingerprint
        for texts, processes in itertools.product((TEXTS, TEXTS[::-1]), (1, 2))
    }
    assert len(fingerprints) == 1


def test_a_small_corpus_makes_a_smaller_vocabulary_that_tells_the_truth() -> None:
    tokenizer = train_tokenizer(["abc abc"], TokenizerConfig(vocab_size=4096))
    # "abc" and " abc": the pairs ab, abc, and the space before it.
    assert tokenizer.vocab_size == 256 + 3 + 3
    assert tokenizer.end_id == 256 + 3
    assert tokenizer.decode(tokenizer.encode("abc abc")) == "abc abc"


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_an_empty_corpus_is_refused(texts: list[str]) -> None:
    with pytest.raises(BadInputError, match="no text"):
        train_tokenizer(texts, TokenizerConfig())


def test_the_smallest_vocabulary_is_named() -> None:
    with pytest.raises(BadInputError, match=r"recipe: .*at least 259"):
        validate(TokenizerConfig, {"vocab_size": 258}, "recipe")
    assert train_tokenizer(["some text"], TokenizerConfig(vocab_size=259)).vocab_size == 259


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"vocab_size": 1 << 21}, "at most"),
        ({"special_tokens": ["<|im_end|>"]}, r"must hold <\|endoftext\|>"),
        ({"special_tokens": ["<|endoftext|>", "<|endoftext|>"]}, "differ"),
        ({"special_tokens": ["<|endoftext|>", ""]}, "empty"),
        ({"pattern": "whitespace"}, "gpt2"),
        ({"vocabulary": 3}, "unknown key 'vocabulary'"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_reason(value: dict[str, object], reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        validate(TokenizerConfig, value, "recipe")


def test_the_configuration_survives_a_dump() -> None:
    config = TokenizerConfig(vocab_size=1000, special_tokens=("<|endoftext|>",))
    assert validate(TokenizerConfig, dump(config), "recipe") == config


def test_without_turn_tokens_there_is_no_chat_template() -> None:
    config = TokenizerConfig(vocab_size=300, special_tokens=("<|endoftext|>",))
    assert train_tokenizer(TEXTS[:1], config).chat_template is None


def test_progress_tells_both_stages() -> None:
    seen: list[tuple[str, int, int | None]] = []
    train_tokenizer(TEXTS, TokenizerConfig(vocab_size=600), on_progress=lambda *event: seen.append(event))
    assert {stage for stage, _, _ in seen} == {"reading", "merging"}
    assert ("merging", 256, 341) in seen
