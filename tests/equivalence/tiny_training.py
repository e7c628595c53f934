"""A corpus of made-up letters, a recipe and a trainer, small enough to take a step in milliseconds."""

import random
from pathlib import Path
from typing import Any

import torch

from llm_journey.datasets.shards import TokenShards, write_shards
from llm_journey.model.decoder import Decoder
from llm_journey.training.loaders import make_loader
from llm_journey.training.precision import Precision
from llm_journey.training.recipe import Recipe, recipe_from
from llm_journey.training.trainer import Trainer

VOCABULARY, END = 27, 26  # the letters, and what ends a document
CONTEXT = 12


def letters(texts: list[str]) -> list[list[int]]:
    """a = 0, b = 1, ..."""
    return [[ord(letter) - ord("a") for letter in text] for text in texts]


def write_corpus(directory: Path, *, seed: int = 0, longest: int = 30, num_documents: int = 14) -> TokenShards:
    """Documents of 1 to `longest` letters, each following from the one before: something to learn."""
    generator = random.Random(seed)
    texts = []
    for _ in range(num_documents):
        text = generator.choice("abc")
        for _ in range(generator.randint(0, longest - 1)):
            text += chr((ord(text[-1]) - ord("a") + generator.choice((1, 1, 1, 5))) % 26 + ord("a"))
        texts.append(text)
    directory.mkdir(parents=True, exist_ok=True)
    write_shards(texts, letters, directory, split="train", vocab_size=VOCABULARY, end_id=END)
    return TokenShards.open(directory, "train")


def make_recipe(model: dict[str, Any] | None = None, **training: Any) -> Recipe:
    """A recipe of 8 steps; `model` and `training` change what is given."""
    shape = {"width": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "context": CONTEXT}
    steps = {"steps": 8, "batch_size": 2}
    recipe = recipe_from(
        {"data": {"source": "letters"}, "model": {**shape, **(model or {})}, "training": {**steps, **training}}, "test"
    )
    return recipe.with_vocabulary(VOCABULARY)


def make_trainer(recipe: Recipe, shards: TokenShards, *, seed: int | None = None) -> Trainer:
    """A trainer of a fresh model; everything that is drawn follows from the recipe's seed, or from `seed`."""
    torch.manual_seed(recipe.seed if seed is None else seed)
    device = torch.device("cpu")
    precision = "fp32" if recipe.training.precision == "auto" else recipe.training.precision
    return Trainer(recipe, Decoder(recipe.model).train(), make_loader(recipe, shards), Precision(precision, device))


def steps(trainer: Trainer, count: int) -> list[float]:
    """Losses of the next `count` steps."""
    return [trainer.step().loss for _ in range(count)]
