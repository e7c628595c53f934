"""What made a result: command, versions, hardware, commit. Saved beside each run and in each ledger row."""

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_RECORDED = ("torch", "numpy", "tokenizers", "tiktoken", "transformers", "safetensors")


def describe() -> dict[str, Any]:
    """Command line, library versions, hardware and, in a git checkout of this package, its commit."""
    return {
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "versions": versions(),
        "hardware": hardware(),
        "commit": commit(),
    }


def _program() -> str:
    """What was called, without the folders that it lies in on this machine."""
    path = Path(sys.argv[0])
    return "journey" if path.name in ("journey", "__main__.py") else path.name


def versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that its numbers depend on."""
    found = {"python": platform.python_version(), "llm-journey": _version("llm-journey")}
    found.update({name: _version(name) for name in _RECORDED})
    return {name: version for name, version in found.items() if version}


def hardware() -> dict[str, Any]:
    """Processor name, usable cores and memory in bytes."""
    return {"processor": _processor(), "cores": usable_cores(), "memory_bytes": _memory_bytes()}


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str | None:
    """The commit of the checkout that holds this package ('+' behind it where files were changed), or None.

    What a measurement appends to the ledger is no change of what was measured.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        run = ["git", "-C", str(root)]
        head = subprocess.run([*run, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=5)
        changes = [*run, "status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)benchmarks/ledger.jsonl"]
        state = subprocess.run(changes, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode != 0:
        return None
    return head.stdout.strip() + ("+" if state.stdout.strip() else "")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
