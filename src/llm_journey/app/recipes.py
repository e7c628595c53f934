"""What a person names when a recipe is wanted: a shipped recipe, a YAML file, a run, or a text source by itself."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llm_journey.app.runs import find_run, has_run, suggestion
from llm_journey.core.errors import BadInputError
from llm_journey.training.recipe import RECIPE_FILE, Recipe, load_recipe, shipped_recipes

# What a source by itself is prepared like.
DEFAULT_RECIPE = "quickstart"
_SUFFIXES = {".yaml", ".yml"}


def find_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a shipped name, a YAML file, or a run's name or folder (in this order), overrides applied.

    Raises BadInputError that lists what there is, or says what is wrong with the recipe.
    """
    path = Path(name_or_path).expanduser()
    if name_or_path in shipped_recipes() or path.suffix in _SUFFIXES or path.is_file():
        return load_recipe(name_or_path if name_or_path in shipped_recipes() else path, overrides)
    if has_run(name_or_path):
        recipe = load_recipe(find_run(name_or_path).directory, overrides)
        # The size that the run's tokenizer came to is no choice of its recipe: new text decides anew.
        return replace(recipe, model=replace(recipe.model, vocab_size=0))
    raise BadInputError(
        f"unknown recipe {name_or_path!r}: give one of {', '.join(shipped_recipes())}, a YAML file, or a run "
        f"({suggestion(name_or_path)})"
    )


def recipe_for_source(recipe_or_source: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe as `find_recipe` finds it; any other text is a source of documents, prepared by the default recipe."""
    path = Path(recipe_or_source).expanduser()
    is_recipe = recipe_or_source in shipped_recipes() or path.suffix in _SUFFIXES
    if is_recipe or has_run(recipe_or_source):
        if path.is_dir() and path.name == recipe_or_source and not (path / RECIPE_FILE).is_file():
            raise BadInputError(
                f"{recipe_or_source!r} is a folder here, and the name of a recipe or a run; for the folder, write "
                f"./{recipe_or_source}"
            )
        return find_recipe(recipe_or_source, overrides)
    recipe = load_recipe(DEFAULT_RECIPE, overrides)
    return replace(recipe, data=replace(recipe.data, source=recipe_or_source))
