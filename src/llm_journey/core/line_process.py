"""A process of our own that answers one line with one line, and is ended once it takes too long.

For work on what comes from outside (a model's chat template, a client's grammar) that may loop, or ask for all memory,
where no check between two steps can stop one such step. The module that runs in it limits its own memory.
"""

import atexit
import os
import subprocess
import sys
import threading

from llm_journey.core.errors import JourneyError

READY = b"ready\n"
_START_SECONDS = 60.0


class LineProcess:
    """`python -m MODULE`, started when it is first asked and again after it ended: one line at a time, from any thread.

    The module writes READY once, then reads lines from standard input and writes a line for each.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        atexit.register(self.stop)

    def ask(self, request: bytes, seconds: float) -> bytes | None:
        """The reply to a line, without its end; None where the process ended over it, or took more than `seconds`.

        Raises JourneyError where the process cannot be started.
        """
        with self._lock:
            line = self._exchange(self._ready(), request + b"\n", seconds)
            if line.endswith(b"\n"):
                return line[:-1]
            self.stop()
            return None

    def stop(self) -> None:
        """End the process, if one runs."""
        process, self._process = self._process, None
        # A fork inherits this object, but the process belongs to the parent.
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
        process.wait()

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self.stop()
            # -P: no module of the current folder is taken for one of Python's.
            command = [sys.executable, "-P", "-m", self._module]
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            if self._exchange(self._process, b"", _START_SECONDS) != READY:
                self.stop()
                raise JourneyError(f"the process of {self._module} did not start")
        return self._process

    @staticmethod
    def _exchange(process: subprocess.Popen[bytes], request: bytes, seconds: float) -> bytes:
        """Write a request, read one line; the process is killed when the time is up, which ends the reading."""
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            return process.stdout.readline()
        except OSError:
            return b""
        finally:
            timer.cancel()
