"""What can be removed, and that nothing else is."""

import os
import time
from pathlib import Path

import pytest

from command_line import files_under
from llm_journey.app.clean import find_removable, remove, size_of
from llm_journey.app.runs import working_on
from llm_journey.core.errors import BadInputError, JourneyError

OLD = time.time() - 7200


def put(path: Path, size: int = 10, changed: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    if changed is not None:
        for item in (path, path.parent):
            os.utime(item, (changed, changed))
    return path


@pytest.fixture
def filled(empty_home: Path) -> Path:
    put(empty_home / "cache" / "prepared" / "abc" / "train.bin", 1000)
    put(empty_home / "cache" / "baselines" / "k.json")
    put(empty_home / "cache" / "catalog" / "wiki-summaries" / "wiki.jsonl", 5000)
    put(empty_home / "cache" / "prepared" / ".abc.x1y2.tmp" / "part.bin", 70, OLD)
    put(empty_home / "cache" / "prepared" / ".new.x1y2.tmp" / "part.bin", 70)
    put(empty_home / "cache" / "mine.txt")
    for run, ended in (("done", True), ("half", False)):
        folder = empty_home / "runs" / run
        put(folder / "run.json")
        for step in (10, 20, 30):
            put(folder / "checkpoints" / f"step-{step:08d}" / "model.safetensors", 100)
        put(folder / "checkpoints" / "abandoned-step-00000040" / "model.safetensors", 100)
        if ended:
            put(folder / "model" / "config.json")
    put(empty_home / "runs" / "not-a-run" / ".x.y.tmp" / "file", 10, OLD)
    return empty_home


def names(home: Path, *kinds: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in find_removable(kinds):
        found.setdefault(item.kind, []).append(os.path.relpath(item.path, home))
    return found


def test_each_kind_is_found(filled: Path) -> None:
    assert names(filled) == {
        "leftovers": ["cache/prepared/.abc.x1y2.tmp"],
        "prepared": ["cache/baselines/k.json", "cache/prepared/abc"],
        "pulled": ["cache/catalog/wiki-summaries"],
        "checkpoints": [
            "runs/done/checkpoints/abandoned-step-00000040",
            "runs/done/checkpoints/step-00000010",
            "runs/done/checkpoints/step-00000020",
            "runs/half/checkpoints/abandoned-step-00000040",
        ],
    }
    sizes = {item.kind: item.size for item in find_removable()}
    assert (sizes["leftovers"], sizes["pulled"]) == (70, 5000)
    assert list(names(filled, "pulled")) == ["pulled"]
    with pytest.raises(BadInputError, match="known: checkpoints, compiled, leftovers, prepared, pulled"):
        find_removable(["runs"])


def test_only_what_was_listed_is_removed(filled: Path) -> None:
    items = find_removable()
    kept = set(files_under(filled)) - {
        os.path.relpath(path, filled) for item in items for path in [item.path, *item.path.rglob("*")]
    }
    assert remove(items) == sum(item.size for item in items)
    assert set(files_under(filled)) == kept
    assert find_removable() == []


def test_a_run_that_is_worked_on_is_left_alone(filled: Path) -> None:
    with working_on(filled / "runs" / "done"):
        assert all("runs/done" not in str(item.path) for item in find_removable(["checkpoints"]))


def test_links_are_never_followed_out(filled: Path, tmp_path: Path) -> None:
    precious = put(tmp_path / "precious" / "work.txt").parent
    catalog = filled / "cache" / "catalog"
    (catalog / "linked").symlink_to(precious)
    remove(find_removable(["pulled"]))
    assert not (catalog / "linked").is_symlink()
    assert (precious / "work.txt").is_file()
    catalog.rmdir()
    catalog.symlink_to(precious)
    assert find_removable(["pulled"]) == []
    assert (precious / "work.txt").is_file()


def test_what_cannot_be_removed_is_named(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = find_removable(["prepared"])

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("llm_journey.app.clean.shutil.rmtree", refuse)
    with pytest.raises(JourneyError, match=r"could not remove .*/prepared/abc \(Permission denied\)"):
        remove(items)


def test_size_counts_no_links(tmp_path: Path) -> None:
    put(tmp_path / "folder" / "a", 30)
    (tmp_path / "folder" / "loop").symlink_to(tmp_path / "folder")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    assert size_of(tmp_path / "folder") == 30
    assert size_of(tmp_path / "link") == size_of(tmp_path / "nothing") == 0
