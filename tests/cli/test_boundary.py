"""Every way of ending: its exit code, and one line on standard error."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from llm_journey.cli.boundary import guarded
from llm_journey.core.errors import BadInputError, JourneyError


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


def raising(error: BaseException) -> Callable[[], int | None]:
    def work() -> int | None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (BadInputError("no such key"), 2, "error: no such key"),
        (JourneyError("no network"), 1, "error: no network"),
        (JourneyError("two\nlines"), 1, "error: two lines"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "error: not enough memory"),
        (OutOfMemoryError("CUDA out of memory"), 1, "error: not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "error: not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 1, "error: /data/x: the disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "/data/x"), 1, "error: /data/x: no permission or not writable"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), 1, "error: /data/x: no permission"),
        (OSError(errno.EIO, "Input/output error", "/data/x"), 1, "error: /data/x: Input/output error"),
        (ZeroDivisionError("division by zero"), 1, "error: unexpected ZeroDivisionError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_failure_is_one_line(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(raising(error)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(said)
    assert captured.err.count("\n") == 1


def test_a_full_disk_and_a_missing_permission_name_the_fix(capsys: pytest.CaptureFixture[str]) -> None:
    for number in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR):
        guarded(raising(OSError(number, os.strerror(number), "/x")))
        assert "JOURNEY_HOME" in capsys.readouterr().err


def test_a_traceback_is_shown_only_where_it_is_wanted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNEY_DEBUG", "1")
    guarded(raising(BadInputError("no such key")))
    captured = capsys.readouterr()
    assert "Traceback" in captured.err
    assert captured.err.endswith("error: no such key\n")


def test_success_and_a_chosen_code_pass_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: None) == 0
    assert guarded(lambda: 1) == 1
    assert capsys.readouterr().err == ""
    assert guarded(lambda: 130) == 130
    assert capsys.readouterr().err == "interrupted\n"


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llm_journey", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def test_the_process_ends_with_the_code() -> None:
    assert run("--version").returncode == 0
    unknown = run("frobnicate")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr == "error: No such command 'frobnicate'; see `journey --help`\n"
    assert run("train").stderr == "error: Missing argument 'RECIPE'; see `journey train --help`\n"
    assert run("runs", "list", "--jason").returncode == 2


def test_debug_shows_where() -> None:
    assert "Traceback" in run("--debug", "runs", "show", "nothing-of-that-name").stderr
    assert "Traceback" not in run("runs", "show", "nothing-of-that-name").stderr


def test_a_reader_that_leaves_is_not_complained_about() -> None:
    """`journey data list | true`: a pipe that nobody reads. The parser ends the process with 1, as a broken pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "llm_journey", "data", "list", "--json"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
