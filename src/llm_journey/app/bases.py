"""The model that a recipe goes on from: where it lies, and its tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING

from llm_journey.training.recipe import Recipe

if TYPE_CHECKING:
    from llm_journey.tokenizer import Tokenizer


def find_base(recipe: Recipe) -> Path | None:
    """Where the recipe's base lies, None where it has none; a catalog model is pulled, which is said.

    Raises BadInputError that says what can be opened.
    """
    from llm_journey.app.find_models import find_text_model

    return None if recipe.base is None else find_text_model(recipe.base)


def find_teacher(recipe: Recipe) -> Path | None:
    """`find_base` for the teacher of a recipe that distills."""
    from llm_journey.app.find_models import find_text_model

    return None if recipe.distill is None else find_text_model(recipe.distill.teacher)


def base_tokenizer(recipe: Recipe) -> "Tokenizer | None":
    """The tokenizer that the recipe takes from its base, else from its teacher; None where it has neither."""
    from llm_journey.checkpoint.decoders import read_decoder
    from llm_journey.training.methods import tokenizer_for

    path = find_base(recipe) or find_teacher(recipe)
    if path is None:
        return None
    stored = read_decoder(path)
    return tokenizer_for(recipe, stored.tokenizer, stored.decoder.config.vocab_size)
