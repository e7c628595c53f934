"""Counting unique pre-tokens of a stream of texts in several processes, without holding the stream.

The caller's thread cuts the stream into chunks of whole documents (a document larger than a chunk is cut where no
pre-token is), hands each to a counting process that is free, and counts it itself where none is. The processes are
plain `python -m` children that speak JSON lines over pipes: they inherit no threads and no locks (as forks would), and
need no importable main module (as multiprocessing's spawn would). A child sends its counts back whenever they grow
large, so that no word is held in more than two places.
"""

import json
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import IO

from llm_journey.core.errors import JourneyError
from llm_journey.core.lineage import usable_cores
from llm_journey.tokenizer.pretokenize import compiled, pieces

_CHUNK_CHARACTERS = 1 << 19
# A child sends its counts back once it holds this many words (about 40 MB).
_MAX_WORDS_IN_CHILD = 200_000
# Beyond this the caller's thread, which feeds the children, is the bottleneck.
_MAX_PROCESSES = 8
_FINISH = "finish"


def count_words(
    texts: Iterable[str],
    pattern: str,
    *,
    processes: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Counter[str]:
    """How often each pre-token of `pattern` stands in `texts`; equal to `bpe.count_words`.

    `processes` counts the caller's own (None: one a core). `on_progress` gets the characters read so far.
    """
    processes = min(usable_cores(), _MAX_PROCESSES) if processes is None else processes
    counts: Counter[str] = Counter()
    children: list[_Child] = []
    characters = 0
    try:
        for number, chunk in enumerate(chunks(texts)):
            # The first chunk is counted here: a small corpus starts no process at all.
            if number == 1:
                children = [_Child(pattern) for _ in range(processes - 1)]
            if not any(child.take(chunk) for child in children):
                count_chunk(chunk, pattern, counts)
            for child in children:
                child.collect(counts)
            characters += sum(map(len, chunk))
            if on_progress:
                on_progress(characters)
        for child in children:
            child.finish()
        for child in children:
            child.wait()
            child.collect(counts)
    finally:
        for child in children:
            child.close()
    return counts


def count_chunk(chunk: Sequence[str], pattern: str, counts: Counter[str]) -> None:
    """Add the pre-tokens of each text in `chunk` to `counts`."""
    split = compiled(pattern).findall
    for text in chunk:
        counts.update(split(text))


def chunks(texts: Iterable[str], size: int = _CHUNK_CHARACTERS) -> Iterator[list[str]]:
    """Lists of texts of about `size` characters each; a longer text is cut where no pre-token is."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        for piece in pieces(text, size):
            chunk.append(piece)
            characters += len(piece)
            if characters >= size:
                yield chunk
                chunk, characters = [], 0
    if chunk:
        yield chunk


class _Child:
    """One counting process, and the thread here that speaks with it."""

    def __init__(self, pattern: str) -> None:
        # -P: no module of the current folder is taken for one of Python's.
        command = [sys.executable, "-P", "-m", "llm_journey.tokenizer.word_counts", pattern]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._chunks: queue.Queue[Sequence[str] | str] = queue.Queue(maxsize=1)
        self._replies: queue.SimpleQueue[dict[str, int]] = queue.SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._converse, daemon=True)
        self._thread.start()

    def take(self, chunk: Sequence[str]) -> bool:
        """Hand over a chunk. False where this process is busy and has one waiting already."""
        try:
            self._chunks.put_nowait(chunk)
        except queue.Full:
            return False
        return True

    def finish(self) -> None:
        """Say that no chunk follows."""
        self._chunks.put(_FINISH)

    def collect(self, counts: Counter[str]) -> None:
        """Add to `counts` what this process has sent back so far."""
        if self._failed:
            raise JourneyError("a process that counts words ended early (out of memory?); use fewer processes")
        while not self._replies.empty():
            counts.update(self._replies.get())

    def wait(self) -> None:
        """Wait until everything handed over is counted and sent back."""
        self._thread.join()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        # Wakes the thread, which by now takes messages only to drop them, or has ended and left the queue empty.
        self._chunks.put(_FINISH)
        self._thread.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(OSError):  # what is still in its buffer has no reader any more
                    pipe.close()
        self._process.wait()

    def _converse(self) -> None:
        to_child, from_child = self._process.stdin, self._process.stdout
        assert to_child is not None and from_child is not None
        message: Sequence[str] | str = ()
        try:
            while True:
                message = self._chunks.get()
                to_child.write(json.dumps(message).encode() + b"\n")
                to_child.flush()
                self._replies.put(json.loads(from_child.readline()))
                if message == _FINISH:
                    return
        except (OSError, ValueError):
            self._failed = True
            # The last message may be the very one that could not be written any more: then none follows.
            while message != _FINISH:
                message = self._chunks.get()


def _serve(pattern: str, requests: IO[bytes], replies: IO[bytes]) -> None:
    """The child's loop: a line with a list of texts is counted; the reply holds counts where there are many."""
    counts: Counter[str] = Counter()
    for line in requests:
        message = json.loads(line)
        finished = message == _FINISH
        if not finished:
            count_chunk(message, pattern, counts)
        send = finished or len(counts) > _MAX_WORDS_IN_CHILD
        replies.write(json.dumps(counts if send else {}).encode() + b"\n")
        replies.flush()
        if send:
            counts.clear()


if __name__ == "__main__":
    # Ctrl-C reaches the whole process group; the caller decides, and the end of the pipe ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
