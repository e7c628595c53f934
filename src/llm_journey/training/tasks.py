"""Tasks whose data is made, not read: pairs of texts for an encoder-decoder, by name, from a seed.

A task belongs here when its answers can be computed, so that every pair is right and as many can be had as are wanted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llm_journey.core.errors import unknown_name
from llm_journey.datasets.pair_files import Pairs
from llm_journey.training.tasks_dates import date_pairs

DEFAULT_PAIRS = 50_000


@dataclass(frozen=True)
class Task:
    """pairs(seed, held_out, number): "train" and "validation", where no answer of the one is asked for in the other.

    version: raised whenever the same arguments would give other pairs, so that nothing made before is taken for them.
    """

    title: str
    version: int
    pairs: Callable[[int, float, int], Mapping[str, Pairs]]


TASKS: dict[str, Task] = {
    "dates": Task("generated pairs of a date as people write it and its ISO 8601 form", 1, date_pairs),
}


def find_task(name: str) -> Task:
    """The task called `name`. Raises BadInputError that lists the known names."""
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]
