"""Readings of random models whose tokens are as hostile as text can be."""

from typing import Any

from inspected_decoders import random_decoder

from llm_journey.inspection.inspection import inspect_ids
from llm_journey.inspection.reading import Reading, spelled

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"' onmouseover=alert(3) ",
    "{{ 7 * 7 }}",
    "$x^2$",
    "\u202egnp.exe",
    "\n",
    " the",
    "𝔘 漢字 🎉",
)


def word(token: int) -> str:
    return spelled(HOSTILE[token % len(HOSTILE)].encode("utf-8"))


def reading(length: int = 12, **choices: Any) -> Reading:
    """What a random decoder did with `length` tokens; choices: of inspect_ids."""
    ids = [7 * index % 61 for index in range(length)]
    found = inspect_ids(random_decoder(), ids, **choices)
    text = "".join(HOSTILE[token % len(HOSTILE)] for token in ids)
    return Reading(model="<b>m</b>", text=text, inspection=found, tokens=tuple(map(word, ids)), word=word)
