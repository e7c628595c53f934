"""One step after another: budgets, steps left out, the learning rate of each, what a checkpoint must hold."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_shards import make_trainer, write_documents

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.datasets.shards import TokenShards
from llm_journey.training import trainer as training
from llm_journey.training.early_stopping import EarlyStopping
from llm_journey.training.recipe import TrainingConfig
from llm_journey.training.schedule import ScheduleConfig
from llm_journey.training.throughput import energy_estimate_joules, peak_flops
from llm_journey.training.trainer import MAX_BAD_STEPS, Position, Trainer, budget_progress, milestones


@pytest.fixture
def shards(tmp_path: Path) -> TokenShards:
    """Five documents, 53 tokens with their end tokens."""
    return write_documents(tmp_path / "shards", [9, 4, 17, 6, 12])


def _run(trainer: Trainer) -> list[training.StepResult]:
    results = []
    while trainer.progress < 1.0:
        results.append(trainer.step())
        assert len(results) < 1000
    return results


def test_a_budget_in_steps(shards: TokenShards) -> None:
    trainer = make_trainer(shards, steps=7)
    assert len(_run(trainer)) == trainer.position.step == 7
    assert trainer.position.tokens == 7 * 2 * 8


def test_a_budget_in_tokens_ends_with_the_step_that_uses_it_up(shards: TokenShards) -> None:
    trainer = make_trainer(shards, tokens=100)
    assert len(_run(trainer)) == 7 and trainer.position.tokens == 112


def test_a_budget_in_seconds_counts_the_steps_alone(shards: TokenShards, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is read at the beginning and at the end of each step: it stands still for all that lies between."""
    readings = [time for step in range(50) for time in (100.0 * step, 100.0 * step + 2.0)]
    monkeypatch.setattr(training.time, "perf_counter", iter(readings).__next__)
    trainer = make_trainer(shards, seconds=11.0)
    assert len(_run(trainer)) == 6 and trainer.position.seconds == 12.0


def test_the_budget_that_is_used_up_first_ends_the_run(shards: TokenShards) -> None:
    assert len(_run(make_trainer(shards, steps=9, tokens=64))) == 4
    assert len(_run(make_trainer(shards, steps=3, tokens=6400))) == 3


@settings(max_examples=100, deadline=None)
@given(
    used=st.tuples(st.integers(0, 50), st.integers(0, 5000), st.floats(0, 100)),
    budget=st.tuples(st.none() | st.integers(1, 40), st.none() | st.integers(1, 4000), st.none() | st.floats(0.1, 90)),
)
def test_progress_is_the_largest_share(
    used: tuple[int, int, float], budget: tuple[int | None, int | None, float | None]
) -> None:
    if budget == (None, None, None):
        return
    config = TrainingConfig(steps=budget[0], tokens=budget[1], seconds=budget[2])
    position = Position(*used)
    shares = [done / whole for done, whole in zip(used, budget, strict=True) if whole is not None]
    assert budget_progress(config, position) == min(1.0, max(shares))
    assert budget_progress(config, position, half_step=0.5) >= budget_progress(config, position)


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 12), steps=st.integers(1, 60), at=st.integers(0, 60))
def test_milestones_after_a_resume_are_those_that_were_left(count: int, steps: int, at: int) -> None:
    at = min(at, steps)
    whole, left = list(milestones(count, 0.0)), list(milestones(count, at / steps))
    assert len(whole) == count and whole[-1] == 1.0
    assert left == [milestone for milestone in whole if milestone > at / steps]


def test_each_step_has_the_learning_rate_of_its_middle(shards: TokenShards) -> None:
    trainer = make_trainer(shards, steps=10, schedule={"name": "wsd", "warmup": 0.2, "decay": 0.4, "final": 0.0})
    factors = [result.learning_rate_factor for result in _run(trainer)]
    assert factors == pytest.approx([0.25, 0.75, 1, 1, 1, 1, 0.875, 0.625, 0.375, 0.125])
    tokens = make_trainer(shards, tokens=160, schedule={"name": "wsd", "warmup": 0.2, "decay": 0.4, "final": 0.0})
    assert [result.learning_rate_factor for result in _run(tokens)] == pytest.approx(factors)


def test_the_rate_reaches_both_optimizers(shards: TokenShards) -> None:
    """A factor of zero moves nothing, in AdamW's part or in Muon's."""
    trainer = make_trainer(shards, schedule={"name": "constant", "warmup": 0.0, "decay": 0.0})
    trainer.config = TrainingConfig(steps=10, schedule=ScheduleConfig(name="wsd", warmup=0.0, decay=1e-9, final=0.0))
    trainer.position.step = 10  # past the end
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    assert trainer.step().learning_rate_factor == 0.0
    assert all(torch.equal(one, other) for one, other in zip(before, trainer.model.parameters(), strict=True))


def _poison(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, value: float, when: list[bool]) -> None:
    """Gradients get `value` in one place in the steps where `when` says so."""
    real = trainer._gradients

    def gradients(batches: list[training.AnyBatch], num_targets: int) -> float:
        loss = real(batches, num_targets)
        if when.pop(0) and trainer.model.embed.weight.grad is not None:
            trainer.model.embed.weight.grad[3, 3] = value
        return loss

    monkeypatch.setattr(trainer, "_gradients", gradients)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_is_left_out(
    value: float, clip: float, shards: TokenShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(shards, steps=6, optimizer={"clip": clip})
    _poison(trainer, monkeypatch, value, [False, True, False])
    trainer.step()
    before = {name: value.clone() for name, value in [*trainer.model.state_dict().items(), *_moments(trainer)]}
    result = trainer.step()
    assert not result.finite and math.isfinite(result.loss) and trainer.position.bad_steps == 1
    after = dict([*trainer.model.state_dict().items(), *_moments(trainer)])
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert trainer.step().finite and trainer.position.bad_steps == 0 and trainer.position.step == 3
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters())


def _moments(trainer: Trainer) -> list[tuple[str, torch.Tensor]]:
    return list(trainer.optimizer.state_tensors().items())


def test_too_many_of_them_in_a_row_end_the_run(shards: TokenShards, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(shards, steps=100)
    _poison(trainer, monkeypatch, math.nan, [True] * (MAX_BAD_STEPS - 1) + [False] + [True] * MAX_BAD_STEPS)
    for _ in range(2 * MAX_BAD_STEPS - 1):
        trainer.step()
    with pytest.raises(JourneyError, match=rf"{MAX_BAD_STEPS} steps in a row had no finite loss .*learning_rate"):
        trainer.step()


def test_state_of_another_model_is_refused(shards: TokenShards) -> None:
    one, other = make_trainer(shards), make_trainer(shards, model={"num_layers": 2})
    other.step()
    with pytest.raises(BadInputError, match=r"optimizer state '.*blocks\.1.*' fits no parameter"):
        one.restore(one.model.state_dict(), other.tensors(), {**one.state(), "loader": one.loader.state()})


def test_early_stopping_counts_and_forgives() -> None:
    stopping = EarlyStopping(patience=2)
    assert [stopping.update(loss) for loss in (3.0, 2.0, 2.5, 1.9)] == [True, True, False, True]
    assert not stopping.stop and stopping.best == 1.9
    assert [stopping.update(loss) for loss in (1.9, 2.0)] == [False, False]
    assert stopping.stop
    never = EarlyStopping(patience=None)
    assert [never.update(loss) for loss in (1.0, 2.0, 3.0)] == [True, False, False] and not never.stop


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_never_the_best(loss: float) -> None:
    stopping = EarlyStopping(patience=3)
    assert not stopping.update(loss) and stopping.best is None
    assert stopping.update(4.0) and not stopping.update(loss)
    assert (stopping.best, stopping.bad) == (4.0, 1)


def test_the_peak_of_this_machine_is_measured() -> None:
    slow, fast = (peak_flops(torch.device("cpu"), size=size, repeats=2) for size in (8, 512))
    assert 1e5 < slow < fast < 1e15
    assert energy_estimate_joules(10.0, 2) == 2 * energy_estimate_joules(10.0, 1) > 0


def test_warming_up_takes_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compiles the model before the clock starts leaves data, random numbers and weights as they were."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    shards = write_documents(tmp_path, [9, 4, 17, 6, 12])
    found = []
    for warm in (False, True):
        trainer = make_trainer(shards, model={"dropout": 0.2}, compile=True)
        if warm:
            trainer.warm_up()
            assert trainer.position.step == 0 and trainer.position.seconds == 0
        found.append([trainer.step().loss for _ in range(5)])
    assert found[0] == found[1]
