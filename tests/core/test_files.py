"""Durable files: a reader sees the old content or the new, whatever fails in between."""

import errno
import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_journey.core import files
from llm_journey.core.errors import JourneyError

FAULTS = ("write", "fsync", "replace")


def _failing(name: str) -> Callable[..., Any]:
    def fail(*arguments: Any, **named: Any) -> Any:
        raise OSError(errno.ENOSPC, f"No space left on device ({name})")

    return fail


def _inject(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    if fault == "write":
        real = os.fdopen

        class HalfFile:
            def __init__(self, file: Any) -> None:
                self.file = file

            def __enter__(self) -> "HalfFile":
                return self

            def __exit__(self, *error: Any) -> None:
                self.file.close()

            def write(self, data: bytes) -> None:
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                _failing("write")()

        monkeypatch.setattr(os, "fdopen", lambda descriptor, mode: HalfFile(real(descriptor, mode)))
    else:
        monkeypatch.setattr(os, fault, _failing(fault))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_write_leaves_the_old_content_and_no_litter(
    fault: str, exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    if exists:
        files.write_text(path, "old")
    with monkeypatch.context() as patch:
        _inject(patch, fault)
        with pytest.raises(OSError, match=fault):
            files.write_text(path, "new" * 1000)
    assert [item.name for item in tmp_path.iterdir()] == (["run.json"] if exists else [])
    assert not exists or path.read_text() == "old"
    files.write_text(path, "newer")
    assert path.read_text() == "newer"


def test_files_are_readable_by_others_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "value.json"
    files.write_json(path, {"text": "Zoë \u2028", "number": 0.1})
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert files.read_json(path) == {"text": "Zoë \u2028", "number": 0.1}
    assert path.read_text(encoding="utf-8").endswith("}\n")


@pytest.mark.parametrize("value", [math.nan, math.inf, {"deep": [-math.inf]}])
def test_json_holds_no_nan(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "value.json", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, b"", b'{"a": ', b"\xff\xfe\x00"])
def test_damaged_json_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JourneyError, match=r"run\.json: cannot be read .*missing or damaged"):
        files.read_json(path)


def _fill(folder: Path, text: str) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "content.txt").write_text(text)


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "model"
    with files.new_directory(target) as folder:
        _fill(folder, "first")
        assert not target.exists() and folder.parent == target.parent
    assert (target / "inner" / "content.txt").read_text() == "first"
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    with files.new_directory(target) as folder:
        _fill(folder, "second")
        assert (target / "inner" / "content.txt").read_text() == "first"
    assert (target / "inner" / "content.txt").read_text() == "second"
    assert [path.name for path in target.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_directory_left_by_an_error_is_as_it_was(error: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "model"
    with files.new_directory(target) as folder:
        _fill(folder, "first")
    with pytest.raises(error), files.new_directory(target) as folder:
        _fill(folder, "second")
        raise error
    assert (target / "inner" / "content.txt").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("fault", ["fsync", "replace"])
def test_every_call_of_a_directory_fails_once(
    fault: str, exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever flush or rename fails, a reader finds a whole directory: the old one, or already the new one."""
    real = getattr(os, fault)
    for number in range(50):
        target, calls = tmp_path / str(number) / "model", []
        if exists:
            with files.new_directory(target) as folder:
                _fill(folder, "first")

        def once(*arguments: Any, calls: list[int] = calls, number: int = number) -> Any:
            calls.append(1)
            if len(calls) == number + 1:
                _failing(fault)()
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, fault, once)
            try:
                with files.new_directory(target) as folder:
                    _fill(folder, "second")
            except OSError:
                pass
        finished = len(calls) <= number
        content = (target / "inner" / "content.txt").read_text() if target.exists() else None
        assert content in ({"first", "second"} if exists else {None, "second"}), number
        assert content == "second" or not finished
        assert not list(target.parent.glob(".*.tmp"))
        if finished:
            break
    assert number >= (2 if fault == "replace" and exists else 1)


def test_hashes_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "large").write_bytes(b"a" * 3_000_000)
    assert files.sha256_file(tmp_path / "empty").startswith("e3b0c44298fc1c149afbf4c8996fb924")
    assert files.sha256_file(tmp_path / "large").startswith("2a152c894398")
    one, other = {"b": [1, 2.5], "a": "ä"}, json.loads('{"a": "\\u00e4", "b": [1, 2.5]}')
    assert files.sha256_json(one) == files.sha256_json(other) != files.sha256_json({"a": "ä"})
