"""A vocabulary made larger for a domain's text: byte pair training goes on where a tokenizer's own ended.

New merges come behind the old ones. What the old ones make of a word is then made first, as before, and no old merge
knows a new token: so a text's new ids are its old ones with new pairs joined, and nothing that the model has learned of
its tokens is undone. tests/tokenizer/test_extension.py: equal to counting all pairs anew after each merge.
"""

import heapq
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise

from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer.bpe import Pair, merge, word_bytes
from llm_journey.tokenizer.tokenizer import Tokenizer
from llm_journey.tokenizer.word_counts import count_words

_FEWEST = 2  # a pair that stands once in the text is not worth a token


def extended(
    tokenizer: Tokenizer,
    texts: Iterable[str],
    num_tokens: int,
    *,
    processes: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tokenizer:
    """The tokenizer with up to `num_tokens` tokens more, learned from `texts`; their ids follow the largest so far.

    Fewer where no pair of tokens stands twice inside a word. on_progress(done, num_tokens) is called now and then.
    processes: see `word_counts.count_words`. Raises BadInputError where nothing can be added.
    """
    if tokenizer.compose:
        texts = (unicodedata.normalize("NFC", text) for text in texts)
    counts = count_words(texts, tokenizer.pattern, processes=processes)
    vocabulary, merges = dict(tokenizer.vocabulary), list(tokenizer.merges)
    spelled = {token: data for data, token in vocabulary.items()}
    first = tokenizer.vocab_size
    for pair in _new_merges(tokenizer, counts, vocabulary, spelled, num_tokens, on_progress):
        merges.append(pair)
    if len(merges) == len(tokenizer.merges):
        raise BadInputError("the text has no pair of tokens twice, so there is nothing to make new tokens of")
    assert max(vocabulary.values()) == first + len(merges) - len(tokenizer.merges) - 1
    return tokenizer.changed(vocabulary=vocabulary, merges=merges)


def _new_merges(
    tokenizer: Tokenizer,
    counts: Counter[str],
    vocabulary: dict[bytes, int],
    spelled: dict[int, bytes],
    num_tokens: int,
    on_progress: Callable[[int, int], None] | None,
) -> Iterable[Pair]:
    """The merges, most frequent pair first, of equally frequent ones the one of smaller ids; both tables grow."""
    words = [(tokenizer.encode_word(word_bytes(word)), count) for word, count in counts.items()]
    totals: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, (ids, count) in enumerate(words):
        for pair in pairwise(ids):
            totals[pair] += count
            places[pair].add(index)
    heap = [(-count, pair) for pair, count in totals.items()]
    heapq.heapify(heap)
    new_id, made = tokenizer.vocab_size, 0
    while heap and made < num_tokens:
        negative, pair = heapq.heappop(heap)
        if -negative != totals[pair]:  # an old entry: each change of a count has put in a new one
            continue
        if -negative < _FEWEST:
            return
        data = spelled[pair[0]] + spelled[pair[1]]
        if data in vocabulary:  # a token that its own merges make in another way; there is none to be made here
            continue
        vocabulary[data], spelled[new_id] = new_id, data
        changed: set[Pair] = set()
        for index in places.pop(pair):
            ids, count = words[index]
            joined = merge(ids, pair, new_id)
            for old in pairwise(ids):
                totals[old] -= count
                changed.add(old)
            for new in pairwise(joined):
                totals[new] += count
                places[new].add(index)
                changed.add(new)
            words[index] = (joined, count)
        for each in changed:
            if totals[each] > 0:
                heapq.heappush(heap, (-totals[each], each))
        yield pair
        new_id, made = new_id + 1, made + 1
        if on_progress and made % 256 == 0:
            on_progress(made, num_tokens)
