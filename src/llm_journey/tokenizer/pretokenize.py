"""Split patterns: where text is cut before byte pairs are merged, so that no token crosses such a cut.

Each pattern is kept in two spellings: the published one (what `tokenizer.json` files carry), and one for the `regex`
library (training, oracle) and tiktoken's Rust engine (fast encoding) alike. The second spares the engines work that
changes nothing (possessive quantifiers, the most frequent alternative first); tests prove that both cut alike.

What differs between the engines: `$` in `regex` also matches before a final newline, so it is avoided here; `\\s` is
Unicode's White_Space in all of them (Python's own `re` adds U+001C..U+001F, so `re` is not used); each engine carries
its own Unicode version, so characters assigned after Unicode 15 may be classed as letters by one and not by another.
tiktoken's own spelling of cl100k keeps a run of newlines and spaces at the end of a text whole, where the published
pattern cuts after the last newline; we follow the published one, as Hugging Face files do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import regex

PatternName = Literal["gpt2", "cl100k", "qwen2", "gpt2_digits"]

_GPT2 = r" ?\p{L}++|'(?:[sdmt]|ll|ve|re)| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s"
_GPT2_DIGITS = r" ?\p{L}++|'(?:[sdmt]|ll|ve|re)|\p{N}| ?[^\s\p{L}\p{N}]++|\s+(?![^\s\p{N}])|\s"


def _cl100k(numbers: str) -> str:
    return (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|"
        + numbers
        + r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]+|\s+(?!\S)|\s"
    )


def _cl100k_published(numbers: str) -> str:
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + numbers
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


@dataclass(frozen=True)
class SplitPattern:
    """One split pattern. `source` runs in `regex` and in tiktoken alike; `published` is the form in the wild."""

    name: PatternName
    source: str
    published: str
    origin: str


PATTERNS: dict[str, SplitPattern] = {
    pattern.name: pattern
    for pattern in (
        SplitPattern(
            "gpt2",
            _GPT2,
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
            "GPT-2 (Radford et al. 2019), encoder.py",
        ),
        SplitPattern("cl100k", _cl100k(r"\p{N}{1,3}+"), _cl100k_published(r"\p{N}{1,3}"), "GPT-4 and Llama 3"),
        SplitPattern("qwen2", _cl100k(r"\p{N}"), _cl100k_published(r"\p{N}"), "Qwen 2, 2.5 and 3"),
        SplitPattern("gpt2_digits", _GPT2_DIGITS, "", "SmolLM: every digit alone, then GPT-2's pattern"),
    )
}

# A cut that no pattern's match crosses: a single white space character between a letter or digit and a non-space.
_SAFE_CUT = regex.compile(r"(?<=[\p{L}\p{N}])(?=\s\S)")


@cache
def compiled(name: str) -> regex.Pattern[str]:
    """The compiled form of `PATTERNS[name]`."""
    return regex.compile(PATTERNS[name].source)


def split(text: str, name: str) -> list[str]:
    """`text` cut into pre-tokens; joined they are `text` again."""
    words: list[str] = compiled(name).findall(text)
    return words


def pieces(text: str, max_characters: int) -> Iterator[str]:
    """`text` in pieces of about `max_characters` (at least 1), cut only where no pattern's pre-token is cut."""
    start = 0
    while len(text) - start > max_characters:
        cut = _SAFE_CUT.search(text, start + max_characters)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    if start < len(text):
        yield text[start:]
