"""Search by words: BM25 as Lucene computes it (Robertson and Zaragoza 2009; Kamphuis et al. 2020), by package bm25s.

    score(q, d) = sum over the words t of q of  idf(t) tf / (tf + k1 (1 - b + b |d| / mean |d|))
    idf(t) = ln(1 + (N - n + 0.5) / (n + 0.5))

tests/rag/test_lexical.py: equal to these two lines, written out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict

from llm_journey.core.config import STRICT
from llm_journey.core.errors import BadInputError

if TYPE_CHECKING:
    from llm_journey.rag.hits import Hits


@dataclass(frozen=True, kw_only=True)
class LexicalConfig:
    """k1: how soon more of a word counts no more. b: how far long documents are held to their length (0 to 1)."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    k1: float = 0.9
    b: float = 0.4

    def __post_init__(self) -> None:
        if not self.k1 >= 0 or not 0 <= self.b <= 1:
            raise ValueError(f"k1 must not be negative and b must lie in 0 to 1, not {self.k1} and {self.b}")


class LexicalIndex:
    """BM25 over texts. English stop words are left out, the others stemmed (Snowball)."""

    def __init__(self, texts: Sequence[str], config: LexicalConfig | None = None) -> None:
        bm25s, self._stemmer = _packages()
        self._bm25s, config = bm25s, config or LexicalConfig()
        self.size = len(texts)
        self._index = bm25s.BM25(method="lucene", k1=config.k1, b=config.b)
        words = self._words(list(texts))
        self._is_empty = not any(words.ids)  # bm25s indexes no corpus of stop words alone
        if not self._is_empty:
            self._index.index(words, show_progress=False)

    def scores(self, query: str) -> npt.NDArray[np.float32]:
        """(N,) of every text; 0 where no word of the query stands in it."""
        words: list[str] = self._bm25s.tokenize(
            query, stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False
        )[0]
        known = [] if self._is_empty else [word for word in words if word in self._index.vocab_dict]
        if not known:
            return np.zeros(self.size, dtype=np.float32)
        found: npt.NDArray[np.float32] = self._index.get_scores(known)
        return found

    def search(self, query: str, count: int) -> "Hits":
        """The best `count` texts that hold a word of the query; of equal scores the earlier text first."""
        from llm_journey.rag.hits import best

        return best(self.scores(query), count, above=0.0)

    def _words(self, texts: list[str]) -> Any:
        return self._bm25s.tokenize(texts, stopwords="en", stemmer=self._stemmer, show_progress=False)


def _packages() -> tuple[Any, Any]:
    try:
        import bm25s
        import Stemmer
    except ModuleNotFoundError as error:
        raise BadInputError(f"search by words needs the package {error.name}: pip install 'llm-journey[rag]'") from None
    return bm25s, Stemmer.Stemmer("english")
