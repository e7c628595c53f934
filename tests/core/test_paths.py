"""Where things lie, and that no name leads out of its folder (CVE-2024-37032, incident 3)."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError
from llm_journey.core.paths import cache_dir, inside, local_data_dir, runs_dir

pieces = st.sampled_from(
    ["..", ".", "a", "link-out", "link-in", "loop", "/", "\\", "\x00", "~", " ", "C:", "\ud800", "é"]
)
hostile = st.lists(pieces | st.text(max_size=4), max_size=6).map("/".join) | st.text(max_size=20)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links that stay inside, lead out and run in a circle."""
    base = tmp_path_factory.mktemp("inside")
    folder = base / "root"
    (folder / "a").mkdir(parents=True)
    (base / "secret.txt").write_text("secret")
    (folder / "link-out").symlink_to(base)
    (folder / "link-in").symlink_to(folder / "a")
    (folder / "loop").symlink_to(folder / "loop")
    return folder


@settings(max_examples=300, deadline=None)
@given(name=hostile)
@example(name="../secret.txt")
@example(name="a/../../secret.txt")
@example(name="link-out/secret.txt")
@example(name="a/../link-out/secret.txt")
@example(name="/etc/passwd")
@example(name="//etc/passwd")
@example(name="loop/x")
@example(name="..")
@example(name="")
@example(name=".")
@example(name="a/..")
@example(name="\udcff")
def test_no_name_leads_out(root: Path, name: str) -> None:
    """The oracle is the operating system's own realpath."""
    try:
        found = inside(root, name)
    except BadInputError as error:
        assert "\n" not in str(error) or "\n" in name
        return
    real = os.path.realpath(root / name)
    assert str(found) == real and real.startswith(os.path.realpath(root) + os.sep)


@pytest.mark.parametrize("name", ["x", "a/b.txt", "link-in/new", "a/../b", "...", "-rf", "a\\..\\b"])
def test_honest_names_pass(root: Path, name: str) -> None:
    assert inside(root, name).is_relative_to(root.resolve())


@pytest.mark.parametrize(
    "name", ["../secret.txt", "link-out/secret.txt", "/etc/passwd", "a/..", ".", "", "a\x00b", "\ud800"]
)
def test_hostile_names_are_refused(root: Path, name: str) -> None:
    with pytest.raises(BadInputError):
        inside(root, name)


def test_a_home_of_its_own_holds_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNEY_HOME", str(tmp_path))
    monkeypatch.delenv("JOURNEY_DATA_DIR", raising=False)
    assert (cache_dir(), runs_dir(), local_data_dir()) == (tmp_path / "cache", tmp_path / "runs", None)
    monkeypatch.setenv("JOURNEY_DATA_DIR", str(tmp_path / "sets"))
    assert local_data_dir() == tmp_path / "sets"


def test_without_one_the_folders_of_the_platform_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNEY_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    if os.name == "posix" and os.uname().sysname == "Linux":
        assert cache_dir() == tmp_path / "cache" / "llm-journey"
        assert runs_dir() == tmp_path / "data" / "llm-journey" / "runs"
    assert not list(tmp_path.iterdir()), "asking where makes nothing"
