"""Faults in the middle of a save: every write, fsync and rename is counted, and the chosen one goes wrong.

Run as a program it kills itself: each fault is `kill -9` in a forked child, which no cleanup survives.

    python saving_faults.py every DIRECTORY FIRST         at every single call of a save, situations from FIRST on
    python saving_faults.py random DIRECTORY COUNT SEED   at COUNT random moments of a loop that only saves

Flushing to the disk matters when the power is cut, which no test here can do; it is left out where it only takes time.
"""

import builtins
import io
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from small_decoders import QWEN3, equal, small_decoder

from llm_journey.checkpoint import tensor_files
from llm_journey.checkpoint.model_folder import write_model_files
from llm_journey.checkpoint.training_state import Checkpoint, latest_checkpoint, save_checkpoint


def save(directory: Path, step: int, seed: int | None = None, **changes: Any) -> Path:
    """A checkpoint whose every value follows from its step (or `seed`)."""
    seed = step if seed is None else seed
    model, tokenizer = changes.pop("model", None) or small_decoder(seed, **QWEN3), changes.pop("tokenizer", None)
    arguments: dict[str, Any] = {
        "step": step,
        "write_model": lambda folder: write_model_files(model, folder, tokenizer=tokenizer),
        "optimizer_state": {"momentum": torch.full((1000,), float(seed))},
        "state": {"seed": seed},
        "keep": 2,
    }
    return save_checkpoint(directory, **(arguments | changes))


def whole(checkpoint: Checkpoint) -> bool:
    """Whether all parts of a checkpoint come from one and the same save."""
    seed = checkpoint.state["seed"]
    model = dict(small_decoder(seed, **QWEN3).state_dict())
    return equal(checkpoint.model, model) and bool((checkpoint.optimizer["momentum"] == seed).all())


def without_flushing() -> Any:
    """While inside, os.fsync returns at once."""
    return mock.patch.object(os, "fsync", lambda descriptor: None)


class Calls:
    """Counts writes, fsyncs and renames; at number `fault` the half-done call ends in `act`."""

    def __init__(self, fault: int | None, act: Callable[[str], None]) -> None:
        self.names: list[str] = []
        self.fault, self.act = fault, act

    def due(self, name: str) -> bool:
        self.names.append(name)
        return len(self.names) - 1 == self.fault

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            if self.due(name):
                self.act(name)
            return function(*arguments, **named)

        return counted

    def wrap_open(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            handle = function(file, mode, *arguments, **named)
            return HalfWriter(handle, self) if set(mode) & set("wax+") else handle

        return opened

    def wrap_save_file(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def saved(tensors: Any, path: Path, metadata: Any = None) -> None:
            due = self.due("safetensors")
            function(tensors, path, metadata=metadata)
            if due:
                os.truncate(path, path.stat().st_size // 2)
                self.act("safetensors")

        return saved

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While inside, the calls of the whole process are counted."""
        with (
            mock.patch.object(os, "fsync", self.wrap("fsync", os.fsync)),
            mock.patch.object(os, "replace", self.wrap("replace", os.replace)),
            mock.patch.object(os, "rename", self.wrap("rename", os.rename)),
            mock.patch.object(os, "fdopen", self.wrap_open(os.fdopen)),
            mock.patch.object(io, "open", self.wrap_open(io.open)),
            mock.patch.object(builtins, "open", self.wrap_open(builtins.open)),
            mock.patch.object(tensor_files, "save_file", self.wrap_save_file(tensor_files.save_file)),
        ):
            yield


class HalfWriter:
    """A file opened for writing; a faulty write lands by half first, as on a disk that fills up."""

    def __init__(self, handle: Any, calls: Calls) -> None:
        self.handle, self.calls = handle, calls

    def write(self, data: Any) -> Any:
        if self.calls.due("write"):
            self.handle.write(data[: len(data) // 2])
            self.handle.flush()
            self.calls.act("write")
        return self.handle.write(data)

    def __enter__(self) -> "HalfWriter":
        self.handle.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self.handle.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.handle, name)


# What a run looks like before the save in which something goes wrong: (name, steps saved before, step, keep).
SITUATIONS = [
    ("first", [], 1, 2),
    ("next, dropping one", [1, 2], 3, 2),
    ("only one kept", [1], 2, 1),
    ("again", [1, 2], 2, 2),
]


def prepare(directory: Path, situation: tuple[str, list[int], int, int]) -> tuple[int, int]:
    """Make the situation; returns step and keep of the save to come."""
    _, before, step, keep = situation
    for earlier in before:
        save(directory, earlier)
    return step, keep


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; returns its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def _check(directory: Path, at_least: int, where: str) -> int:
    """The latest checkpoint is whole and no older than the last one that was reported as saved; returns its step."""
    found = latest_checkpoint(directory, on_warning=lambda message: None)
    step = 0 if found is None else found.step
    if found is not None and not whole(found):
        sys.exit(f"{where}: step {step} mixes two saves")
    if step < at_least:
        sys.exit(f"{where}: step {at_least} was saved, the latest is {step}")
    return step


def kill_at_every_call(root: Path, first: int) -> None:
    """Each call of a save is the moment of a kill once; then the run is read, and saved to again."""
    kills = 0
    for name, before, step, keep in SITUATIONS[first:]:
        number = 0
        while True:
            directory = root / f"{name}-{number}"
            prepare(directory, (name, before, step, keep))
            calls = Calls(number, lambda _: _killed())

            def work(calls: Calls = calls, directory: Path = directory, step: int = step, keep: int = keep) -> None:
                with calls.installed():
                    save(directory, step, seed=77, keep=keep)

            _, status = os.waitpid(_in_child(work), 0)
            _check(directory, max(before, default=0), f"{name}, call {number}")
            save(directory, step + 1, keep=keep)
            if _check(directory, step + 1, f"{name}, after call {number}") != step + 1:
                sys.exit(f"{name}: the save after a kill is not the latest")
            if [path for path in directory.iterdir() if path.name.startswith(".")]:
                sys.exit(f"{name}, call {number}: leftovers were not swept")
            if not os.WIFSIGNALED(status):
                break
            kills, number = kills + 1, number + 1
    print(kills)


def kill_at_random(directory: Path, count: int, seed: int) -> None:
    """A loop that saves is killed at random moments; each time the next one goes on from the latest checkpoint."""
    generator, reached, kills = random.Random(seed), 0, 0
    started = time.monotonic()
    save(directory / "timed", 1)
    one_save = time.monotonic() - started
    while kills < count:
        reader, writer = os.pipe()

        def work(writer: int = writer, start: int = reached) -> None:
            for step in range(start + 1, start + 1000):
                save(directory, step)
                os.write(writer, f"{step}\n".encode())

        child = _in_child(work)
        os.close(writer)
        time.sleep(generator.uniform(0.2, 3) * one_save)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        with os.fdopen(reader) as pipe:
            reported = [int(line) for line in pipe.read().split()]
        reached = _check(directory, max([reached, *reported]), f"kill {kills}")
    print(kills, reached)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "every":
        with without_flushing():
            kill_at_every_call(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        kill_at_random(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
