"""Trackers: where a run's measurements go. A JSON-lines file always; TensorBoard and Weights & Biases by name.

A tracker takes (step, measurements) and is closed once. After a resume, what was logged beyond the step resumed from
is taken back, so that no curve doubles. Weights & Biases stays offline unless a key is set (or WANDB_MODE says so);
nothing here prints a key or sends the environment, the code or system figures anywhere.
"""

import importlib
import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from llm_journey.core import files
from llm_journey.core.errors import BadInputError, JourneyError, unknown_name

METRICS_FILE = "metrics.jsonl"
_EXTRA = "llm-journey[track]"


class Tracker(Protocol):
    """What the training loop knows of a tracker."""

    def log(self, step: int, measurements: Mapping[str, Any]) -> None:
        """Record what was measured at a step."""

    def close(self) -> None:
        """Flush and release everything; called once, also after an error."""


class JsonlTracker:
    """One JSON object a line, each appended by a single write, so that a kill leaves at most one torn last line.

    A number that is not finite is written as null and named under `non_finite` (JSON has no NaN).
    """

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is None:
            files.write_bytes(path, b"")
        else:
            truncate_rows(path, resume_step)
        self._descriptor: int | None = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._path = path

    def log(self, step: int, measurements: Mapping[str, Any]) -> None:
        """Append one row. Raises JourneyError where the disk takes none or only a part of it."""
        if self._descriptor is None:
            raise RuntimeError(f"{self._path} is closed")
        line = encode_row({"step": step, **measurements})
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise self._not_written(error) from None
        if written != len(line):
            raise JourneyError(f"{self._path}: the disk is full; free some space and resume")

    def close(self) -> None:
        """Flush the file to disk and close it. Raises JourneyError where the disk does not take it."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise self._not_written(error) from None
        finally:
            os.close(descriptor)

    def _not_written(self, error: OSError) -> JourneyError:
        return JourneyError(f"{self._path}: cannot be written ({error.strerror}); free some disk space")


class TensorBoardTracker:
    """Scalars as TensorBoard event files; text and other values are left to the JSON-lines file."""

    def __init__(self, directory: Path, *, resume_step: int | None = None) -> None:
        writer = _import_optional("torch.utils.tensorboard", "tensorboard")
        # TensorBoard hides what earlier files hold from the purge step on.
        purge_step = None if resume_step is None else resume_step + 1
        self._writer: Any = writer.SummaryWriter(str(directory), purge_step=purge_step)

    def log(self, step: int, measurements: Mapping[str, Any]) -> None:
        """Record each number under its own name."""
        for name, value in measurements.items():
            if _is_number(value):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is buffered."""
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run, in `directory`/wandb. Offline without a key; `wandb sync` sends it later."""

    def __init__(
        self,
        directory: Path,
        run_name: str,
        config: Mapping[str, Any],
        *,
        mode: str | None = None,
        resume_step: int | None = None,
    ) -> None:
        wandb = _import_optional("wandb", "wandb")
        directory.mkdir(parents=True, exist_ok=True)
        quiet = wandb.Settings(
            silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True, x_disable_meta=True
        )
        self._run: Any = wandb.init(
            project="llm-journey",
            name=run_name,
            id=_wandb_identity(directory / "wandb-id.txt", resume_step),
            resume="allow",
            dir=str(directory),
            config=dict(config),
            mode=mode or default_wandb_mode(),
            settings=quiet,
        )

    def log(self, step: int, measurements: Mapping[str, Any]) -> None:
        """Record each number and text under its own name."""
        self._run.log({k: v for k, v in measurements.items() if _is_number(v) or isinstance(v, str)}, step=step)

    def close(self) -> None:
        """Finish the run; offline, its files are whole on disk."""
        self._run.finish()


class TrackerGroup:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def __iter__(self) -> Iterator[Tracker]:
        return iter(self._trackers)

    def log(self, step: int, measurements: Mapping[str, Any]) -> None:
        """Record in every tracker."""
        for tracker in self._trackers:
            tracker.log(step, measurements)

    def close(self) -> None:
        """Close every tracker, the last ones too where an earlier one fails; then the first failure is raised."""
        failures: list[Exception] = []
        for tracker in self._trackers:
            try:
                tracker.close()
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]


def make_trackers(
    names: Sequence[str],
    directory: Path,
    *,
    run_name: str,
    config: Mapping[str, Any],
    resume_step: int | None = None,
) -> TrackerGroup:
    """The trackers of a run in its folder: `metrics.jsonl` always, and those named (`jsonl`, `tensorboard`, `wandb`).

    `resume_step` is the step that a resumed run goes on from; None starts every tracker anew. Raises BadInputError for
    an unknown name or a library that is not installed.
    """
    makers: dict[str, Callable[[], Tracker]] = {
        "jsonl": lambda: JsonlTracker(directory / METRICS_FILE, resume_step=resume_step),
        "tensorboard": lambda: TensorBoardTracker(directory / "tensorboard", resume_step=resume_step),
        "wandb": lambda: WandbTracker(directory, run_name, config, resume_step=resume_step),
    }
    for name in names:
        if name not in makers:
            raise unknown_name("tracker", name, makers)
    made: list[Tracker] = []
    try:
        for name in dict.fromkeys(["jsonl", *names]):
            made.append(makers[name]())
    except BaseException:
        TrackerGroup(made).close()
        raise
    return TrackerGroup(made)


def encode_row(row: Mapping[str, Any]) -> bytes:
    """A row as one line of JSON; numbers that are not finite become null, their names are listed in `non_finite`."""
    lost = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    if lost:
        row = {**row, **dict.fromkeys(lost, None), "non_finite": lost}
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def truncate_rows(path: Path, last_step: int) -> None:
    """Drop the rows of a JSON-lines file whose `step` lies beyond `last_step`, and a torn last line; atomic."""
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn
    kept = [line for line in lines if _step_of(line) <= last_step]
    files.write_bytes(path, b"".join(line + b"\n" for line in kept))


def default_wandb_mode() -> str:
    """WANDB_MODE where it is set; else "online" with WANDB_API_KEY in the environment, "offline" without."""
    return os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")


def _step_of(line: bytes) -> float:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # no row of ours: drop it
    return float(step) if _is_number(step) else math.inf


def _wandb_identity(path: Path, resume_step: int | None) -> str:
    """The run's identity at Weights & Biases: kept in the run folder, so that a resumed run goes on as the same one."""
    if resume_step is not None and path.exists():
        return path.read_text(encoding="utf-8").strip()
    identity = uuid.uuid4().hex
    files.write_text(path, identity + "\n")
    return identity


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _import_optional(module: str, tracker: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise BadInputError(f"tracker {tracker!r} needs a library that is missing: pip install '{_EXTRA}'") from None
