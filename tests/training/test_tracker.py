"""Trackers: rows that survive kills and resumes, the real TensorBoard and the real W&B (offline), clear errors."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.training import tracker as tracker_module
from llm_journey.training.tracker import (
    JsonlTracker,
    TensorBoardTracker,
    TrackerGroup,
    WandbTracker,
    default_wandb_mode,
    make_trackers,
    truncate_rows,
)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_are_exact_and_in_order(tmp_path: Path) -> None:
    made = JsonlTracker(tmp_path / "metrics.jsonl")
    made.log(1, {"loss": 0.1 + 0.2, "text": "Zoë"})
    made.log(2, {"loss": float("nan"), "gradient_norm": float("inf"), "tokens": 512})
    made.close()
    assert _rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 0.1 + 0.2, "text": "Zoë"},
        {"step": 2, "loss": None, "gradient_norm": None, "tokens": 512, "non_finite": ["loss", "gradient_norm"]},
    ]


def test_a_resumed_run_takes_back_what_lies_beyond_its_step_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonlTracker(path)
    for step in range(1, 8):
        first.log(step, {"loss": float(step)})
    first.log(5, {"validation_loss": 5.0})
    first.close()
    with path.open("ab") as file:
        file.write(b'{"step": 8, "lo')
    resumed = JsonlTracker(path, resume_step=5)
    resumed.log(6, {"loss": 6.5})
    resumed.close()
    assert [(row["step"], row.get("loss")) for row in _rows(path)] == [
        (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.0), (5, None), (6, 6.5),
    ]  # fmt: skip


def test_a_new_run_starts_with_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    JsonlTracker(path).close()
    assert path.read_bytes() == b""


def test_rows_that_are_not_ours_are_dropped_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\nnot json\n[1]\n{"step": "x"}\n{"loss": 1}\n\xff\xfe\n{"step": 2}\n')
    truncate_rows(path, 10)
    assert _rows(path) == [{"step": 1}, {"step": 2}]
    truncate_rows(tmp_path / "absent.jsonl", 10)
    assert not (tmp_path / "absent.jsonl").exists()


def test_a_killed_writer_leaves_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    program = (
        "import sys; from pathlib import Path\n"
        "from llm_journey.training.tracker import JsonlTracker\n"
        "made = JsonlTracker(Path(sys.argv[1]))\n"
        "for step in range(10**9):\n"
        "    made.log(step, {'loss': step / 7, 'pad': 'x' * 300})\n"
        "    if step == 200: print('go', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"go\n"
    process.kill()
    process.wait()
    process.stdout.close()
    rows = _rows(path)
    assert len(rows) > 200
    assert [row["step"] for row in rows] == list(range(len(rows)))


def test_a_full_disk_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = JsonlTracker(tmp_path / "metrics.jsonl")

    def no_space(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", no_space)
        with pytest.raises(JourneyError, match=r"No space left on device.*free some disk space"):
            made.log(1, {"loss": 1.0})
        patch.setattr(os, "write", lambda descriptor, data: len(data) - 3)
        with pytest.raises(JourneyError, match="the disk is full"):
            made.log(1, {"loss": 1.0})
    made.close()
    with pytest.raises(RuntimeError, match="is closed"):
        made.log(2, {})


def _scalars(directory: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_reads_back_what_was_logged_and_a_resume_does_not_double(tmp_path: Path) -> None:
    first = TensorBoardTracker(tmp_path / "tensorboard")
    for step in range(1, 6):
        first.log(step, {"loss": 1 / step, "text": "left out", "flag": True})
    first.close()
    resumed = TensorBoardTracker(tmp_path / "tensorboard", resume_step=3)
    for step in range(4, 7):
        resumed.log(step, {"loss": 10.0 + step})
    resumed.close()
    assert _scalars(tmp_path / "tensorboard", "loss") == [
        (1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 14.0), (5, 15.0), (6, 16.0),
    ]  # fmt: skip


def _settled(path: Path) -> bytes:
    """The file once W&B's own process has written it out (soon after the run is finished)."""
    deadline = time.monotonic() + 20
    while b"2.25" not in path.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    return path.read_bytes()


# Importing urllib3 opens and closes an IPv6 socket to see whether the machine has any; nothing is sent.
@pytest.mark.filterwarnings("ignore:A test tried to use socket.socket:UserWarning")
def test_wandb_offline_writes_a_whole_run_without_any_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("SOME_SECRET", "do-not-store-7f3a")
    made = WandbTracker(tmp_path, "a-run", {"width": 128})
    made.log(1, {"loss": 2.5, "prompt": "hello"})
    made.log(2, {"loss": 2.25})
    made.close()
    stored = [path for path in (tmp_path / "wandb").rglob("*.wandb") if path.is_file()]
    assert len(stored) == 1
    content = _settled(stored[0])
    assert b"a-run" in content
    assert b"2.25" in content
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"do-not-store-7f3a" not in everything
    identity = (tmp_path / "wandb-id.txt").read_text().strip()
    assert identity in stored[0].name
    again = WandbTracker(tmp_path, "a-run", {"width": 128}, resume_step=2)
    again.close()
    assert (tmp_path / "wandb-id.txt").read_text().strip() == identity
    assert capfd.readouterr().out == ""


def test_wandb_is_offline_unless_a_key_or_a_mode_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert default_wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert default_wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert default_wandb_mode() == "disabled"


def test_jsonl_is_always_among_the_trackers(tmp_path: Path) -> None:
    group = make_trackers([], tmp_path, run_name="r", config={})
    group.log(3, {"loss": 1.5})
    group.close()
    assert _rows(tmp_path / "metrics.jsonl") == [{"step": 3, "loss": 1.5}]
    assert [type(item) for item in group] == [JsonlTracker]
    twice = make_trackers(["jsonl", "jsonl"], tmp_path, run_name="r", config={}, resume_step=3)
    twice.close()
    assert len(list(twice)) == 1


def test_an_unknown_tracker_lists_the_known_ones_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="unknown tracker 'mlflow'; known: jsonl, tensorboard, wandb"):
        make_trackers(["mlflow"], tmp_path / "run", run_name="r", config={})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_library_names_the_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(tracker_module.importlib, "import_module", missing)
    with pytest.raises(BadInputError, match=rf"'{name}'.*pip install 'llm-journey\[track\]'"):
        make_trackers([name], tmp_path, run_name="r", config={})


def test_closing_reaches_every_tracker_and_the_first_failure_is_raised() -> None:
    closed = []

    class Failing:
        def __init__(self, name: str) -> None:
            self.name = name

        def log(self, step: int, measurements: Any) -> None: ...

        def close(self) -> None:
            closed.append(self.name)
            raise OSError(self.name)

    with pytest.raises(OSError, match="first"):
        TrackerGroup([Failing("first"), Failing("second")]).close()
    assert closed == ["first", "second"]
