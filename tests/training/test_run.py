"""Whole runs: what they leave behind, what they refuse, how they end, and that a resumed one ends the same."""

import itertools
import json
import math
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from tiny_runs import Recorder, make_recipe, rows, status, steps, validations

from llm_journey.checkpoint.model_folder import load_model
from llm_journey.checkpoint.training_state import latest_checkpoint
from llm_journey.core.config import to_yaml
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.training import objectives
from llm_journey.training import run as running
from llm_journey.training import validate as validating
from llm_journey.training.recipe import Recipe, load_recipe
from llm_journey.training.run import train
from llm_journey.training.trainer import MAX_BAD_STEPS, Trainer
from llm_journey.training.validate import Validation


def _stop_at(step: int, number: signal.Signals = signal.SIGINT) -> Recorder:
    """An observer that sends this process a signal once `step` is logged."""
    return Recorder(lambda now: signal.raise_signal(number) if now == step else None)


def test_a_run_leaves_what_it_promises(texts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(texts, sample_prompts=["the river"])
    observer = Recorder()
    result = train(recipe, tmp_path / "run", observer=observer, sampler=lambda model, tokenizer, prompt: prompt + "!")
    assert (result.status, result.directory) == ("finished", tmp_path / "run")
    names = {path.name for path in result.directory.iterdir()}
    assert names == {
        "recipe.yaml", "run.json", "metrics.jsonl", "samples.jsonl", "vocabulary.json", "preparation.json",
        "checkpoints", "model",
    }  # fmt: skip
    information = json.loads((result.directory / "run.json").read_text(encoding="utf-8"))
    assert information["status"] == "finished" and information["step"] == 8 and information["error"] is None
    assert information["figures"] == result.figures and set(information["fingerprints"]) == {
        "train",
        "validation",
        "tokenizer",
    }
    assert [row["step"] for row in steps(result.directory)] == list(range(1, 9))
    assert set(validations(result.directory)) == {4, 8}
    assert result.figures["validation_loss"] == validations(result.directory)[8]
    assert [row["text"] for row in rows(result.directory, "samples.jsonl")] == ["the river!"] * 2
    model, tokenizer = load_model(result.directory / "model")
    assert tokenizer is not None and model.config.vocab_size == tokenizer.vocab_size
    assert observer.stages.index("saving the model") < observer.stages.index("validating")
    assert load_recipe(result.directory).with_vocabulary(tokenizer.vocab_size) == recipe.with_vocabulary(
        tokenizer.vocab_size
    )
    with pytest.raises(BadInputError, match=r"holds a run already; choose another name, or resume it"):
        train(recipe, tmp_path / "run")


def test_equal_runs_are_equal_and_seeds_differ(texts: Path, tmp_path: Path) -> None:
    """A sampler that draws random numbers of its own changes nothing."""

    def sampler(model: Any, tokenizer: Any, prompt: str) -> str:
        return str(torch.rand(1).item())

    found = [
        steps(train(recipe, tmp_path / str(number), sampler=sampler).directory)
        for number, recipe in enumerate(
            [
                make_recipe(texts),
                make_recipe(texts, sample_prompts=["a", "b"], validations=4),
                make_recipe(texts, seed=1),
            ]
        )
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on(number: signal.Signals, texts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(texts)
    expected = train(recipe, tmp_path / "whole").directory
    before = signal.getsignal(number)
    observer = _stop_at(3, number)
    result = train(recipe, tmp_path / "stopped", observer=observer)
    assert signal.getsignal(number) == before
    assert result.status == status(result.directory) == "interrupted"
    assert any("go on with: journey train" in message and "--resume" in message for message in observer.messages)
    assert [row["step"] for row in steps(result.directory)] == [1, 2, 3]
    assert not (result.directory / "model").exists()
    finished = train(recipe, result.directory, resume=True)
    assert finished.status == "finished"
    assert steps(finished.directory) == steps(expected)
    assert validations(finished.directory) == validations(expected)


def test_a_second_ctrl_c_stops_at_once(texts: Path, tmp_path: Path) -> None:
    """What was saved before is there; the run says that it was interrupted."""
    recipe = make_recipe(texts, checkpoints=4)
    expected = train(recipe, tmp_path / "whole").directory

    def twice(step: int) -> None:
        if step == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", observer=Recorder(twice))
    assert status(tmp_path / "run") == "interrupted"
    checkpoint = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None and checkpoint.step == 4
    assert steps(train(recipe, tmp_path / "run", resume=True).directory) == steps(expected)


def test_outside_the_main_thread_no_signal_is_touched(texts: Path, tmp_path: Path) -> None:
    results: list[running.RunResult] = []
    thread = threading.Thread(target=lambda: results.append(train(make_recipe(texts), tmp_path / "run")))
    thread.start()
    thread.join()
    assert results[0].status == "finished"


@pytest.mark.parametrize("order", ["documents", "windows", "packed"])
def test_resume_in_mid_epoch_repeats_and_skips_no_data(order: str, texts: Path, tmp_path: Path) -> None:
    """accelerate#4071, litgpt#1712 (incident 4): stopped three times, the run reads the same and loses the same."""
    recipe = make_recipe(texts, order=order, accumulation=2)
    expected = train(recipe, tmp_path / "whole").directory
    directory = tmp_path / "stopped"
    train(recipe, directory, observer=_stop_at(1))
    train(recipe, directory, observer=_stop_at(4), resume=True)
    train(recipe, directory, observer=_stop_at(5), resume=True)
    assert train(recipe, directory, resume=True).status == "finished"
    assert steps(directory) == steps(expected) and validations(directory) == validations(expected)
    for one, other in zip(load_model(directory / "model")[0].parameters(),
                          load_model(expected / "model")[0].parameters(), strict=True):  # fmt: skip
        assert torch.equal(one, other)


def test_without_a_checkpoint_the_run_begins_again(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(texts, checkpoints=1)
    expected = train(recipe, tmp_path / "whole").directory

    def fail(step: int) -> None:
        if step == 5:
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError):
        train(recipe, tmp_path / "run", observer=Recorder(fail))
    assert status(tmp_path / "run") == "failed"
    observer = Recorder()
    train(recipe, tmp_path / "run", resume=True, observer=observer)
    assert "no checkpoint was finished yet; the run begins again" in observer.messages
    assert steps(tmp_path / "run") == steps(expected)


def test_a_swapped_data_set_is_refused_naming_both(tmp_path: Path) -> None:
    """NeMo-RL#2519 (incident 6): the texts behind the recipe's path changed under a resumed run."""
    source = tmp_path / "texts"
    source.mkdir()
    recipe = make_recipe(tiny_runs.write_texts(source))
    train(recipe, tmp_path / "run", observer=_stop_at(4))
    expected = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["fingerprints"]["train"]
    before = (tmp_path / "run" / "run.json").read_bytes()
    tiny_runs.write_texts(source, seed=1)
    with pytest.raises(BadInputError, match=r"the train fingerprint was .* and is now .*restore it") as raised:
        train(recipe, tmp_path / "run", resume=True)
    found = str(raised.value).split("is now ")[1][:64]
    assert expected in str(raised.value) and len(found) == 64 and found != expected
    assert (tmp_path / "run" / "run.json").read_bytes() == before, "the refused run is as it was"
    tiny_runs.write_texts(source)
    (source / "new.txt").write_text("Zebras gallop, quaintly vexing jackdaws; " * 9, encoding="utf-8")
    with pytest.raises(BadInputError, match=r"the train fingerprint was"):  # with a larger vocabulary too
        train(recipe, tmp_path / "run", resume=True)
    (source / "new.txt").unlink()
    assert train(recipe, tmp_path / "run", resume=True).status == "finished"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": {"width": 32}}, r"another model\.width \(16 before, 32 now\)"),
        ({"seed": 5}, r"another seed \(0 before, 5 now\)"),
        ({"batch_size": 4}, r"another training\.batch_size \(2 before, 4 now\)"),
        (
            {"optimizer": {"learning_rate": 0.1}},
            r"another training\.optimizer\.learning_rate \(0\.003 before, 0\.1 now\)",
        ),
        ({"order": "packed"}, r"another training\.order \('documents' before, 'packed' now\)"),
    ],
)
def test_another_recipe_is_refused_by_the_key(change: dict[str, Any], reason: str, texts: Path, tmp_path: Path) -> None:
    train(make_recipe(texts), tmp_path / "run", observer=_stop_at(2))
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(BadInputError, match=f"cannot resume with {reason}; start a new run instead"):
        train(make_recipe(texts, **change), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_finished_run_is_left_alone_and_can_be_extended(texts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(texts)
    train(recipe, tmp_path / "run")
    held = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    observer = Recorder()
    again = train(recipe, tmp_path / "run", resume=True, observer=observer)
    assert again.status == "finished" and "larger budget" in observer.messages[-1]
    assert held == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    longer = make_recipe(texts, steps=12)
    assert train(longer, tmp_path / "run", resume=True).status == "finished"
    assert [row["step"] for row in steps(tmp_path / "run")] == list(range(1, 13))
    assert load_recipe(tmp_path / "run").training.steps == 12


def test_resuming_what_is_no_run(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no run here"):
        train(make_recipe(texts), tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_what_cannot_be_trained_leaves_no_folder(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="longer than the data"):
        train(make_recipe(texts, model={"context": 100_000}), tmp_path / "run")
    with pytest.raises(BadInputError, match="cannot be used here"):
        train(make_recipe(texts, device="cuda:99"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("failure", [MemoryError, RuntimeError, KeyboardInterrupt])
def test_the_model_is_saved_before_it_is_evaluated(
    failure: type[BaseException], texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nanochat#446 (incident 7): a finished run was lost because its evaluation ran out of memory."""
    recipe = make_recipe(texts, validations=1)
    expected = train(recipe, tmp_path / "whole")

    def fail(*arguments: Any) -> None:
        raise failure("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(validating, "_summed_nats", fail)
        with pytest.raises(failure):
            train(recipe, tmp_path / "run")
    assert status(tmp_path / "run") == ("interrupted" if failure is KeyboardInterrupt else "failed")
    model, tokenizer = load_model(tmp_path / "run" / "model")
    assert tokenizer is not None
    for one, other in zip(model.parameters(), load_model(expected.directory / "model")[0].parameters(), strict=True):
        assert torch.equal(one, other)
    result = train(recipe, tmp_path / "run", resume=True)
    assert result.status == "finished" and result.figures["validation_loss"] == expected.figures["validation_loss"]
    assert rows(tmp_path / "run")[-1]["validation_loss"] == expected.figures["validation_loss"]


def _after(monkeypatch: pytest.MonkeyPatch, step: int, value: float) -> None:
    """Every gradient after `step` holds `value` somewhere."""
    real = Trainer._gradients

    def gradients(self: Trainer, *arguments: Any) -> float:
        loss = real(self, *arguments)
        if self.position.step >= step and self.model.embed.weight.grad is not None:
            self.model.embed.weight.grad[0, 0] = value
        return loss

    monkeypatch.setattr(Trainer, "_gradients", gradients)


def test_divergence_ends_the_run_and_keeps_its_checkpoints(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(texts, steps=40, checkpoints=10)
    expected = train(recipe, tmp_path / "whole").directory
    observer = Recorder()
    with monkeypatch.context() as patch:
        _after(patch, 9, math.nan)
        with pytest.raises(JourneyError, match=f"{MAX_BAD_STEPS} steps in a row had no finite loss"):
            train(recipe, tmp_path / "run", observer=observer)
    assert status(tmp_path / "run") == "failed"
    assert "step 10: loss or gradient is not finite; the step was left out" in observer.messages
    left_out = rows(tmp_path / "run")[-1]
    assert left_out["gradient_norm"] is None and left_out["non_finite"] == ["gradient_norm"]
    checkpoint = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None and all(bool(value.isfinite().all()) for value in checkpoint.model.values())
    assert steps(tmp_path / "run")[:9] == steps(expected)[:9]


def _validation_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> list[dict[str, torch.Tensor]]:
    """Validation says these losses one after another; returns the models that were judged."""
    judged: list[dict[str, torch.Tensor]] = []

    def say(model: torch.nn.Module, shards: Any) -> Validation:
        judged.append({name: value.clone() for name, value in model.state_dict().items()})
        return Validation(loss=losses[min(len(judged), len(losses)) - 1], bits_per_byte=1.0, tokens=1)

    monkeypatch.setattr(objectives, "validate", say)
    return judged


def test_early_stopping_keeps_the_best_model(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(texts, steps=20, validations=10, early_stopping=2)
    judged = _validation_losses(monkeypatch, [5.0, 3.0, 4.0, 3.5, 3.0])
    observer = Recorder()
    result = train(recipe, tmp_path / "run", observer=observer)
    assert result.status == "finished" and steps(tmp_path / "run")[-1]["step"] == 8
    assert any("stopped early; the best model is kept" in message for message in observer.messages)
    saved = load_model(tmp_path / "run" / "model")[0].state_dict()
    best, last = judged[1], judged[3]
    assert all(torch.equal(saved[name], best[name]) for name in saved)
    assert not all(torch.equal(saved[name], last[name]) for name in saved)
    checkpoint = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None and all(torch.equal(checkpoint.model[name], last[name]) for name in checkpoint.model)
    assert train(recipe, tmp_path / "run", resume=True).status == "finished", "it stays stopped"
    assert len(judged) == 5


def test_more_patience_takes_a_stopped_run_further(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on from the last step, not from the best model that was handed out."""
    patient = make_recipe(texts, steps=20, validations=10, early_stopping=5)
    with monkeypatch.context() as patch:
        _validation_losses(patch, [5.0, 3.0, 4.0, 3.5, 3.2, 3.1, 2.0])
        expected = train(patient, tmp_path / "whole").directory
    with monkeypatch.context() as patch:
        _validation_losses(patch, [5.0, 3.0, 4.0, 3.5, 3.0])
        train(make_recipe(texts, steps=20, validations=10, early_stopping=2), tmp_path / "run")
    _validation_losses(monkeypatch, [3.2, 3.1, 2.0])
    assert train(patient, tmp_path / "run", resume=True).status == "finished"
    assert steps(tmp_path / "run") == steps(expected)


@pytest.mark.parametrize("patience", [None, 2])
def test_a_validation_that_is_not_finite_stops_nothing_else(
    patience: int | None, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the best of no run, and no checkpoint fails over a number that JSON has not."""
    _validation_losses(monkeypatch, [math.nan, math.inf, math.nan])
    observer = Recorder()
    recipe = make_recipe(texts, steps=20, validations=5, checkpoints=20, early_stopping=patience)
    result = train(recipe, tmp_path / "run", observer=observer)
    assert result.status == "finished" and result.figures["validation_loss"] is None
    assert len(steps(tmp_path / "run")) == (20 if patience is None else 8)
    assert patience is None or any("none had a finite loss" in message for message in observer.messages)
    assert load_model(tmp_path / "run" / "model")[1] is not None


def test_budgets_in_tokens_and_seconds(texts: Path, tmp_path: Path) -> None:
    by_tokens = train(make_recipe(texts, tokens=10 * 32), tmp_path / "tokens")
    assert by_tokens.figures["tokens"] == 320 and len(steps(by_tokens.directory)) == 10
    by_seconds = train(make_recipe(texts, seconds=0.2), tmp_path / "seconds")
    spent = json.loads((by_seconds.directory / "run.json").read_text(encoding="utf-8"))["seconds"]
    last = rows(by_seconds.directory)[-2]
    assert 0.2 <= spent < 2.0 and last["seconds"] <= spent


def test_seconds_spent_before_a_stop_count_after_it(texts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(texts, seconds=0.8)
    train(recipe, tmp_path / "run", observer=_stop_at(3))
    before = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["seconds"]
    assert 0 < before < 0.8
    train(recipe, tmp_path / "run", resume=True)
    seconds = [row["seconds"] for row in rows(tmp_path / "run")]
    assert seconds == sorted(seconds) and seconds[3] > before
    assert seconds[-1] < 0.8 + 2 * max(later - earlier for earlier, later in itertools.pairwise(seconds))


class _Closing:
    """Counts the trackers of a run and which are closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[Any] = []
        real = running.JsonlTracker.__init__

        def counted(tracker: Any, *arguments: Any, **named: Any) -> None:
            real(tracker, *arguments, **named)
            self.made.append(tracker)

        monkeypatch.setattr(running.JsonlTracker, "__init__", counted)

    def all_closed(self) -> bool:
        return len(self.made) == 2 and all(tracker._descriptor is None for tracker in self.made)


@pytest.mark.parametrize("ending", ["finished", "interrupted", "failed in a step", "failed at the start"])
def test_trackers_are_closed_however_a_run_ends(
    ending: str, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing = _Closing(monkeypatch)

    def at_step(step: int) -> None:
        if step == 3 and ending == "interrupted":
            signal.raise_signal(signal.SIGINT)
        if step == 3 and ending == "failed in a step":
            raise RuntimeError("out of luck")

    if ending == "failed at the start":
        monkeypatch.setattr(running, "count_parameters", lambda config: 1 / 0)
    try:
        train(make_recipe(texts), tmp_path / "run", observer=Recorder(at_step))
    except (RuntimeError, ZeroDivisionError) as error:
        assert status(tmp_path / "run") == "failed"
        assert type(error).__name__ in (tmp_path / "run" / "run.json").read_text(encoding="utf-8")
    assert closing.all_closed()


def test_tensorboard_of_a_resumed_run_shows_each_step_once(texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = make_recipe(texts, checkpoints=4, trackers=["tensorboard"])

    def fail(step: int) -> None:
        if step == 7:
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError):
        train(recipe, tmp_path / "run", observer=Recorder(fail))
    train(recipe, tmp_path / "run", resume=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 9))
    shown = [event.value for event in events.Scalars("loss")]
    assert shown == pytest.approx([row["loss"] for row in steps(tmp_path / "run")], rel=1e-6)


def test_leftovers_of_a_killed_process_are_swept(texts: Path, tmp_path: Path) -> None:
    """A model folder that was on its way out when its successor never came is put back; the rest goes."""
    directory = tmp_path / "run"
    recipe = make_recipe(texts, steps=20, validations=10, early_stopping=9, checkpoints=10)
    expected = train(recipe, tmp_path / "whole").directory
    train(recipe, directory, observer=_stop_at(9))
    retired = directory / ".best.abcdefgh.old"
    retired.mkdir()
    (directory / "best").rename(retired / "old")
    (directory / ".model.abcd_123.tmp").mkdir()
    (directory / ".run.json.abcd_123.tmp").write_text("{")
    (directory / ".notes").write_text("a person's own")
    assert train(recipe, directory, resume=True).status == "finished"
    assert {path.name for path in directory.iterdir() if path.name.startswith(".")} == {".notes"}
    assert (directory / "best" / "model.safetensors").is_file()
    assert steps(directory) == steps(expected)


def test_a_vocabulary_of_the_recipe_is_kept(texts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(texts, model={"vocab_size": 320})
    directory = train(recipe, tmp_path / "run").directory
    assert load_model(directory / "model")[0].config.vocab_size == 320
    too_small: Recipe = replace(recipe, model=replace(recipe.model, vocab_size=270))
    with pytest.raises(BadInputError, match=r"model\.vocab_size 270 is smaller than the tokenizer's"):
        train(too_small, tmp_path / "other")


def test_a_damaged_run_file_is_named(texts: Path, tmp_path: Path) -> None:
    train(make_recipe(texts), tmp_path / "run", observer=_stop_at(2))
    (tmp_path / "run" / "run.json").write_text('{"name": ')
    with pytest.raises(JourneyError, match=r"run\.json: cannot be read"):
        train(make_recipe(texts), tmp_path / "run", resume=True)


def test_a_damaged_recipe_is_named(texts: Path, tmp_path: Path) -> None:
    train(make_recipe(texts), tmp_path / "run", observer=_stop_at(2))
    (tmp_path / "run" / "recipe.yaml").write_text(to_yaml({"name": 3}), encoding="utf-8")
    with pytest.raises(BadInputError, match=r"recipe\.yaml: key 'name' = 3"):
        train(make_recipe(texts), tmp_path / "run", resume=True)
