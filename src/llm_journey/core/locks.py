"""One process at a time makes what others want too. A lock falls away with the process that held it, however it ends.

Lock files lie in the cache's own folder, never beside what they guard: that may be a folder of the person's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_journey.core.files import sha256_json
from llm_journey.core.paths import cache_dir


@contextmanager
def one_at_a_time(target: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Inside, no other process makes `target` (a path that need not exist). on_wait: called before waiting for one.

    Whoever waited should look whether the work is done now. Raises OSError where the lock cannot be written.
    """
    import filelock

    path = cache_dir() / ".locks" / f"{sha256_json(str(target.resolve()))[:32]}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if on_wait is not None:
            on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
