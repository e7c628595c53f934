"""Ways to find texts for a question, by one interface: words, vectors, both, both with diversity.

    bm25         words (rag.lexical)
    dense        cosine of the embedder's vectors
    hybrid       reciprocal rank fusion of the first `depth` of both
    hybrid-mmr   hybrid, its first `candidates` put in the order of maximal marginal relevance

Legend: N texts, D width of a vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict

from llm_journey.core.config import STRICT
from llm_journey.rag.fuse import reciprocal_rank_fusion, weighted_fusion
from llm_journey.rag.hits import Hits, best
from llm_journey.rag.lexical import LexicalIndex
from llm_journey.rag.mmr import maximal_marginal_relevance

RetrieverName = Literal["bm25", "dense", "hybrid", "hybrid-mmr"]
Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]  # texts -> (N, D), of length 1


class Retriever(Protocol):
    """Finds texts for a question."""

    def search(self, query: str, count: int) -> Hits: ...


@dataclass(frozen=True, kw_only=True)
class HybridConfig:
    """depth: of each list that is fused. weight: of the vectors' scores in a weighted sum (null: ranks are fused).
    candidates, trade_off: of maximal marginal relevance, which puts the first so many in order."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    depth: int = 100
    weight: float | None = None
    candidates: int = 20
    trade_off: float = 0.7

    def __post_init__(self) -> None:
        if self.depth < 1 or self.candidates < 1:
            raise ValueError("depth and candidates must be at least 1")
        for name in ("weight", "trade_off"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in 0 to 1, not {value}")


class DenseIndex:
    """Vectors of texts, all of them compared with a question's."""

    def __init__(self, vectors_nd: Vectors, embed: Embed) -> None:
        self.vectors_nd, self._embed = _of_length_one(vectors_nd), embed

    def search(self, query: str, count: int) -> Hits:
        """The nearest by cosine."""
        return best(self.vectors_nd @ self.embedded(query), count)

    def embedded(self, query: str) -> npt.NDArray[np.float32]:
        """(D,) of length 1."""
        vector: npt.NDArray[np.float32] = _of_length_one(self._embed([query]))[0]
        return vector


class HybridRetriever:
    """Words and vectors, fused."""

    def __init__(self, lexical: LexicalIndex, dense: DenseIndex, config: HybridConfig | None = None) -> None:
        self.lexical, self.dense, self.config = lexical, dense, config or HybridConfig()

    def search(self, query: str, count: int) -> Hits:
        """The best by the fused score."""
        lists = [self.lexical.search(query, self.config.depth), self.dense.search(query, self.config.depth)]
        weight = self.config.weight
        fused = reciprocal_rank_fusion(lists) if weight is None else weighted_fusion(lists, [1 - weight, weight])
        return fused.first(count)


class DiverseRetriever:
    """A hybrid whose first results are unlike each other; those behind them stay where they are."""

    def __init__(self, hybrid: HybridRetriever) -> None:
        self.hybrid = hybrid

    def search(self, query: str, count: int) -> Hits:
        """The hybrid's, its first `candidates` in the order of maximal marginal relevance."""
        config = self.hybrid.config
        found = self.hybrid.search(query, max(count, config.candidates))
        head = found.first(config.candidates)
        if not len(head):
            return found
        vectors_nd = self.hybrid.dense.vectors_nd[head.indices]
        low, high = head.scores.min(), head.scores.max()
        relevance = (head.scores - low) / (high - low) if high > low else np.ones(len(head))
        order = maximal_marginal_relevance(relevance, vectors_nd @ vectors_nd.T, len(head), trade_off=config.trade_off)
        indices = np.concatenate([head.indices[order], found.indices[len(head) :]])
        return Hits(indices, found.scores).first(count)


def _of_length_one(vectors_nd: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors_nd, axis=1, keepdims=True)
    found: Vectors = (vectors_nd / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return found
