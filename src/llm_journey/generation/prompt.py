"""What a prompt must be, and how what follows it can end.

The rule for long prompts: one longer than the model's context is refused with both counts; nothing is cut in silence.
"""

from collections.abc import Sequence
from typing import Literal

from llm_journey.core.errors import BadInputError

# stop: a stop id came (it is not part of the output), or a constraint allows nothing more; length: max_new_tokens;
# context: the context is full; error: choosing a token failed, and Request.error says how.
FinishReason = Literal["stop", "length", "context", "cancelled", "error"]


def check_prompt(ids: Sequence[int], vocab_size: int, context: int) -> None:
    """Raises BadInputError for an empty prompt, one longer than the context, or an id outside the vocabulary."""
    if not ids:
        raise BadInputError("the prompt is empty: give at least one token")
    if len(ids) > context:
        raise BadInputError(
            f"the prompt has {len(ids)} tokens, the model's context holds {context}: shorten the prompt or use a model "
            "with a longer context"
        )
    wrong = next((item for item in ids if not 0 <= item < vocab_size), None)
    if wrong is not None:
        raise BadInputError(f"token id {wrong} is outside the model's vocabulary of {vocab_size}")
