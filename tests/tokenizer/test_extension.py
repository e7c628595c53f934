"""A larger vocabulary: counted anew after each merge it comes out the same, and old text keeps its old pieces."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.bpe import Pair, count_words, merge, word_bytes
from llm_journey.tokenizer.config import TokenizerConfig
from llm_journey.tokenizer.extension import extended
from llm_journey.tokenizer.train import train_tokenizer

GENERAL = "the cat sat on the mat and the dog sat on the log while it rained on the hill " * 3
DOMAIN = "boundary layer flow over the boundary of a laminar boundary layer at supersonic speed, supersonic flow"


def base(size: int = 300) -> Tokenizer:
    config = TokenizerConfig(vocab_size=size, special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    return train_tokenizer([GENERAL], config, processes=1)


def counted_anew(tokenizer: Tokenizer, texts: list[str], num_tokens: int) -> list[Pair]:
    """The readable form: all pairs counted after each merge."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(count_words([text], tokenizer.pattern))
    words = {word: tokenizer.encode_word(word_bytes(word)) for word in counts}
    spelled = {token: data for data, token in tokenizer.vocabulary.items()}
    known = set(tokenizer.vocabulary)
    merges: list[Pair] = []
    while len(merges) < num_tokens:
        totals: Counter[Pair] = Counter()
        for word, ids in words.items():
            for pair in pairwise(ids):
                totals[pair] += counts[word]
        totals = Counter({p: n for p, n in totals.items() if n >= 2 and spelled[p[0]] + spelled[p[1]] not in known})
        if not totals:
            break
        best = min(totals, key=lambda pair: (-totals[pair], pair))
        new_id = tokenizer.vocab_size + len(merges)
        spelled[new_id] = spelled[best[0]] + spelled[best[1]]
        known.add(spelled[new_id])
        words = {word: merge(ids, best, new_id) for word, ids in words.items()}
        merges.append(best)
    return merges


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(alphabet="abcthe on.é ", min_size=1, max_size=60), min_size=1, max_size=8),
    num_tokens=st.integers(1, 30),
)
def test_the_merges_are_those_counted_anew(texts: list[str], num_tokens: int) -> None:
    tokenizer = base()
    expected = counted_anew(tokenizer, texts, num_tokens)
    if not expected:
        with pytest.raises(BadInputError, match="no pair of tokens twice"):
            extended(tokenizer, texts, num_tokens, processes=1)
        return
    found = extended(tokenizer, texts, num_tokens, processes=1)
    assert found.merges == [*tokenizer.merges, *expected]
    for text in texts:
        assert found.decode(found.encode(text)) == text
        assert len(found.encode(text)) <= len(tokenizer.encode(text))


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=80))
def test_new_ids_are_the_old_ones_with_new_pairs_joined(text: str) -> None:
    tokenizer = base()
    found = extended(tokenizer, [DOMAIN], 20, processes=1)
    pieces = {token: [token] for token in range(tokenizer.vocab_size)}
    for number, (left, right) in enumerate(found.merges[len(tokenizer.merges) :]):
        pieces[tokenizer.vocab_size + number] = pieces[left] + pieces[right]
    for each in (text, DOMAIN + text):
        assert [old for token in found.encode(each) for old in pieces[token]] == tokenizer.encode(each)


def test_what_else_a_tokenizer_is_stays() -> None:
    tokenizer = base()
    found = extended(tokenizer, [DOMAIN], 12, processes=1)
    assert found.vocab_size == tokenizer.vocab_size + 12
    assert found.special_tokens == tokenizer.special_tokens and found.chat_template == tokenizer.chat_template
    assert (found.pattern, found.roles, found.adds_begin) == (tokenizer.pattern, tokenizer.roles, tokenizer.adds_begin)
    assert len(found.encode(DOMAIN)) < 0.8 * len(tokenizer.encode(DOMAIN))
    assert found.fingerprint != tokenizer.fingerprint


def test_tokenizers_reads_it_alike() -> None:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from tokenizers import Tokenizer as HuggingFace

    from llm_journey.tokenizer import io

    found = extended(base(), [DOMAIN], 25, processes=1)
    with TemporaryDirectory() as folder:
        io.save(found, Path(folder))
        theirs, again = HuggingFace.from_file(f"{folder}/tokenizer.json"), io.load(Path(folder))
    for text in (DOMAIN, GENERAL, f"{DOMAIN} ü {GENERAL}"):
        assert theirs.encode(text, add_special_tokens=False).ids == found.encode(text) == again.encode(text)
    assert again.fingerprint == found.fingerprint
