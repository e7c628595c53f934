"""Training runs by name: finding and listing what lies in the runs folder, where a new one goes, who works on one."""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_journey.core.errors import BadInputError
from llm_journey.core.paths import inside, runs_dir

if TYPE_CHECKING:
    from llm_journey.app.opening import AnyTextModel
    from llm_journey.reports.run_data import Run

RUN_FILE, MODEL_FOLDER, REPORT_FILE = "run.json", "model", "report.html"
_MOST_NUMBERED = 10_000
# What runs of each objective are judged by, most telling first: figure, its words, whether it is a share.
_RESULTS = (
    ("bits_per_byte", "bits per byte", False),
    ("exact_match", "exact match", True),
    ("answer_accuracy", "of answers' tokens", True),
    ("masked_accuracy", "of masked tokens", True),
    ("span_accuracy", "of span tokens", True),
    ("validation_loss", "nats a token", False),
)


@dataclass(frozen=True)
class TrainedRun:
    """A run's folder, read afresh on every access, so that it also shows a run that is still going on."""

    directory: Path

    @property
    def name(self) -> str:
        """The name under which `journey` finds the run."""
        return self.directory.name

    @property
    def status(self) -> str:
        """running, trained (saved, not validated yet), finished, interrupted or failed.

        A run that says it is running although no process works on it was killed: it counts as interrupted.
        """
        status = self._read().status
        return "interrupted" if status == "running" and not is_busy(self.directory) else status

    @property
    def figures(self) -> dict[str, float]:
        """The run's final figures: bits_per_byte, validation_loss, perplexity, parameters, tokens_per_second, ..."""
        return self._read().figures

    @property
    def result(self) -> str:
        """The figure that this run is judged by, in words ("1.622 bits per byte"); empty before the first."""
        figures = self.figures
        for key, words, is_share in _RESULTS:
            if key in figures:
                return f"{figures[key]:.1%} {words}" if is_share else f"{figures[key]:.3f} {words}"
        return ""

    @property
    def baselines(self) -> dict[str, float]:
        """Bits per byte of the baselines on the same held-out text, by name."""
        return self._read().baselines

    @property
    def failures(self) -> dict[str, str]:
        """Measurements after training that failed, by name, each with its reason; the model is saved all the same."""
        found = self._read().section("failures")
        return {name: str(reason) for name, reason in found.items()}

    @property
    def created(self) -> str:
        """When the run began, in ISO 8601; empty where it was not recorded."""
        return str(self._read().information.get("created") or "")

    @property
    def report(self) -> Path | None:
        """The HTML report, None before it is written."""
        path = self.directory / REPORT_FILE
        return path if path.is_file() else None

    def model(self) -> "AnyTextModel":
        """The trained model. Raises BadInputError where the run has saved none yet."""
        from llm_journey.app.opening import open_any

        return open_any(str(self.directory))

    def describe(self) -> dict[str, Any]:
        """The run as JSON values: name, path, status, created, figures, baselines, report."""
        run = self._read()
        return {
            "name": self.name,
            "path": str(self.directory),
            "status": self.status,
            "created": self.created,
            "precision": run.information.get("precision"),
            "figures": run.figures,
            "baselines": run.baselines,
            "report": str(self.report) if self.report else None,
        }

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) rows of what a person wants to know first."""
        from llm_journey.reports.run_report import summary_rows

        return summary_rows(self.directory)

    def _read(self) -> "Run":
        from llm_journey.reports.run_data import read_run

        return read_run(self.directory)

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><td>{escape(label)}</td><td>{escape(value)}</td></tr>" for label, value in self.rows())
        return f"<table>{cells}</table>"


def list_runs(on_damaged: Callable[[str], object] = str) -> list[TrainedRun]:
    """Every run in the runs folder that can be read, oldest first; of others `on_damaged` is told what is wrong."""
    runs = []
    for directory in _run_folders():
        run = TrainedRun(directory)
        try:
            runs.append((run.created, run.name, run))
        except BadInputError as error:
            on_damaged(f"run {directory.name!r} is left out: {error}")
    return [run for _, _, run in sorted(runs, key=lambda item: item[:2])]


def find_run(name_or_path: str) -> TrainedRun:
    """The run of that name, or the run folder at that path. Raises BadInputError that lists close names."""
    path = Path(name_or_path).expanduser()
    if _is_name(name_or_path):
        named = inside(runs_dir(), name_or_path)
        if (named / RUN_FILE).is_file():
            return TrainedRun(named)
    if (path / RUN_FILE).is_file():
        return TrainedRun(path.resolve())
    raise BadInputError(f"unknown run {name_or_path!r}; {suggestion(name_or_path)}")


def has_run(name_or_path: str) -> bool:
    """Whether `find_run` would find one."""
    try:
        find_run(name_or_path)
    except BadInputError:
        return False
    return True


def suggestion(name: str) -> str:
    """The known runs that come close to `name`, or all of them, or that there is none."""
    known = [directory.name for directory in _run_folders()]
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
    if close:
        return f"did you mean {', '.join(close)}?"
    if known:
        return f"known runs: {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"
    return "there is no run yet: `journey train quickstart` makes one"


@contextmanager
def working_on(directory: Path) -> Iterator[None]:
    """Hold a run for this process; the hold falls away with the process. Raises BadInputError where another has it."""
    import filelock

    lock = filelock.FileLock(_lock_path(directory))
    _lock_path(directory).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BadInputError(
            f"another process is working on the run {directory.name!r}; wait for it, or give a new run another --name"
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_busy(directory: Path) -> bool:
    """Whether a process works on the run at the moment."""
    if not _lock_path(directory).is_file():
        return False
    try:
        with working_on(directory):
            return False
    except (BadInputError, OSError):
        return True


def new_run_directory(name: str) -> Path:
    """The folder of a new run called `name`, or `name-2`, `name-3`, ... where that is taken. It is not made here."""
    for number in range(1, _MOST_NUMBERED):
        directory = inside(runs_dir(), name if number == 1 else f"{name}-{number}")
        if not directory.exists():
            return directory
    raise BadInputError(f"{_MOST_NUMBERED} runs are called {name!r}; choose another with --name")


def _lock_path(directory: Path) -> Path:
    return directory.parent / ".locks" / f"{directory.name}.lock"


def _run_folders() -> list[Path]:
    try:
        return sorted(path for path in runs_dir().iterdir() if (path / RUN_FILE).is_file())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_name(text: str) -> bool:
    return bool(text) and "/" not in text and "\\" not in text and text not in (".", "..") and "\x00" not in text
