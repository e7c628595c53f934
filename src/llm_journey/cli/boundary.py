"""The edge of the program: every way of ending becomes an exit code, every failure one line on standard error.

0 done, 1 failed, 2 bad input, 130 interrupted. A traceback is shown only with `--debug` or JOURNEY_DEBUG=1.
"""

import errno
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from llm_journey.core.errors import JourneyError

_FAILED, _BAD_INPUT, _INTERRUPTED = 1, 2, 130
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_ENOUGH = 64 << 20  # bytes: a folder with so much room is not the one that a write failed in
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}


def guarded(work: Callable[[], int | None]) -> int:
    """Run `work` and return the exit code of the process; what it raises is said in one line on standard error."""
    if sys.stdout is None:  # closed by whoever called us
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    try:
        code = work() or 0
        return _fail("interrupted", _INTERRUPTED) if code == _INTERRUPTED else code
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    except JourneyError as error:
        return _fail(str(error), error.exit_code)
    except MemoryError:
        return _fail(_OUT_OF_MEMORY, _FAILED)
    except OSError as error:
        return _fail(_explain_os_error(error), _FAILED)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # typer's: a group without its command
            sys.stderr.write(f"{error.format_message()}\n")  # type: ignore[attr-defined]
            return _BAD_INPUT
        if hasattr(error, "format_message"):  # typer's: an unknown option, a missing argument
            return _fail(_usage(error), _BAD_INPUT)
        if type(error).__name__ == "Abort":
            return _fail("aborted", _FAILED)
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):  # torch's
            return _fail(_OUT_OF_MEMORY, _FAILED)
        reason = f"{type(error).__name__}: {error}"
        return _fail(f"unexpected {reason}; this is a bug: run it again with --debug to see where", _FAILED)


_OUT_OF_MEMORY = (
    "not enough memory; use a smaller model, training.batch_size or model.context (--set), or close other programs"
)


def debugging() -> bool:
    """Whether tracebacks are wanted: JOURNEY_DEBUG set to something other than 0, or `--debug`."""
    return os.environ.get("JOURNEY_DEBUG", "0") not in ("", "0")


def _fail(message: str, code: int) -> int:
    """Say `message` as one line; the traceback goes before it where it is wanted."""
    if debugging() and sys.exc_info()[0] is not None:
        traceback.print_exc()
    line = " ".join(message.split()) or "failed without a reason"
    sys.stderr.write(line + "\n" if code == _INTERRUPTED else f"error: {line}\n")
    return code


def _usage(error: Exception) -> str:
    """The message of a usage error with the command whose help tells more."""
    message = str(error.format_message()).rstrip(".")  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "") or "journey"
    return f"{message}; see `{path} --help`"


def _explain_os_error(error: OSError) -> str:
    where = str(error.filename) if error.filename is not None else "a file"
    reason = error.strerror or type(error).__name__
    if error.errno in _DISK_FULL:
        folder, free = _fullest_folder()
        if error.filename is None and free > _ENOUGH:
            return f"standard output: what it goes to is full ({reason})"
        where = where if error.filename is not None else folder
        return f"{where}: the disk is full ({reason}); free some space (`journey clean`) or set JOURNEY_HOME elsewhere"
    if error.errno in _NOT_WRITABLE:
        return f"{where}: no permission or not writable ({reason}); set JOURNEY_HOME to a folder that you can write"
    return f"{where}: {reason}"


def _fullest_folder() -> tuple[str, int]:
    """Which of our folders has the least room, and how much: a failed write does not say where it failed."""
    from llm_journey.core.paths import cache_dir, runs_dir

    def free(folder: Path) -> int:
        return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free

    least = min((cache_dir().absolute(), runs_dir().absolute()), key=free)
    return str(least), free(least)
