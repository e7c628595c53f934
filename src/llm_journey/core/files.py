"""Durable files: written under a temporary name, flushed to disk, then renamed into place.

A reader sees either the old content or the new content, never a half. `os.fsync`, `os.replace` and writing are
called through this module only, so that tests can make each of them fail.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_journey.core.errors import JourneyError

_CHUNK = 1 << 20


def fsync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Flush a directory's entries, so that a rename inside it survives a power cut. No-op where unsupported."""
    if os.name != "posix":
        return
    fsync_file(path)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` atomically (temporary name, fsync, rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # noqa: PTH101 - mkstemp made it private to the user
        os.replace(temporary, path)  # noqa: PTH105 - the one call that tests intercept
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by UTF-8 `text` atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON, atomically. NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in a file that this package wrote. Raises JourneyError naming a file that is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JourneyError(f"{path}: cannot be read ({error}); it is missing or damaged") from None


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Fill a directory under a temporary name; on leaving without error it is flushed and renamed to `target`.

    An existing `target` is replaced only once the new one is whole. On an error nothing of the new one is left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        os.chmod(temporary, 0o755)  # noqa: PTH101, S103
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                fsync_file(path)
            else:
                fsync_directory(path)
        fsync_directory(temporary)
        _put_in_place(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_directory(target.parent)


def _put_in_place(new: Path, target: Path) -> None:
    """Rename `new` to `target`. What stood there before is put back if that fails, and removed after it worked."""
    if not target.exists():
        os.replace(new, target)  # noqa: PTH105
        return
    retired = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".old"))
    try:
        os.replace(target, retired / "old")  # noqa: PTH105
        try:
            os.replace(new, target)  # noqa: PTH105
        except BaseException:
            os.replace(retired / "old", target)  # noqa: PTH105
            raise
    finally:
        if target.exists():
            shutil.rmtree(retired, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits; reads in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
