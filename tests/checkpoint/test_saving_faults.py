"""Every write, fsync and rename of a save fails once, the disk is full, the process is killed: the run is readable."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import saving_faults
import torch
from saving_faults import SITUATIONS, Calls, prepare, save, whole
from small_decoders import QWEN3, small_decoder

from llm_journey.checkpoint.model_folder import load_model, save_model
from llm_journey.checkpoint.training_state import latest_checkpoint
from llm_journey.core.errors import JourneyError


def _raise(name: str) -> None:
    raise OSError(errno.ENOSPC, f"No space left on device (injected in {name})")


def _silent(message: str) -> None:
    """Takes warnings that are not the point."""


@pytest.mark.parametrize("situation", SITUATIONS, ids=[name for name, *_ in SITUATIONS])
def test_each_call_of_a_save_fails_once(situation: tuple[str, list[int], int, int], tmp_path: Path) -> None:
    with saving_faults.without_flushing():
        _fail_each_call(situation, tmp_path)


def _fail_each_call(situation: tuple[str, list[int], int, int], tmp_path: Path) -> None:
    before, step = situation[1], situation[2]
    kinds: set[str] = set()
    for number in range(1000):
        directory = tmp_path / str(number)
        _, keep = prepare(directory, situation)
        calls, failed = Calls(number, _raise), False
        try:
            with calls.installed():
                save(directory, step, seed=77, keep=keep, on_warning=_silent)
        except JourneyError as error:
            assert "could not be written" in str(error) and "\n" not in str(error)
            failed = True
        found = latest_checkpoint(directory, on_warning=_silent)
        assert found is not None or (failed and not before), calls.names
        assert found is None or (whole(found) and found.step >= max(before, default=0)), calls.names
        if not failed:
            assert found is not None and (found.step, found.state["seed"]) == (step, 77)
        save(directory, step + 1, keep=keep)
        after = latest_checkpoint(directory, on_warning=pytest.fail)
        assert after is not None and after.step == step + 1 and whole(after)
        assert [path.name for path in directory.iterdir() if path.name.startswith(".")] == []
        if len(calls.names) <= number:
            break
        kinds.add(calls.names[number])
    assert number >= 25 and kinds == {"write", "fsync", "replace", "safetensors"}


def test_each_call_of_saving_a_model_fails_once(tmp_path: Path) -> None:
    """A folder is written where none was: whole, or not there at all."""
    for number in range(1000):
        calls, target = Calls(number, _raise), tmp_path / f"model-{number}"
        try:
            with calls.installed():
                save_model(small_decoder(3, **QWEN3), target, card="# Card\n")
        except JourneyError:
            pass
        if target.exists():
            assert torch.equal(load_model(target)[0].embed.weight, small_decoder(3, **QWEN3).embed.weight)
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
        if len(calls.names) <= number:
            break
    assert number >= 15 and target.exists()


@pytest.mark.parametrize("limit", [100, 2_000, 5_000, 9_000])
def test_the_operating_system_refuses_to_write_on(limit: int, tmp_path: Path) -> None:
    """A real limit on the size of files, so that the safetensors library's own writes fail too."""
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(JourneyError, match="could not be written"):
            save(tmp_path, 2, optimizer_state={"big": torch.zeros(5_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    found = latest_checkpoint(tmp_path, on_warning=pytest.fail)
    assert found is not None and whole(found)


# In a mount namespace of its own, so that no privilege of the machine is needed and nothing stays mounted.
_FULL_DISK = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {helpers!r})
from saving_faults import save, whole
from llm_journey.checkpoint.training_state import latest_checkpoint
from llm_journey.core.errors import JourneyError
directory, saved, filler = Path({disk!r}) / "checkpoints", 0, Path({disk!r}) / "filler"
save(directory, 1)
free = 400_000
for size in range(0, free, 10_000):
    filler.write_bytes(b"x" * size)
    try:
        save(directory, 2, seed=77)
        saved += 1
        failed = False
    except JourneyError as error:
        assert "could not be written" in str(error), error
        failed = True
    except OSError as error:
        raise SystemExit(f"an error that is not ours: {{error}}")
    found = latest_checkpoint(directory, on_warning=lambda message: None)
    assert found is not None and whole(found), size
    if failed:
        break
filler.unlink()
save(directory, 3)
found = latest_checkpoint(directory, on_warning=lambda message: None)
assert found is not None and found.step == 3 and whole(found)
assert failed, "the disk never filled up"
print("full disk met after", saved, "saves")
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """A tmpfs of 300 kB that a growing file fills until a save fails: the checkpoint before stays."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "--mount", "--map-root-user", "sh", "-c", 'mount -t tmpfs -o size=300k none "$0" && exec "$@"']
    try:
        possible = subprocess.run([*mount, str(disk), "true"], capture_output=True, timeout=20, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed, so no small disk can be made")
    if possible.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {possible.stderr.decode().strip()}")
    script = _FULL_DISK.format(helpers=str(Path(saving_faults.__file__).parent), disk=str(disk))
    done = subprocess.run(
        [*mount, str(disk), sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "full disk met" in done.stdout


def _run_faults(*arguments: Any) -> list[int]:
    command = [sys.executable, saving_faults.__file__, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_incident_5_kill_at_five_random_moments(tmp_path: Path) -> None:
    """speculators#739, with kill -9: what was reported as saved is never lost, and the latest is always whole."""
    kills, steps = _run_faults("random", tmp_path / "run", 5, 1)
    assert kills == 5 and steps >= 2


@pytest.mark.full
def test_incident_5_kill_at_a_hundred_random_moments(tmp_path: Path) -> None:
    kills, steps = _run_faults("random", tmp_path / "run", 100, 2)
    assert kills == 100 and steps >= 10


def test_incident_5_kill_at_every_write_fsync_and_rename(tmp_path: Path) -> None:
    """In the hardest situation: a step is saved again, so that for a moment its name stands for nothing."""
    (kills,) = _run_faults("every", tmp_path, 3)
    assert kills >= 30


@pytest.mark.full
def test_incident_5_kill_at_every_write_fsync_and_rename_in_every_situation(tmp_path: Path) -> None:
    (kills,) = _run_faults("every", tmp_path, 0)
    assert kills >= 100
