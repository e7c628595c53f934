"""Token shards and trainers without a tokenizer: documents are lists of ids."""

import random
from pathlib import Path
from typing import Any

import torch

from llm_journey.datasets.shards import TokenShards, write_shards
from llm_journey.model.decoder import Decoder
from llm_journey.training.loaders import make_loader
from llm_journey.training.precision import Precision
from llm_journey.training.recipe import recipe_from
from llm_journey.training.trainer import Trainer

VOCABULARY, END = 20, 19


def write_documents(directory: Path, lengths: list[int], split: str = "train", seed: int = 0) -> TokenShards:
    """Documents of these numbers of random ids; each id counts as three bytes of text."""
    generator = random.Random(seed)
    texts = ["".join(chr(0x800 + generator.randrange(END)) for _ in range(length)) for length in lengths]
    directory.mkdir(parents=True, exist_ok=True)
    write_shards(
        texts,
        lambda batch: [[ord(letter) - 0x800 for letter in text] for text in batch],
        directory,
        split=split,
        vocab_size=VOCABULARY,
        end_id=END,
    )
    return TokenShards.open(directory, split)


def make_trainer(shards: TokenShards, *, model: dict[str, Any] | None = None, **training: Any) -> Trainer:
    """A trainer on the CPU, seeded by 0."""
    shape = {"width": 16, "num_layers": 1, "num_heads": 2, "context": 8}
    steps = {"batch_size": 2} if {"tokens", "seconds"} & training.keys() else {"batch_size": 2, "steps": 10}
    recipe = recipe_from(
        {"data": {"source": "ids"}, "model": {**shape, **(model or {})}, "training": {**steps, **training}}, "test"
    ).with_vocabulary(VOCABULARY)
    torch.manual_seed(0)
    name = "fp32" if recipe.training.precision == "auto" else recipe.training.precision
    return Trainer(
        recipe, Decoder(recipe.model).train(), make_loader(recipe, shards), Precision(name, torch.device("cpu"))
    )
