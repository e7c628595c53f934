"""Recipes: the shipped ones load, wrong ones name file, key, value and what is allowed, overrides reach everything."""

from pathlib import Path
from typing import Any

import pytest

from llm_journey.core.config import dump, to_yaml
from llm_journey.core.errors import BadInputError
from llm_journey.model.config import TransformerConfig
from llm_journey.training.recipe import Recipe, load_recipe, recipe_from, shipped_recipes


def _mapping(**changes: Any) -> dict[str, Any]:
    return {"data": {"source": "texts"}, "training": {"steps": 5}, **changes}


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_survive_being_written_down(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    path = tmp_path / "copy.yaml"
    path.write_text(to_yaml(dump(recipe)), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert load_recipe(str(shipped_recipes()[name])) == recipe


def test_there_are_shipped_recipes() -> None:
    assert {"quickstart", "small"} <= set(shipped_recipes())


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        (
            _mapping(trainng={}),
            "unknown key 'trainng'; allowed: name, seed, stage, method, base, objective, data, chats, adapter, prompt, "
            "frozen, replay, forgetting, vocabulary, distill, tokenizer, model, training",
        ),
        (_mapping(model={"widht": 8}), "unknown key 'model.widht'; allowed: vocab_size, width"),
        (
            _mapping(training={"steps": 5, "optimizer": {"lr": 1}}),
            "unknown key 'training.optimizer.lr'; allowed: name, learning_rate",
        ),
        (_mapping(training={"steps": "many"}), "key 'training.steps' = 'many': input should be a valid integer"),
        (_mapping(training={"steps": 0}), "key 'training': steps must be positive, not 0"),
        (_mapping(training={}), "key 'training': a budget is needed: set steps, tokens or seconds"),
        (_mapping(training={"seconds": float("inf")}), "key 'training.seconds' = inf: input should be a finite number"),
        (_mapping(training={"seconds": float("nan")}), "key 'training.seconds' = nan: input should be a finite number"),
        (_mapping(training={"steps": 5, "order": "random"}), "'documents', 'windows' or 'packed'"),
        (_mapping(training={"steps": 5, "trackers": ["mlflow"]}), "'jsonl', 'tensorboard' or 'wandb'"),
        (_mapping(training={"steps": 5, "precision": "int8"}), "'auto', 'fp32', 'bf16' or 'fp16'"),
        (_mapping(training={"steps": 5, "label_smoothing": 1.0}), "label_smoothing must be in [0, 1), not 1.0"),
        (_mapping(training={"steps": 5, "early_stopping": 0}), "early_stopping must be at least 1 validation, or null"),
        (_mapping(training={"steps": 5, "batch_size": 0}), "batch_size must be at least 1, not 0"),
        (_mapping(training={"steps": 5, "optimizer": {"learning_rate": 0}}), "learning rates must be positive"),
        (
            _mapping(training={"steps": 5, "optimizer": {"embedding_learning_rate": -1}}),
            "learning rates must be positive",
        ),
        (_mapping(training={"steps": 5, "optimizer": {"epsilon": -1}}), "epsilon must not be negative"),
        (_mapping(training={"steps": 5, "optimizer": {"betas": [0.9, 1.0]}}), "betas and momentum must be in [0, 1)"),
        (_mapping(training={"steps": 5, "optimizer": {"newton_schulz_steps": 0}}), "must lie in 1 to 20, not 0"),
        (_mapping(tokenizer={"vocab_size": 200}), "vocab_size 200 is too small: 256 bytes and 3 special tokens"),
        (_mapping(name="../etc"), "name '../etc' may hold letters, digits"),
        (_mapping(name=".hidden"), "name '.hidden' must not begin with '.'"),
        (_mapping(seed=-1), "seed must not be negative, not -1"),
        ({"training": {"steps": 5}}, "key 'data' is missing"),
        ({"data": {"source": "x"}}, "key 'training' is missing"),
        ({"data": {}, "training": {"steps": 5}}, "key 'data.source' is missing"),
    ],
)
def test_wrong_recipes_say_what_is_wrong(mapping: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(mapping), encoding="utf-8")
    with pytest.raises(BadInputError) as raised:
        load_recipe(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ") and reason in message and "\n" not in message


def test_overrides_are_named_in_errors() -> None:
    recipe = recipe_from(_mapping(), "mine.yaml", ["model.width=64", "training.optimizer.betas=[0.8, 0.9]", "name=x"])
    assert (recipe.model.width, recipe.training.optimizer.betas, recipe.name) == (64, (0.8, 0.9), "x")
    with pytest.raises(BadInputError, match=r"mine.yaml with --set model.width=wide: key 'model.width' = 'wide'"):
        recipe_from(_mapping(), "mine.yaml", ["model.width=wide"])


def test_a_missing_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(BadInputError, match=r"nothing\.yaml: no such recipe file; shipped recipes: .*quickstart"):
        load_recipe("nothing.yaml")


def test_a_run_is_a_recipe(tmp_path: Path) -> None:
    recipe = recipe_from(_mapping(name="first"), "test")
    (tmp_path / "recipe.yaml").write_text(to_yaml(dump(recipe)), encoding="utf-8")
    assert load_recipe(tmp_path) == recipe
    assert load_recipe(tmp_path, ["training.steps=9"]).training.steps == 9


def test_the_vocabulary_is_the_tokenizers() -> None:
    recipe = recipe_from(_mapping(), "test")
    assert recipe.with_vocabulary(300).model.vocab_size == 300
    roomy = Recipe(data=recipe.data, training=recipe.training, model=TransformerConfig(vocab_size=512))
    assert roomy.with_vocabulary(300).model.vocab_size == 512
    with pytest.raises(BadInputError, match=r"model\.vocab_size 512 is smaller than the tokenizer's 600; leave it out"):
        roomy.with_vocabulary(600)
