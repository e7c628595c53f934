"""Resumable downloads over https: fake transports that break at will, and one real server on the loopback."""

import hashlib
import http.server
import io
import threading
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.download import Response, SourceError, download, open_address
from llm_journey.datasets.sources import CatalogFile

CONTENT = bytes(range(256)) * 40
FILE = CatalogFile("input.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
ADDRESS = "https://example.org/input.bin"


class FakeServer:
    """Serves `content`; connection number i breaks after `breaks[i]` bytes. Notes the offsets it was asked for."""

    def __init__(self, content=CONTENT, breaks=(), honours_ranges=True):
        self.content, self.breaks, self.honours_ranges = content, list(breaks), honours_ranges
        self.offsets = []

    @contextmanager
    def __call__(self, address, offset):
        assert address == ADDRESS
        self.offsets.append(offset)
        start = offset if self.honours_ranges else 0
        body = self.content[start:]
        yield Response(start, io.BytesIO(body[: self.breaks.pop(0)] if self.breaks else body))


@settings(max_examples=60, deadline=None)
@given(breaks=st.lists(st.integers(0, len(CONTENT)), max_size=8), honours_ranges=st.booleans())
def test_a_download_that_breaks_anywhere_ends_in_the_right_bytes(tmp_path_factory, breaks, honours_ranges):
    folder = tmp_path_factory.mktemp("download")
    server = FakeServer(breaks=breaks, honours_ranges=honours_ranges)
    for _ in range(len(breaks) + 1):
        try:
            path = download(ADDRESS, FILE, folder, transport=server)
        except SourceError as error:
            assert "the connection ended after" in str(error)
        else:
            break
    assert path.read_bytes() == CONTENT
    assert [item.name for item in folder.iterdir()] == ["input.bin.partial"]


def test_only_the_rest_is_asked_for_and_progress_counts_from_there(tmp_path):
    with pytest.raises(SourceError, match=r"ended after 300 of 10240 bytes"):
        download(ADDRESS, FILE, tmp_path, transport=FakeServer(breaks=[100, 100, 100]))
    server, seen = FakeServer(), []
    download(ADDRESS, FILE, tmp_path, transport=server, on_bytes=seen.append)
    assert server.offsets == [300] and seen[-1] == FILE.size
    assert download(ADDRESS, FILE, tmp_path, transport=server).read_bytes() == CONTENT
    assert server.offsets == [300], "a whole file is not fetched again"


def test_a_wrong_partial_file_is_thrown_away_and_fetched_anew(tmp_path):
    (tmp_path / "input.bin.partial").write_bytes(b"x" * 50)
    server = FakeServer()
    assert download(ADDRESS, FILE, tmp_path, transport=server).read_bytes() == CONTENT
    assert server.offsets == [50, 0]
    (tmp_path / "input.bin.partial").write_bytes(b"x" * (len(CONTENT) + 1))
    assert download(ADDRESS, FILE, tmp_path, transport=FakeServer()).read_bytes() == CONTENT


def test_other_bytes_than_pinned_are_refused_and_not_kept(tmp_path):
    with pytest.raises(SourceError, match=r"sha256 is \w{16}..., expected \w{16}"):
        download(ADDRESS, FILE, tmp_path, transport=FakeServer(content=CONTENT[::-1]))
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_sends_more_than_expected_is_cut_off(tmp_path):
    with pytest.raises(SourceError, match="more than the expected 10240 bytes"):
        download(ADDRESS, FILE, tmp_path, transport=FakeServer(content=CONTENT * 1000))
    assert (tmp_path / "input.bin.partial").stat().st_size <= FILE.size


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x", "a\x00b", "../cache-2/x"])
def test_incident_3_hostile_names_are_refused_before_anything_is_fetched(tmp_path, name):
    server = FakeServer()
    (tmp_path / "cache").mkdir()
    with pytest.raises(BadInputError):
        download(ADDRESS, CatalogFile(name, 1, "0"), tmp_path / "cache", transport=server)
    assert server.offsets == [] and [item.name for item in tmp_path.rglob("*")] == ["cache"]


def test_incident_3_a_link_in_place_of_the_partial_file_is_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "input.bin.partial").symlink_to(victim)
    with pytest.raises(BadInputError, match="leads outside"):
        download(ADDRESS, FILE, tmp_path / "cache", transport=FakeServer())
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("address", ["http://example.org/x", "file:///etc/passwd", "ftp://example.org/x", "x"])
def test_only_https_is_opened(address):
    with pytest.raises(SourceError, match="only https"), open_address(address, 0):
        pass


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; /short breaks off after 1,000 bytes; /away redirects to plain http elsewhere."""

    def do_GET(self):
        self.server.ranges.append(self.headers.get("Range"))
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://example.org/input.bin")
            self.end_headers()
            return
        offset = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        wrong = self.path == "/wrong-range"
        self.send_response(206 if offset or wrong else 200)
        self.send_header("Content-Range", f"bytes {offset + wrong}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - offset))
        self.end_headers()
        body = CONTENT[offset:]
        self.wfile.write(body[:1000] if self.path == "/short" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        running.ranges = []
        running.address = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.enable_socket
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_real_server_whole_broken_off_and_resumed(tmp_path, server):
    assert download(f"{server.address}/whole", FILE, tmp_path / "a").read_bytes() == CONTENT
    with pytest.raises(SourceError, match=r"ended after 3000 of 10240"):
        download(f"{server.address}/short", FILE, tmp_path / "b")
    server.ranges.clear()
    assert download(f"{server.address}/whole", FILE, tmp_path / "b").read_bytes() == CONTENT
    assert server.ranges == ["bytes=3000-"]


@pytest.mark.enable_socket
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_real_server_that_errs_or_redirects_out_of_https(tmp_path, server):
    with pytest.raises(SourceError, match="answered 404"):
        download(f"{server.address}/missing", FILE, tmp_path)
    with pytest.raises(SourceError, match="only https"):
        download(f"{server.address}/away", FILE, tmp_path)
    (tmp_path / "input.bin.partial").write_bytes(CONTENT[:10])
    with pytest.raises(SourceError, match="not asked for"):
        download(f"{server.address}/wrong-range", FILE, tmp_path)
    server.shutdown()
    server.server_close()
    with pytest.raises(SourceError, match="cannot be reached"):
        download(f"{server.address}/whole", FILE, tmp_path)
