"""What a run must find as it was when it goes on: its recipe, its data, the models that it begins with."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_journey.core import config as configuration
from llm_journey.core.errors import BadInputError
from llm_journey.model.config import TransformerConfig
from llm_journey.training.recipe import Recipe

# Fingerprints that are no data's.
MODELS = {"base": "the model that it goes on from", "teacher": "the model that it learns from"}


def check_same_recipe(saved: Recipe, given: Recipe, directory: Path) -> None:
    """Only how long to train, and what is shown meanwhile, may change between a run and its continuation."""
    free = {
        name: getattr(given.training, name)
        for name in (
            "steps",
            "tokens",
            "seconds",
            "validations",
            "checkpoints",
            "keep_checkpoints",
            "early_stopping",
            "trackers",
            "sample_prompts",
            "log_every",
            "compile",
        )
    }
    expected = configuration.dump(replace(saved, training=replace(saved.training, **free)))
    # The shape of a base, and the size that a tokenizer came to, are no choices of a recipe.
    model = replace(given.model, vocab_size=saved.model.vocab_size)
    if saved.base is not None and given.model == TransformerConfig():
        model = saved.model
    found = configuration.dump(replace(given, name=saved.name, model=model))
    expected["name"] = found["name"]
    for key, (old, new) in _differences(expected, found, ""):
        raise BadInputError(
            f"{directory}: cannot resume with another {key} ({old!r} before, {new!r} now); start a new run instead"
        )


def _differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, (old, new)


def check_fingerprints(before: Mapping[str, str], now: Mapping[str, str], directory: Path) -> None:
    """Refuse to go on with other data, or beside another model, than the run began with (NeMo-RL#2519)."""
    for name in dict.fromkeys((*now, *before)):
        expected, found = before.get(name), now.get(name)
        if expected != found:
            what = MODELS.get(name, "the data")
            raise BadInputError(
                f"{directory}: the {name} fingerprint was {expected} and is now {found}; "
                f"{what} changed under the run: restore it, or start a new run"
            )
