"""A Python script in a process of its own, with the most memory that it held."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# The kernel's own high-water mark of the process (proc(5)): what getrusage gives of children holds their parent's too.
_WRAPPER = """
import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))  # as `python SCRIPT` does
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    try:
        lines = open("/proc/self/status").read().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            sys.stderr.write(chr(10) + "peak " + line.split()[1] + chr(10))
"""


@dataclass(frozen=True)
class Finished:
    """How it ended. peak_bytes: its largest resident set, None where the system does not tell."""

    code: int
    out: str
    err: str
    peak_bytes: int | None


def run_measured(
    arguments: Sequence[str], *, environment: Mapping[str, str] | None = None, seconds: float = 600.0
) -> Finished:
    """Run `python -B SCRIPT ARGUMENTS`, which leaves no cache beside the script, and wait for it.

    Raises subprocess.TimeoutExpired, with the process ended.
    """
    done = subprocess.run(
        [sys.executable, "-B", "-c", _WRAPPER, *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=seconds,
        env=None if environment is None else dict(environment),
    )
    peak, lines = None, done.stderr.splitlines()
    if lines and lines[-1].startswith("peak "):
        peak = int(lines.pop().split()[1]) * 1024
    return Finished(done.returncode, done.stdout, "\n".join(lines), peak)
