"""What can be removed to win disk space, and removing it. Never anything outside this program's own folders.

    leftovers     what killed processes left under temporary names, older than an hour
    prepared      prepared text and token shards, measured baselines: made again when needed
    pulled        catalog items of our own cache: pulled again when needed (the Hugging Face cache is left alone)
    compiled      decoding steps compiled for this machine: compiled again when asked for
    checkpoints   of finished runs: all but the newest one; of any run: those set aside as abandoned

Links are removed as links; nothing is ever followed out of the folders.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_journey.app.runs import MODEL_FOLDER, RUN_FILE, is_busy
from llm_journey.core.errors import JourneyError, unknown_name
from llm_journey.core.paths import cache_dir, runs_dir

_LEFTOVER = re.compile(r"\..+\.(tmp|old)$")
_LEFTOVER_AGE_SECONDS = 3600.0
_CHECKPOINT = re.compile(r"(abandoned-)?step-\d{8,}$")


@dataclass(frozen=True)
class Removable:
    """Something that can go: what kind it is, where it lies, its size in bytes."""

    kind: str
    path: Path
    size: int

    def describe(self) -> dict[str, Any]:
        """The item as JSON values."""
        return {"kind": self.kind, "path": str(self.path), "bytes": self.size}


def find_removable(kinds: Collection[str] = ()) -> list[Removable]:
    """What can be removed, of the given kinds (all without any). Raises BadInputError that lists the kinds."""
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind", kind, KINDS)
    found = []
    for kind, find in KINDS.items():
        if not kinds or kind in kinds:
            paths = sorted(path for path in find() if _is_ours(path))
            found += [Removable(kind, path, size_of(path)) for path in paths]
    return found


def remove(items: list[Removable]) -> int:
    """Remove the items; returns the bytes freed. Raises JourneyError naming what could not be removed, at the end."""
    freed, failed = 0, []
    for item in items:
        if not _is_ours(item.path):
            continue
        try:
            _remove(item.path)
            freed += item.size
        except OSError as error:
            failed.append(f"{item.path} ({error.strerror or error})")
    if failed:
        raise JourneyError(f"could not remove {', '.join(failed)}; {freed / 1e6:,.0f} MB were freed")
    return freed


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links to folders are not followed."""
    if path.is_symlink() or not path.exists():
        return 0
    if path.is_file():
        return path.stat().st_size
    total = 0
    for parent, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(Path(parent) / name).st_size
    return total


def _remove(path: Path) -> None:
    """Rename first, so that a folder is never seen half deleted under its name."""
    if path.is_symlink() or path.is_file():
        path.unlink()
        return
    doomed = path.with_name(f".{path.name}.removed.tmp")
    path.replace(doomed)
    shutil.rmtree(doomed)


def _is_ours(path: Path) -> bool:
    """Whether the folder that holds `path` lies, links followed, inside the cache or the runs folder."""
    parent = path.parent.resolve()
    return any(parent.is_relative_to(root.resolve()) for root in (cache_dir(), runs_dir()))


def _leftovers() -> Iterator[Path]:
    oldest_in_use = time.time() - _LEFTOVER_AGE_SECONDS
    ours = [cache_dir() / name for name in ("catalog", "prepared", "baselines", "compiled")]
    found = [path for root in [*ours, *_idle_runs()] for path in _temporary_names(root)]
    found += _children(cache_dir() / "catalog" / ".partial")
    yield from (path for path in found if _newest_change(path) < oldest_in_use)


def _temporary_names(root: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(root):
        yield from (Path(parent) / name for name in [*folders, *names] if _LEFTOVER.search(name))
        folders[:] = [name for name in folders if not _LEFTOVER.search(name)]


def _prepared() -> Iterator[Path]:
    for folder in ("prepared", "baselines"):
        yield from (path for path in _children(cache_dir() / folder) if not path.name.startswith("."))


def _pulled() -> Iterator[Path]:
    yield from (path for path in _children(cache_dir() / "catalog") if not path.name.startswith("."))


def _compiled() -> Iterator[Path]:
    yield from (path for path in _children(cache_dir() / "compiled") if not path.name.startswith("."))


def _checkpoints() -> Iterator[Path]:
    for run in _idle_runs():
        found = [path for path in _children(run / "checkpoints") if _CHECKPOINT.match(path.name)]
        whole = sorted((path for path in found if path.name.startswith("step-")), key=lambda path: int(path.name[5:]))
        # An unfinished run keeps the ones that it falls back on where the newest is damaged.
        kept = whole[-1:] if (run / MODEL_FOLDER / "config.json").is_file() else whole
        yield from (path for path in found if path not in kept)


def _idle_runs() -> list[Path]:
    """Folders of runs that no process works on."""
    folders = [path for path in _children(runs_dir()) if (path / RUN_FILE).is_file() and not path.is_symlink()]
    return [path for path in folders if not is_busy(path)]


KINDS: dict[str, Callable[[], Iterator[Path]]] = {
    "leftovers": _leftovers,
    "prepared": _prepared,
    "pulled": _pulled,
    "compiled": _compiled,
    "checkpoints": _checkpoints,
}


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _newest_change(path: Path) -> float:
    """The newest modification time in a file or folder (seconds since the epoch)."""
    newest = path.lstat().st_mtime
    if path.is_dir() and not path.is_symlink():
        for child in path.rglob("*"):
            with contextlib.suppress(OSError):
                newest = max(newest, child.lstat().st_mtime)
    return newest
