"""A small catalog item, and honest fakes of everything that could serve it."""

import hashlib
import io
import zipfile
from contextlib import contextmanager

from llm_journey.datasets import hub
from llm_journey.datasets.download import Response
from llm_journey.datasets.pull import Tools
from llm_journey.datasets.sources import CatalogFile, HttpsSource, HubSource, WheelSource

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
