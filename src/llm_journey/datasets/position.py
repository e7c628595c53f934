"""What every loader shares: checked arguments, and a saved position that is only taken back by the same stream."""

from collections.abc import Sequence
from typing import Any

from llm_journey.core.errors import BadInputError


def check_process(batch_size: int, context: int, world_size: int, rank: int) -> None:
    """Raises BadInputError for a batch without rows or positions, or a process that is not one of `world_size`."""
    if batch_size < 1 or context < 1:
        raise BadInputError(f"batch size {batch_size} and context {context} must both be at least 1")
    if not 0 <= rank < world_size:
        raise BadInputError(f"rank {rank} is not one of {world_size} processes (0 to {world_size - 1})")


def read_state(state: dict[str, Any], identity: dict[str, Any], counters: Sequence[str]) -> list[int]:
    """The `counters` of a saved position, once everything in `identity` is as it was.

    Raises BadInputError naming both values where the data, the seed or a setting differs (NeMo-RL#2519: a data set
    swapped under a resumed run), and for a counter that is no count.
    """
    for key, value in identity.items():
        if state.get(key) != value:
            what = "data fingerprint" if key == "fingerprint" else key
            raise BadInputError(
                f"the saved position is of {what} {state.get(key)!r}, but this run has {value!r}; "
                f"resume with what the run was started with"
            )
    found = [state.get(counter) for counter in counters]
    for counter, count in zip(counters, found, strict=True):
        if type(count) is not int or count < 0:
            raise BadInputError(f"the saved position has {counter} {count!r}, which is no count; it is damaged")
    return [count for count in found if count is not None]
