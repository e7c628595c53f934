"""Which streamed documents are held-out text: equal to a held-out document, or to a paragraph of one.

A stream reads each paragraph of a text file as a document of its own, while a prepared file is one document, or held
out from some character on. So paragraphs are compared too, and the one that such a cut goes through by its end.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import regex

from llm_journey.text.deduplication import content_hash, evened

_BETWEEN_PARAGRAPHS = regex.compile(r"\n\s*\n")


@dataclass(frozen=True)
class HeldOut:
    """hashes: of documents and of paragraphs. cut: what stands behind the cut in the paragraph that it goes through."""

    hashes: frozenset[bytes] = frozenset()
    cut: str = ""

    @staticmethod
    def of(documents: Iterable[str]) -> "HeldOut":
        """What is to be left out of a stream so that these stay unseen; a hash of 32 bytes each is kept."""
        hashes: set[bytes] = set()
        cut = ""
        for number, text in enumerate(documents):
            parts = list(_paragraphs(text))
            if number == 0 and parts:
                cut = evened(parts[0])
            hashes.update(map(content_hash, (text, *parts)))
        return HeldOut(frozenset(hashes), cut)

    def holds(self, text: str) -> bool:
        """Whether a streamed document is held out, whole or in part."""
        if not self.hashes:
            return False
        if content_hash(text) in self.hashes or (self.cut and evened(text).endswith(self.cut)):
            return True
        return any(content_hash(part) in self.hashes for part in _paragraphs(text))


NOTHING = HeldOut()


def _paragraphs(text: str) -> Iterator[str]:
    for part in _BETWEEN_PARAGRAPHS.split(text):
        if part.strip():
            yield part
