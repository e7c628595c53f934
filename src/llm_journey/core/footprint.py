"""How a process that answers for months keeps its memory: settings of native libraries, before they are first used.

Both libraries read the environment once; what a person has set there stands.
"""

import ctypes
import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# oneDNN makes a kernel for each number of rows of a bf16 product (0.4 ms, 0.7 MB), and keeps 1,024 of them itself and
# 1,024 more in PyTorch's layer above it. A prompt of a new length needs four: hundreds of lengths took hundreds of MB.
_SETTINGS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "LRU_CACHE_CAPACITY": "32"}


# glibc gives each thread a heap of its own, of pieces of 64 MB, which large arrays of ever other sizes leave full of
# holes: half a minute of texts of mixed lengths took 390 MB, 190 with one heap for all.
_M_ARENA_MAX = -8  # mallopt(3)


def bound_caches() -> None:
    """Bound what native libraries keep. To be called before a model is opened."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if "MALLOC_ARENA_MAX" not in os.environ:
        with suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def trim_heap() -> None:
    """Give the system what is free on the heap, its holes included; nothing but glibc needs to be told."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def give_back_free_memory() -> None:
    """`trim_heap` (SmolLM2 once opened: 200 to 300 MB), after freeing what is reachable in circles alone."""
    gc.collect()
    trim_heap()


@contextmanager
def given_back_every(seconds: float) -> Iterator[None]:
    """The same again and again meanwhile, on a thread of its own, some 10 ms each time: arrays of ever other sizes
    leave a heap as large as it was at its worst moment. What is there now is not looked at again (gc.freeze)."""
    gc.freeze()
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            give_back_free_memory()

    thread = threading.Thread(target=run, name="footprint", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        gc.unfreeze()
