"""HTML pages and PDFs through a process that may be killed: no file can hang, crash or exhaust the reader.

One process serves many files and is started again after it had to be killed. The bounds: the file's size before it is
opened, its time, the process's memory (4 GiB), the pages of a PDF, the characters that come back. What is read out of
the file, and how, is in pages_worker.py.
"""

import json
import os
import selectors
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from llm_journey.text.documents import Limits, Unreadable

_WORKER = Path(__file__).with_name("pages_worker.py")
_ESCAPED_BYTES = 12  # of JSON for one character at most (a surrogate pair of \uXXXX)


class PageReader:
    """Takes the text out of pages; use it as a context manager, which ends the process."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, path: Path, kind: str) -> str:
        """The text of an HTML page (`kind` "html") or a PDF ("pdf"). Raises Unreadable with the reason."""
        size = path.stat().st_size
        if size > self._limits.page_file_bytes:
            raise Unreadable(f"is {size >> 20} MiB; the limit for a page is {self._limits.page_file_bytes >> 20} MiB")
        request = {"path": str(path.absolute()), "kind": kind, **asdict(self._limits)}
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode("utf-8") + b"\n")
            process.stdin.flush()
            answer = json.loads(self._answer(process))
        except Unreadable:
            self.close()
            raise
        except (OSError, ValueError):
            self.close()
            raise Unreadable("made the parser crash; the file is damaged or hostile") from None
        if "problem" in answer:
            raise Unreadable(str(answer["problem"]))
        return str(answer["text"])

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._process

    def _answer(self, process: subprocess.Popen[bytes]) -> bytes:
        """One line of the worker's output, within the limits of time and size. Windows cannot wait on pipes."""
        assert process.stdout is not None
        deadline = time.monotonic() + self._limits.page_seconds
        parts: list[bytes] = []
        length = 0
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not parts or not parts[-1].endswith(b"\n"):
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise Unreadable(f"took longer than {self._limits.page_seconds:g} s to parse; given up")
                parts.append(os.read(process.stdout.fileno(), 1 << 20))
                length += len(parts[-1])
                if not parts[-1] or length > _ESCAPED_BYTES * self._limits.page_characters + (1 << 16):
                    raise ValueError("the worker ended, or answers without end")
        return b"".join(parts)
