"""Kills, signals, full disks and flipped bytes: a run stays readable, and goes on to the very same losses."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Recorder, make_recipe, status, steps, validations

from gguf_files import random_model, tiny_tokenizer
from llm_journey.checkpoint.model_folder import save_model
from llm_journey.checkpoint.training_state import latest_checkpoint
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.training.recipe import Recipe, load_recipe
from llm_journey.training.run import train
from llm_journey.training.run_folder import RunFolder

HERE = Path(__file__).parent


def _program(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(HERE / name), *map(str, arguments)]


def _kill(texts: Path, directory: Path, kills: int, seed: int, steps: int, base: Path | None = None) -> tuple[int, int]:
    arguments = (texts, directory, kills, seed, steps, *((base,) if base else ()))
    done = subprocess.run(_program("killed_runs.py", *arguments), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    killed, in_a_save = done.stdout.split()
    return int(killed), int(in_a_save)


def test_killed_at_three_random_moments(texts: Path, tmp_path: Path) -> None:
    """kill -9, then resume: the losses from there equal the uninterrupted run's bit for bit."""
    assert _kill(texts, tmp_path, kills=3, seed=5, steps=6)[0] == 3


def test_an_adapter_in_training_is_killed_at_three_random_moments(texts: Path, tmp_path: Path) -> None:
    """Its matrices in 4 bits, its optimizer's state in 8: it goes on bit for bit all the same."""
    save_model(random_model(), tmp_path / "base", tokenizer=tiny_tokenizer())
    assert _kill(texts, tmp_path / "runs", kills=3, seed=5, steps=6, base=tmp_path / "base")[0] == 3


@pytest.mark.full
def test_killed_at_twenty_random_moments(texts: Path, tmp_path: Path) -> None:
    """The same twenty times, the save itself included."""
    killed, in_a_save = _kill(texts, tmp_path, kills=20, seed=2, steps=12)
    assert killed == 20 and in_a_save >= 1


def test_ctrl_c_in_a_process_of_its_own(texts: Path, tmp_path: Path) -> None:
    """A real SIGINT: it saves and ends by itself; resumed here, it goes on to equal losses."""
    recipe = make_recipe(texts)
    expected = train(recipe, tmp_path / "whole").directory
    with subprocess.Popen(
        _program("stopped_run.py", texts, tmp_path / "run"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if line.strip() == "3":
                process.send_signal(signal.SIGINT)
                break
        rest, errors = process.stdout.read().split(), process.stderr.read()
        assert process.wait(60) == 0 and rest[-1] == "interrupted" and "Traceback" not in errors, errors
    reached = len(steps(tmp_path / "run"))
    assert 3 <= reached <= 5
    checkpoint = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None and checkpoint.step == reached
    train(recipe, tmp_path / "run", resume=True)
    assert steps(tmp_path / "run") == steps(expected) and validations(tmp_path / "run") == validations(expected)


class Fault:
    """Counts calls of writes, flushes and renames; number `fault` fails as on a full disk, a write by half before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fault: int) -> None:
        self.names: list[str] = []
        self.fault = fault
        for name in ("fsync", "replace", "write"):
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))
        real = os.fdopen
        monkeypatch.setattr(os, "fdopen", lambda *arguments: HalfFile(self, real(*arguments)))

    def due(self, name: str) -> bool:
        self.names.append(name)
        return len(self.names) - 1 == self.fault

    def fail(self, name: str) -> None:
        raise OSError(errno.ENOSPC, f"No space left on device (injected in {name})")

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            if self.due(name):
                if name == "write":
                    return real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                self.fail(name)
            return real(*arguments)

        return counted


class HalfFile:
    """A file whose faulty write lands by half."""

    def __init__(self, fault: Fault, file: Any) -> None:
        self.fault, self.file = fault, file

    def __enter__(self) -> "HalfFile":
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        if self.fault.due("file"):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            self.fault.fail("file")
        self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _fails_and_goes_on(
    number: int, recipe: Recipe, expected: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str] | None:
    """One call of a run fails: one line says so, the run is readable, and resumed (or begun anew) it ends the same.

    Returns the names of all calls, None once `number` lies beyond the last one.
    """
    with monkeypatch.context() as patch:
        fault = Fault(patch, number)
        try:
            train(recipe, directory)
            failed = False
        except JourneyError as error:
            failed = True
            assert "\n" not in str(error) and str(directory) in str(error)
    if number >= len(fault.names):
        return None
    where = f"call {number}: {fault.names[number]}"
    begun = (directory / "run.json").exists()
    if begun:
        assert RunFolder.open(directory).information["status"] in {"running", "failed", "finished", "trained"}, where
        assert load_recipe(directory) is not None
        latest_checkpoint(directory / "checkpoints", on_warning=pytest.fail)
    assert begun or failed, where
    assert train(recipe, directory, resume=begun).status == "finished", where
    assert steps(directory) == steps(expected) and validations(directory) == validations(expected), where
    assert not [path.name for path in directory.iterdir() if path.name.startswith(".")], where
    return fault.names


def _recipe(texts: Path) -> Recipe:
    return make_recipe(texts, steps=3, validations=1, checkpoints=2, keep_checkpoints=1)


def test_every_ninth_call_of_a_run_fails_once(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(_recipe(texts), tmp_path / "whole").directory
    seen: set[str] = set()
    for number in range(0, 1000, 9):
        names = _fails_and_goes_on(number, _recipe(texts), expected, tmp_path / str(number), monkeypatch)
        if names is None:
            break
        seen.add(names[number])
    assert number > 50 and {"fsync", "replace", "file"} <= seen


@pytest.mark.full
def test_every_call_of_a_run_fails_once(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(_recipe(texts), tmp_path / "whole").directory
    seen: set[str] = set()
    for number in range(1000):
        names = _fails_and_goes_on(number, _recipe(texts), expected, tmp_path / str(number), monkeypatch)
        if names is None:
            break
        seen.add(names[number])
    assert number > 50 and seen == {"fsync", "replace", "file", "write"}


@pytest.mark.parametrize(
    "kept", ["training_state.safetensors", "model.safetensors", "training_state.json", "config.json"]
)
def test_a_flipped_byte_sends_the_run_back_one_checkpoint(kept: str, texts: Path, tmp_path: Path) -> None:
    """The damaged file is named, the checkpoint before is taken, and the losses end the same (incident 5's sibling)."""
    recipe = make_recipe(texts, checkpoints=4)
    expected = train(recipe, tmp_path / "whole").directory
    directory = tmp_path / "run"
    train(recipe, directory, observer=Recorder(lambda step: signal.raise_signal(signal.SIGINT) if step == 5 else None))
    damaged = directory / "checkpoints" / "step-00000005" / kept
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0x10
    damaged.write_bytes(content)
    observer = Recorder()
    assert train(recipe, directory, resume=True, observer=observer).status == "finished"
    warnings = [message for message in observer.messages if str(damaged) in message]
    assert len(warnings) == 1 and "damaged" in warnings[0] and "the checkpoint before it is tried" in warnings[0]
    assert any("step-00000004 (step 4)" in message for message in observer.messages)
    assert steps(directory) == steps(expected) and validations(directory) == validations(expected)


def test_no_whole_checkpoint_is_an_error_that_changes_nothing(texts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(texts, checkpoints=4)
    train(recipe, tmp_path, observer=Recorder(lambda step: signal.raise_signal(signal.SIGINT) if step == 3 else None))
    for path in (tmp_path / "checkpoints").glob("step-*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(
        BadInputError, match=r"none of 2 checkpoints is whole; start a new run.*the newest: .*model\.safetensors"
    ):
        train(recipe, tmp_path, resume=True)
    assert (tmp_path / "run.json").read_bytes() == before and status(tmp_path) == "interrupted"
