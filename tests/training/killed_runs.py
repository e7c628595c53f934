"""Runs that are killed at random moments and resumed. Run as a program: one import of torch, a fork for each process.

    python killed_runs.py TEXTS DIRECTORY KILLS SEED STEPS [BASE]

BASE: a model's folder; then the run trains an adapter of it, its matrices in 4 bits, its optimizer's state in 8.

A run saves after nearly every step. It is killed (`kill -9`) up to three times in a row, each time at a random moment
after its process began, then left to finish. What it logged must equal, row by row and bit for bit, what a run logged
that nobody killed. Prints how many kills fell into a save.
"""

import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny_runs
import torch

from llm_journey.finetuning.config import LoraConfig
from llm_journey.model.config import TransformerConfig
from llm_journey.training import run as running
from llm_journey.training.optim import OptimizerConfig
from llm_journey.training.recipe import Recipe


def _child(recipe: Recipe, directory: Path) -> int:
    """Train, or go on, in a process of its own; returns its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            base = Path(recipe.base) if recipe.base else None
            running.train(recipe, directory, base=base, resume=(directory / "run.json").exists())
            code = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


def _finish(recipe: Recipe, directory: Path) -> None:
    _, status = os.waitpid(_child(recipe, directory), 0)
    if status != 0:
        sys.exit(f"{directory}: the run did not finish (status {status})")


def _kill(recipe: Recipe, directory: Path, after: float) -> bool:
    """Start and kill after so many seconds; False where the process ended before."""
    child = _child(recipe, directory)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and status != 0:
        sys.exit(f"{directory}: the run failed before it was killed (status {status})")
    return os.WIFSIGNALED(status)


def _compare(directory: Path, whole: Path) -> None:
    for what in (tiny_runs.steps, tiny_runs.validations, tiny_runs.status):
        if what(directory) != what(whole):
            sys.exit(f"{directory}: {what.__name__} differ: {what(directory)} instead of {what(whole)}")
    left = [path for path in directory.rglob(".*") if path.name.endswith((".tmp", ".old"))]
    if left:
        sys.exit(f"{directory}: left behind: {left}")


def _recipe(texts: Path, base: str, **training: Any) -> Recipe:
    recipe = tiny_runs.make_recipe(texts, **training)
    if not base:
        return recipe
    optimizer = OptimizerConfig(name="adamw8bit", learning_rate=0.01)
    return replace(
        recipe,
        base=base,
        method="qlora",
        model=TransformerConfig(),
        adapter=LoraConfig(rank=64, dropout=0.1),
        training=replace(recipe.training, optimizer=optimizer),
    )


def main(texts: Path, root: Path, kills: int, seed: int, steps: int, base: str) -> None:
    """See above."""
    running.peak_flops = tiny_runs.peak_flops
    torch.set_num_threads(1)
    recipe = _recipe(texts, base, steps=steps, checkpoints=steps - 1, validations=3)
    _finish(_recipe(texts, base, steps=1), root / "warm")  # prepares the inputs
    started = time.monotonic()
    _finish(recipe, root / "whole")
    seconds = time.monotonic() - started
    generator, killed, in_a_save, number = random.Random(seed), 0, 0, 0
    while killed < kills:
        directory, number = root / f"run-{number}", number + 1
        for _ in range(generator.randint(1, 3)):
            if killed < kills and _kill(recipe, directory, generator.uniform(0.02, 0.9) * seconds):
                killed += 1
                in_a_save += any(directory.rglob(".*.tmp"))
        _finish(recipe, directory)
        _compare(directory, root / "whole")
    print(killed, in_a_save)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:6]), "".join(sys.argv[6:]))
