"""Whole runs that take a fraction of a second: texts, recipes, and what a run's folder holds afterwards."""

import json
import random
from pathlib import Path
from typing import Any

from llm_journey.training.observer import Observer
from llm_journey.training.recipe import Recipe, recipe_from

_WORDS = ("the", "a", "river", "city", "king", "old", "stone", "red", "house", "near", "of", "in", "was", "built", "by")


def peak_flops(*arguments: Any) -> float:
    """In place of a measurement of this machine."""
    return 1e9


def write_texts(folder: Path, seed: int = 0, count: int = 24) -> Path:
    """Short texts, all different."""
    generator = random.Random(seed)
    for number in range(count):
        words = generator.choices(_WORDS, k=generator.randint(6, 25))
        (folder / f"{number:02}.txt").write_text(f"{' '.join(words)} {number}.", encoding="utf-8")
    return folder


def make_recipe(source: Path, *, model: dict[str, Any] | None = None, seed: int = 0, **training: Any) -> Recipe:
    """A recipe of 8 steps with dropout, every step logged."""
    shape = {"width": 16, "num_layers": 1, "num_heads": 2, "context": 16, "qk_norm": True, "dropout": 0.1}
    steps = {"steps": 8, "batch_size": 2, "log_every": 1, "validations": 2, "checkpoints": 2}
    if "seconds" in training or "tokens" in training:
        steps.pop("steps")
    return recipe_from(
        {
            "name": "tiny",
            "seed": seed,
            "data": {"source": str(source), "held_out": 0.2},
            "tokenizer": {"vocab_size": 280},
            "model": {**shape, **(model or {})},
            "training": {**steps, **training},
        },
        "test",
    )


def rows(directory: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The rows of a JSON-lines file of a run."""
    return [json.loads(line) for line in (directory / name).read_text(encoding="utf-8").split("\n")[:-1]]


def steps(directory: Path) -> list[dict[str, Any]]:
    """The logged training steps without what is measured in time."""
    timed = ("seconds", "tokens_per_second", "mfu")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows(directory) if "loss" in row]


def validations(directory: Path) -> dict[int, float]:
    """Validation losses by step."""
    return {row["step"]: row["validation_loss"] for row in rows(directory) if "validation_loss" in row}


def status(directory: Path) -> str:
    """What run.json says."""
    found: str = json.loads((directory / "run.json").read_text(encoding="utf-8"))["status"]
    return found


class Recorder(Observer):
    """Keeps what it is told; `at_step` is called with each step."""

    def __init__(self, at_step: Any = None) -> None:
        self.messages: list[str] = []
        self.stages: list[str] = []
        self.samples: list[dict[str, Any]] = []
        self.at_step = at_step

    def message(self, text: str) -> None:
        self.messages.append(text)

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def sample(self, row: dict[str, Any]) -> None:
        self.samples.append(row)

    def step(self, row: dict[str, Any]) -> None:
        if self.at_step is not None:
            self.at_step(row["step"])
