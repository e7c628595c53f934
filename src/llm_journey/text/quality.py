"""Quality filters: which texts are not worth training on, and why, each rule with its source.

Rae et al. 2021 ("Gopher", appendix A.1.1 and table A1) and Raffel et al. 2020 ("C4", section 2.2) tuned their rules
for English web pages; the defaults here are for any written text down to an encyclopedia's shortest summaries:

    rule                                            source     theirs            default here
    words in the text                               Rae        50 to 100,000     5 to no limit
    mean letters a word                             Rae        3 to 10           2 to 18 (agglutinative languages)
    '#' and ellipses per word                       Rae        at most 0.1       the same
    lines that begin with a bullet                  Rae        at most 0.9       the same
    lines that end with an ellipsis                 Rae        at most 0.3       the same
    words with a letter in them                     Rae        at least 0.8      at least 0.6
    English stop words                              Rae        at least 2        off: it would drop other languages
    lines that end like a sentence                  Raffel     all               off: verse, lists and Thai have none
    placeholder text ("lorem ipsum")                Raffel     none              the same
    repeated lines and paragraphs                   Rae A1     see the fields    the same, from 50 words on
    most frequent 2- to 4-gram, repeated 5- to      Rae A1     see the fields    the same, from 50 words on
      10-grams, as shares of the characters

Scripts that do not part words by spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) count one word a character and
are spared the rules about words and n-grams. Shares of lines are looked at from four lines on, and a phrase
fills a text only where it stands at least five times: in short texts two occurrences make a share already. A long
document is judged by its first 100,000 characters.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from llm_journey.core.config import STRICT

_JUDGED_CHARACTERS = 100_000
_REPETITION_FROM_WORDS = 50  # Rae et al. keep no shorter text, so their shares were never tuned for one
_SHARES_FROM_LINES = 4
_TOP_NGRAM_OCCURRENCES = 5
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]"
)
_UNSPACED_FROM = 0.3  # share of such characters from which a text counts as written without spaces
_SENTENCE_ENDS = tuple(".!?\"'”’…。！？」』։؟।॥።")
_BULLETS = ("•", "●", "▪", "‣", "◦", "-", "*", "–")
_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))  # Rae et al., A.1.1
_SYMBOLS = re.compile(r"#|\.\.\.|…")


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Thresholds of the filters (sources and reasons: above). `enabled: false` keeps every text."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    enabled: bool = True
    min_words: int = 5
    max_words: int | None = None
    min_mean_word_length: float = 2.0
    max_mean_word_length: float = 18.0
    max_symbols_per_word: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_sentence_lines: float = 0.0
    min_words_with_letters: float = 0.6
    min_stop_words: int = 0
    allow_placeholder_text: bool = False
    # Rae et al. 2021, table A1: shares of the lines or paragraphs, and of the characters in them
    max_repeated_lines: float = 0.30
    max_repeated_paragraphs: float = 0.30
    max_repeated_line_characters: float = 0.20
    max_repeated_paragraph_characters: float = 0.20
    max_top_ngrams: tuple[float, float, float] = (0.20, 0.18, 0.16)  # n = 2, 3, 4
    max_repeated_ngrams: tuple[float, float, float, float, float, float] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)  # 5..10

    def __post_init__(self) -> None:
        if self.max_words is not None and self.max_words < self.min_words:
            raise ValueError(f"max_words {self.max_words} is below min_words {self.min_words}")
        if self.max_mean_word_length < self.min_mean_word_length:
            raise ValueError("max_mean_word_length is below min_mean_word_length")


def judge(text: str, config: QualityConfig) -> tuple[bool, str]:
    """(True, "") to keep a text, else (False, reason): the rule, then the measured value in brackets."""
    if not config.enabled:
        return True, ""
    if config.max_words is not None and (length := _num_words(text)) > config.max_words:
        return False, f"too long ({length} words)"
    text = text[:_JUDGED_CHARACTERS]
    words = text.split()
    num_words = _num_words(text)
    spaced = num_words == len(words)
    reason = (
        (f"too short ({num_words} words)" if num_words < config.min_words else "")
        or (_word_shape(words, config) or _letters(words, config) if spaced else "")
        or _symbols(text, num_words, config)
        or _placeholder(text, config)
        or _lines(text, config)
        or _stop_words(words, config)
    )
    if not reason and num_words >= _REPETITION_FROM_WORDS:
        reason = _repeated_lines(text, config) or (_repeated_ngrams(words, config) if spaced else "")
    return not reason, reason


def rule_of(reason: str) -> str:
    """The rule in a reason that `judge` gave, without the measured value: what counts are kept by."""
    return reason.partition(" (")[0]


def _num_words(text: str) -> int:
    """Words between spaces; in text written without spaces, its characters of such a script."""
    words = text.split()
    unspaced = 0 if text.isascii() else len(_UNSPACED.findall(text))
    return unspaced if unspaced > max(len(words), _UNSPACED_FROM * sum(map(len, words))) else len(words)


def _word_shape(words: Sequence[str], config: QualityConfig) -> str:
    mean = sum(map(len, words)) / max(len(words), 1)
    if not config.min_mean_word_length <= mean <= config.max_mean_word_length:
        return f"odd word lengths ({mean:.1f} letters on average)"
    return ""


def _letters(words: Sequence[str], config: QualityConfig) -> str:
    with_letters = sum(word.isalpha() or any(map(str.isalpha, word)) for word in words)
    share = with_letters / max(len(words), 1)
    return f"few words with letters ({share:.0%})" if share < config.min_words_with_letters else ""


def _symbols(text: str, num_words: int, config: QualityConfig) -> str:
    share = len(_SYMBOLS.findall(text)) / max(num_words, 1)
    return f"many symbols ({share:.2f} a word)" if share > config.max_symbols_per_word else ""


def _placeholder(text: str, config: QualityConfig) -> str:
    if not config.allow_placeholder_text and "lorem ipsum" in text.lower():
        return "placeholder text"
    return ""


def _lines(text: str, config: QualityConfig) -> str:
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    total = len(lines)
    if total < _SHARES_FROM_LINES:
        return ""
    bullets = sum(line.startswith(_BULLETS) for line in lines) / total
    if bullets > config.max_bullet_lines:
        return f"mostly bullet points ({bullets:.0%} of lines)"
    ellipses = sum(line.endswith(("...", "…")) for line in lines) / total
    if ellipses > config.max_ellipsis_lines:
        return f"lines cut off by an ellipsis ({ellipses:.0%})"
    sentences = sum(line.endswith(_SENTENCE_ENDS) for line in lines) / total
    if sentences < config.min_sentence_lines:
        return f"few lines end like a sentence ({sentences:.0%})"
    return ""


def _stop_words(words: Sequence[str], config: QualityConfig) -> str:
    if not config.min_stop_words:
        return ""
    found = len(_STOP_WORDS.intersection(word.lower() for word in words))
    return f"no running English text ({found} stop words)" if found < config.min_stop_words else ""


def _repeated_lines(text: str, config: QualityConfig) -> str:
    """Share of the lines (paragraphs) that stood before in the text, and of the characters in such lines."""
    parts = {
        "lines": (text.splitlines(), config.max_repeated_lines, config.max_repeated_line_characters),
        "paragraphs": (
            text.split("\n\n"),
            config.max_repeated_paragraphs,
            config.max_repeated_paragraph_characters,
        ),
    }
    for name, (pieces, allowed, allowed_characters) in parts.items():
        pieces = [piece.strip() for piece in pieces]
        pieces = [piece for piece in pieces if piece]
        distinct = set(pieces)
        share = 1 - len(distinct) / max(len(pieces), 1)
        total = sum(map(len, pieces))
        share_characters = 1 - sum(map(len, distinct)) / max(total, 1)
        if share > allowed or share_characters > allowed_characters:
            return f"repeated {name} ({share:.0%}, {share_characters:.0%} of characters)"
    return ""


def _repeated_ngrams(words: Sequence[str], config: QualityConfig) -> str:
    total = sum(map(len, words))
    for n, allowed in enumerate(config.max_top_ngrams, start=2):
        share = top_ngram_share(words, n, total)
        if share > allowed:
            return f"one phrase fills it ({share:.0%} of characters are one {n}-gram)"
    for n, allowed in enumerate(config.max_repeated_ngrams, start=5):
        share = repeated_ngram_share(words, n, total)
        if share > allowed:
            return f"repeated phrases ({share:.0%} of characters in repeated {n}-grams)"
        if not share:  # a longer n-gram that repeats would hold a shorter one that does
            break
    return ""


def top_ngram_share(words: Sequence[str], n: int, total: int) -> float:
    """Share of the `total` characters of `words` that the most frequent n-gram's occurrences fill (0 below five)."""
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    most = max(counts.values(), default=0)
    if most < _TOP_NGRAM_OCCURRENCES:
        return 0.0
    return max(most * sum(map(len, ngram)) for ngram, count in counts.items() if count == most) / total


def repeated_ngram_share(words: Sequence[str], n: int, total: int) -> float:
    """Share of the `total` characters of `words` inside n-grams that stood before in the text, each counted once."""
    ngrams = list(zip(*(words[start:] for start in range(n)), strict=False))
    if len(set(ngrams)) == len(ngrams):
        return 0.0
    seen: set[tuple[str, ...]] = set()
    characters = covered_until = 0
    for start, ngram in enumerate(ngrams):
        if ngram in seen:
            first = max(start, covered_until)
            characters += sum(map(len, words[first : start + n]))
            covered_until = start + n
        seen.add(ngram)
    return characters / total
