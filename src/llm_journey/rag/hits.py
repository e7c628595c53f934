"""What a search gives: numbers of texts with their scores, best first."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Hits:
    """indices (K,) of texts and scores (K,), which fall; K may be less than was asked for."""

    indices: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.indices)

    def first(self, count: int) -> "Hits":
        """The best of them."""
        return Hits(self.indices[:count], self.scores[:count])


def best(scores_n: Floats, count: int, *, above: float = -np.inf) -> Hits:
    """The `count` largest of (N,) scores that exceed `above`; of equal ones the earlier first."""
    scores = np.asarray(scores_n, dtype=np.float64)
    if count < len(scores):
        # All that may be among the first, ties at the edge included.
        edge = np.partition(scores, len(scores) - count)[len(scores) - count]
        chosen = np.flatnonzero(scores >= max(edge, np.nextafter(above, np.inf)))
    else:
        chosen = np.flatnonzero(scores > above)
    order = chosen[np.argsort(-scores[chosen], kind="stable")][:count]
    return Hits(order.astype(np.int64), scores[order])
