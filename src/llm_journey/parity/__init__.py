"""Every equality that the project claims, as rows that can be measured again on any machine: `journey parity`.

A row sets a part of ours beside the reference library's and gives the largest difference. Each can also be measured
with an error planted on our side (one weight, one mask entry, one constant changed): tests/parity shows that every row
that can be measured then fails. That a row's two sides are not one piece of code is for its reader to see: the
reference is named, and called by its own public name; where both are ours (a fast form and its readable one, the
engine and plain decoding) the reference says llm-journey.
"""

from collections.abc import Iterable

from llm_journey.parity import (
    adapters,
    architecture,
    artifacts,
    embeddings,
    engine,
    families,
    inside,
    learning,
    mathematics,
    published,
    sequences,
    tokens,
    tuned,
)
from llm_journey.parity.equality import Equality, Outcome, measure, missing_items

EQUALITIES: tuple[Equality, ...] = (
    *mathematics.EQUALITIES,
    *tokens.EQUALITIES,
    *architecture.EQUALITIES,
    *families.EQUALITIES,
    *learning.EQUALITIES,
    *adapters.EQUALITIES,
    *tuned.EQUALITIES,
    *sequences.EQUALITIES,
    *inside.EQUALITIES,
    *embeddings.EQUALITIES,
    *artifacts.EQUALITIES,
    *engine.EQUALITIES,
    *published.EQUALITIES,
)

__all__ = ["EQUALITIES", "Equality", "Outcome", "measure", "missing_items", "select"]


def select(words: Iterable[str]) -> tuple[Equality, ...]:
    """The equalities whose component or reference holds every one of `words`, in any case; all for no words."""
    wanted = [word.casefold() for word in words]
    return tuple(
        equality
        for equality in EQUALITIES
        if all(word in f"{equality.component} {equality.reference}".casefold() for word in wanted)
    )
