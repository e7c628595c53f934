"""Documents cut into passages that are found and cited by themselves; each knows where it stands.

    fixed       windows of `size` characters, at any place
    recursive   at the largest boundary that lets a passage fit: blank lines, lines, sentences, words, characters
    sentence    whole sentences, as many as fit
    markdown    recursive within each section, under its headings

Sizes are characters. Neighbours share up to `overlap`; of recursive and sentence passages what is shared is whole
pieces. Every passage is a stretch of its document: text[start:stop], and together they cover all but white space.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import regex
from pydantic import ConfigDict

from llm_journey.core.config import STRICT

ChunkerName = Literal["fixed", "recursive", "sentence", "markdown"]
Span = tuple[int, int]
SENTENCE_END = regex.compile(r"(?<=[.!?][\"'\u201d\u2019)\]]?)\s+")
# Where a passage may end, the best place first; each pattern matches what stands behind a piece.
_BOUNDARIES = (regex.compile(r"\n[ \t]*\n\s*"), regex.compile(r"\n"), SENTENCE_END, regex.compile(r"\s+"))
_SENTENCE = 2  # the boundary between sentences
_HEADING = regex.compile(r"^(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$", regex.MULTILINE)
_FENCE = regex.compile(r"^(```|~~~).*?^\1[^\n]*$", regex.MULTILINE | regex.DOTALL)


@dataclass(frozen=True, kw_only=True)
class ChunkConfig:
    """How documents are cut. size and overlap in characters."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    chunker: ChunkerName = "recursive"
    size: int = 900
    overlap: int = 120

    def __post_init__(self) -> None:
        if not 20 <= self.size <= 1_000_000:
            raise ValueError(f"size must lie in 20 to 1,000,000 characters, not {self.size}")
        if not 0 <= self.overlap <= self.size // 2:
            raise ValueError(f"overlap must lie in 0 to half of size ({self.size // 2}), not {self.overlap}")


@dataclass(frozen=True)
class Chunk:
    """text is the document's [start:stop]; heading: of the section that it lies in, outermost first."""

    text: str
    start: int
    stop: int
    heading: str = ""


def chunks(text: str, config: ChunkConfig) -> list[Chunk]:
    """The passages of a document, in its order; none of it is white space alone."""
    return [
        Chunk(text[start:stop], start, stop, heading)
        for heading, section in _sections(text, config)
        for start, stop in _trimmed(text, CHUNKERS[config.chunker](text, section, config))
    ]


def _sections(text: str, config: ChunkConfig) -> Iterator[tuple[str, Span]]:
    if config.chunker != "markdown":
        yield "", (0, len(text))
        return
    fenced = [match.span() for match in _FENCE.finditer(text)]
    path: list[tuple[int, str]] = []
    begin, heading = 0, ""
    for match in _HEADING.finditer(text):
        if any(start <= match.start() < stop for start, stop in fenced):
            continue  # a comment in a listing
        if match.start() > begin:
            yield heading, (begin, match.start())
        level = len(match[1])
        path = [(depth, name) for depth, name in path if depth < level] + [(level, match[2])]
        begin, heading = match.start(), " > ".join(name for _, name in path)
    if begin < len(text):
        yield heading, (begin, len(text))


def _fixed(text: str, section: Span, config: ChunkConfig) -> Iterator[Span]:  # noqa: ARG001 - one signature for all
    start, end = section
    while start < end:
        stop = min(start + config.size, end)
        yield start, stop
        if stop == end:
            return
        start = stop - config.overlap


def _recursive(text: str, section: Span, config: ChunkConfig) -> Iterator[Span]:
    return _joined(list(_pieces(text, section, config.size, 0)), config)


def _sentences(text: str, section: Span, config: ChunkConfig) -> Iterator[Span]:
    return _joined(list(_pieces(text, section, config.size, _SENTENCE, all_of_first=True)), config)


def _pieces(text: str, section: Span, size: int, level: int, *, all_of_first: bool = False) -> Iterator[Span]:
    """Stretches of at most `size` that follow each other, cut at the boundaries from `level` on."""
    start, end = section
    if end - start <= size and not all_of_first:
        yield section
        return
    if level == len(_BOUNDARIES):
        yield from ((at, min(at + size, end)) for at in range(start, end, size))
        return
    for match in _BOUNDARIES[level].finditer(text, start, end):
        if match.end() > start:
            yield from _pieces(text, (start, match.end()), size, level + 1)
            start = match.end()
    if start < end:
        yield from _pieces(text, (start, end), size, level + 1)


def _joined(pieces: list[Span], config: ChunkConfig) -> Iterator[Span]:
    """Neighbouring pieces together, as many as fit; the next passage begins with the last ones that `overlap` holds."""
    first = 0
    while first < len(pieces):
        last = first
        while last + 1 < len(pieces) and pieces[last + 1][1] - pieces[first][0] <= config.size:
            last += 1
        yield pieces[first][0], pieces[last][1]
        following = last + 1
        if following < len(pieces):
            stop = pieces[last][1]
            while (
                following - 1 > first
                and stop - pieces[following - 1][0] <= config.overlap
                and pieces[last + 1][1] - pieces[following - 1][0] <= config.size
            ):
                following -= 1
        first = following


def _trimmed(text: str, spans: Iterator[Span]) -> Iterator[Span]:
    for start, stop in spans:
        part = text[start:stop]
        inner = part.strip()
        if inner:
            begin = start + len(part) - len(part.lstrip())
            yield begin, begin + len(inner)


CHUNKERS: dict[ChunkerName, Callable[[str, Span, ChunkConfig], Iterator[Span]]] = {
    "fixed": _fixed,
    "recursive": _recursive,
    "sentence": _sentences,
    "markdown": _recursive,
}
