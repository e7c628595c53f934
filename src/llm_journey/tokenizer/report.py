"""What a vocabulary is like, and what it makes of a text: the figures by which tokenizers are compared."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import regex

from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer.tokenizer import Tokenizer

_BATCH = 512
_LISTED = 20
_SCRIPTS = (
    *("Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Armenian", "Georgian", "Devanagari", "Bengali", "Tamil"),
    *("Telugu", "Gujarati", "Thai", "Ethiopic", "Hangul", "Hiragana", "Katakana", "Han"),
)
_SCRIPT_PATTERNS = {name: regex.compile(rf"\p{{Script={name}}}") for name in _SCRIPTS}
_LETTER = regex.compile(r"\p{L}")
_NUMBER = regex.compile(r"\p{N}")
_WHITE_SPACE = regex.compile(r"\s+")


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """One token: its id, its text (bytes that are no UTF-8 as U+FFFD), its bytes, how often it was used."""

    id: int
    text: str
    num_bytes: int
    count: int


@dataclass(frozen=True, kw_only=True)
class VocabularyReport:
    """A vocabulary and its use on some texts.

    `bytes_per_token`: UTF-8 bytes of the texts over their tokens. `fertility`: tokens per word, where words are what
    white space separates. `whole_words`: share of these words' occurrences that cost one token, with the space before
    them. `coverage`: share of the ordinary tokens that occur in the texts. `tokens_by_script` counts tokens of the
    vocabulary; `bytes_by_script` the bytes of text that they spell. `lengths`: tokens of the vocabulary by bytes.
    """

    vocab_size: int
    num_special_tokens: int
    num_texts: int
    num_bytes: int
    num_tokens: int
    num_words: int
    bytes_per_token: float
    fertility: float
    whole_words: float
    coverage: float
    num_unused: int
    unused: tuple[TokenRow, ...]
    longest: tuple[TokenRow, ...]
    most_used: tuple[TokenRow, ...]
    tokens_by_script: dict[str, int]
    bytes_by_script: dict[str, int]
    lengths: dict[int, int]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {**asdict(self), "lengths": {str(length): count for length, count in self.lengths.items()}}


def vocabulary_report(tokenizer: Tokenizer, texts: Iterable[str]) -> VocabularyReport:
    """The report on `tokenizer` and the given texts, which are read once. Raises BadInputError without any text."""
    counts: Counter[int] = Counter()
    words: Counter[str] = Counter()
    num_texts = num_bytes = 0
    for batch in _batches(texts):
        num_texts += len(batch)
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            counts.update(ids)
            words.update(text.split())
            num_bytes += len(text.encode("utf-8", "surrogatepass"))
    num_tokens, num_words = counts.total(), words.total()
    if not num_tokens:
        raise BadInputError("there is no text to report on; give documents that are not empty")
    ordinary = {token: data for data, token in tokenizer.vocabulary.items()}
    rows = [_row(token, data, counts[token]) for token, data in sorted(ordinary.items())]
    unused = [row for row in rows if not row.count]
    num_whole = sum(count for word, count in words.items() if len(tokenizer.encode(f" {word}")) == 1)
    by_script, bytes_by_script = _scripts(rows)
    return VocabularyReport(
        vocab_size=tokenizer.vocab_size,
        num_special_tokens=len(tokenizer.special_tokens),
        num_texts=num_texts,
        num_bytes=num_bytes,
        num_tokens=num_tokens,
        num_words=num_words,
        bytes_per_token=num_bytes / num_tokens,
        fertility=num_tokens / num_words if num_words else float(num_tokens),
        whole_words=num_whole / num_words if num_words else 0.0,
        coverage=1 - len(unused) / len(rows),
        num_unused=len(unused),
        unused=tuple(unused[:_LISTED]),
        longest=tuple(sorted(rows, key=lambda row: (-row.num_bytes, row.id))[:_LISTED]),
        most_used=tuple(sorted(rows, key=lambda row: (-row.count, row.id))[:_LISTED]),
        tokens_by_script=by_script,
        bytes_by_script=bytes_by_script,
        lengths=dict(sorted(Counter(row.num_bytes for row in rows).items())),
    )


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    stream = iter(texts)
    while batch := list(islice(stream, _BATCH)):
        yield batch


def _row(token: int, data: bytes, count: int) -> TokenRow:
    return TokenRow(id=token, text=data.decode("utf-8", "replace"), num_bytes=len(data), count=count)


def _scripts(rows: Iterable[TokenRow]) -> tuple[dict[str, int], dict[str, int]]:
    tokens: Counter[str] = Counter()
    spelled: Counter[str] = Counter()
    for row in rows:
        script = script_of(row.text)
        tokens[script] += 1
        spelled[script] += row.num_bytes * row.count
    return dict(tokens.most_common()), {name: spelled[name] for name, _ in tokens.most_common()}


def script_of(text: str) -> str:
    """The script of the first letter in `text`; without one, what kind of characters it holds."""
    letter = _LETTER.search(text)
    if letter:
        known = (name for name, pattern in _SCRIPT_PATTERNS.items() if pattern.match(letter.group()))
        return next(known, "Other letters")
    if "\ufffd" in text:
        return "Parts of characters"
    if _NUMBER.search(text):
        return "Numbers"
    return "White space" if _WHITE_SPACE.fullmatch(text) else "Punctuation and symbols"
