"""Resumed = uninterrupted, at any stopping point, in every order: equal bit for bit, so compared with `==`.

Budgets in steps and tokens only: with one in seconds the learning rate follows the clock, which no two runs share.
"""

import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import make_recipe, make_trainer, steps, write_corpus

from llm_journey.checkpoint.model_folder import write_model_files
from llm_journey.checkpoint.training_state import latest_checkpoint, save_checkpoint
from llm_journey.core.errors import BadInputError
from llm_journey.datasets.shards import TokenShards
from llm_journey.training.recipe import Recipe
from llm_journey.training.trainer import Trainer

STEPS = 8
ORDERS = ("documents", "windows", "packed")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    """The data of every run here: 8 steps see several epochs of it."""
    return write_corpus(tmp_path_factory.mktemp("shards"))


@cache
def _recipe(order: str, optimizer: str = "muon", precision: str = "fp32") -> Recipe:
    """Dropout is on: a resumed run must draw the same random numbers too."""
    return make_recipe(
        {"dropout": 0.2, "qk_norm": True},
        order=order,
        optimizer={"name": optimizer, "weight_decay": 0.1},
        precision=precision,
        accumulation=2,
        steps=STEPS,
    )


def _ending(trainer: Trainer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    state = trainer.state()
    state["position"].pop("seconds")  # the one thing that is measured
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return weights | trainer.tensors(), state


def _hand_over(trainer: Trainer, recipe: Recipe, shards: TokenShards, directory: Path, seed: int) -> Trainer:
    """The trainer of a new process: it knows only what a checkpoint on disk holds, and has drawn other numbers."""
    with mock.patch.object(os, "fsync"):  # no power is cut here
        save_checkpoint(
            directory,
            step=trainer.position.step,
            write_model=partial(write_model_files, trainer.model),
            optimizer_state=trainer.tensors(),
            state=trainer.state(),
            keep=1,
        )
    checkpoint = latest_checkpoint(directory)
    assert checkpoint is not None
    successor = make_trainer(recipe, shards, seed=seed)
    torch.rand(seed % 7 + 1)
    successor.restore(checkpoint.model, checkpoint.optimizer, checkpoint.state)
    return successor


Ending = tuple[list[float], dict[str, torch.Tensor], dict[str, Any]]


@pytest.fixture(scope="module")
def uninterrupted(shards: TokenShards) -> Callable[[Recipe], Ending]:
    """Losses, tensors and state after all steps of a recipe in one go."""

    @cache
    def train(recipe: Recipe) -> Ending:
        trainer = make_trainer(recipe, shards)
        return steps(trainer, STEPS), *_ending(trainer)

    return train


def _assert_resumes(expected: Ending, recipe: Recipe, shards: TokenShards, stops: list[int], directory: Path) -> None:
    trainer, losses = make_trainer(recipe, shards), []
    for number, stop in enumerate([*stops, STEPS]):
        losses += steps(trainer, stop - trainer.position.step)
        trainer = _hand_over(trainer, recipe, shards, directory, seed=1000 + number)
    assert losses == expected[0] and len(losses) == STEPS
    tensors, state = _ending(trainer)
    assert state == expected[2] and tensors.keys() == expected[1].keys()
    for name, value in tensors.items():
        assert torch.equal(value, expected[1][name]), name


@settings(max_examples=20, deadline=None)
@given(
    order=st.sampled_from(ORDERS),
    optimizer=st.sampled_from(["muon", "adamw"]),
    stops=st.lists(st.integers(0, STEPS), max_size=3).map(sorted),
)
def test_any_stopping_points(
    shards: TokenShards,
    uninterrupted: Callable[[Recipe], Ending],
    tmp_path_factory: pytest.TempPathFactory,
    order: str,
    optimizer: str,
    stops: list[int],
) -> None:
    recipe = _recipe(order, optimizer)
    _assert_resumes(uninterrupted(recipe), recipe, shards, stops, tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("order", ORDERS)
def test_stopped_after_every_single_step(
    order: str, shards: TokenShards, uninterrupted: Callable[[Recipe], Ending], tmp_path: Path
) -> None:
    """accelerate#4071 and litgpt#1712: a run resumed in mid-epoch reshuffled or repeated its data (incident 4)."""
    _assert_resumes(uninterrupted(_recipe(order)), _recipe(order), shards, list(range(1, STEPS)), tmp_path)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_mixed_precision(
    precision: str, shards: TokenShards, uninterrupted: Callable[[Recipe], Ending], tmp_path: Path
) -> None:
    """The loss scale of fp16 is part of the state."""
    recipe = _recipe("documents", precision=precision)
    _assert_resumes(uninterrupted(recipe), recipe, shards, [1, 5], tmp_path)


def test_a_trainer_of_other_data_refuses_naming_both_fingerprints(shards: TokenShards, tmp_path: Path) -> None:
    """NeMo-RL#2519, at the loader: the data set was swapped under a resumed run (incident 6)."""
    recipe = _recipe("documents")
    trainer = make_trainer(recipe, shards)
    steps(trainer, 2)
    other = write_corpus(tmp_path, seed=1)
    with pytest.raises(BadInputError) as raised:
        make_trainer(recipe, other).restore(trainer.model.state_dict(), trainer.tensors(), trainer.state())
    assert shards.fingerprint in str(raised.value) and other.fingerprint in str(raised.value)
