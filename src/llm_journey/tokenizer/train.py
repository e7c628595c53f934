"""Training a tokenizer: count the pre-tokens of a stream of texts, learn the merges, name the special tokens."""

from collections.abc import Callable, Iterable

from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer import bpe_fast
from llm_journey.tokenizer.chat_template import DEFAULT_TEMPLATE, TURN_TOKENS
from llm_journey.tokenizer.config import TokenizerConfig
from llm_journey.tokenizer.tokenizer import Tokenizer, from_merges
from llm_journey.tokenizer.word_counts import count_words

# What is under way ("reading", "merging"), how much is done, and of how much (None: not known).
Progress = Callable[[str, int, int | None], None]


def train_tokenizer(
    texts: Iterable[str],
    config: TokenizerConfig,
    *,
    processes: int | None = None,
    on_progress: Progress | None = None,
) -> Tokenizer:
    """Byte-level BPE learned from `texts`, which are read once and never held whole.

    Where the texts have too few pairs to fill `config.vocab_size`, the vocabulary stays smaller: `vocab_size` of the
    result tells its true size. The tokenizer carries the ChatML template where its turn tokens are among the special
    ones, and puts the begin token before a text, as training does before each document (datasets.loader). Raises
    BadInputError where the texts are empty. `processes`: see `word_counts.count_words`.
    """

    def read(characters: int) -> None:
        if on_progress:
            on_progress("reading", characters, None)

    def merged(done: int, total: int) -> None:
        if on_progress:
            on_progress("merging", done, total)

    counts = count_words(texts, config.pattern, processes=processes, on_progress=read)
    if not counts:
        raise BadInputError("there is no text to learn a tokenizer from; give documents that are not empty")
    merges = bpe_fast.train(counts, config.num_merges, merged)
    has_turns = set(TURN_TOKENS) <= set(config.special_tokens)
    return from_merges(
        merges,
        pattern=config.pattern,
        special_tokens=config.special_tokens,
        chat_template=DEFAULT_TEMPLATE if has_turns else None,
        adds_begin=True,
    )
