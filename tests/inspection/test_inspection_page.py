"""The page: nothing in a text runs or breaks out, nothing is fetched, and what it shows are the numbers."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from readings import reading

from llm_journey.inspection.maps import pooled
from llm_journey.inspection.page import framed, page
from llm_journey.inspection.reading import Reading

# A shade is one of 255 along the square root of a weight: half a step, at weight 1.
SHADE_ERROR = 1 / 254 + 1e-6


class Elements(HTMLParser):
    """Every element with its attributes, and the text inside scripts and styles."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._inside = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.raw:
            self.raw[self._inside].append(data)


@pytest.fixture(scope="module")
def shown() -> Reading:
    return reading()


def data_of(document: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(Elements(document).raw["script"][0])
    return found


def test_nothing_in_a_text_becomes_markup(shown: Reading) -> None:
    elements = Elements(page(shown)).elements
    assert [tag for tag, _ in elements].count("script") == 2
    assert "b" not in {tag for tag, _ in elements}
    assert all(not name.startswith("on") and name != "style" for _, attributes in elements for name in attributes)
    pictures = [attributes["src"] for tag, attributes in elements if tag == "img"]
    assert pictures and all(str(source).startswith("data:image/png;base64,") for source in pictures)
    assert not any("http" in str(value) for _, attributes in elements for name, value in attributes.items()
                   if name in {"src", "href", "action"})  # fmt: skip


def test_the_policy_names_the_one_script_and_the_one_style(shown: Reading) -> None:
    parsed = Elements(page(shown))
    policy = next(str(a["content"]) for tag, a in parsed.elements if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for kind, text in (("style", "".join(parsed.raw["style"])), ("script", parsed.raw["script"][-1])):
        digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_the_pages_maps_are_the_weights(shown: Reading) -> None:
    data = data_of(page(shown))
    assert data["cell"] == 1 and data["heads"] == ["head 0", "head 1", "head 2", "head 3", "mean"]
    assert data["layers"] == ["0", "1", "2"] and data["spans"] == 3 * [[0, 12, 0, 12]]
    for row, layer in enumerate(shown.inspection.maps):
        maps = shown.inspection.maps[layer]
        for head, expected in enumerate([*maps, maps.mean(0)]):
            packed = base64.b64decode(data["maps"][row][head])  # type: ignore[index]
            levels = np.frombuffer(zlib.decompress(packed), dtype=np.uint8).reshape(expected.shape)
            np.testing.assert_allclose((levels / data["levels"]) ** 2, expected, atol=SHADE_ERROR)  # type: ignore[operator]


def test_the_pages_figures_are_the_readings(shown: Reading) -> None:
    data = data_of(page(shown))
    assert data["tokens"] == list(shown.tokens)
    facts = shown.token_facts()
    assert [item["p"] for item in data["facts"]] == [fact.probability for fact in facts]  # type: ignore[attr-defined]
    lens = data["lens"]
    for row, layer in enumerate(shown.inspection.lens):
        words = [lens["words"][index] for index in lens["top"][row]]  # type: ignore[index]
        assert words == [shown.word(int(token)) for token in layer.kept_ids[:, 0]]


def test_a_large_page_is_pooled_and_says_so(shown: Reading) -> None:
    document = page(shown, max_cells=15 * 6 * 6)
    data = data_of(document)
    assert data["cell"] == 2 and "2 × 2 positions" in document
    packed = base64.b64decode(data["maps"][1][2])  # type: ignore[index]
    levels = np.frombuffer(zlib.decompress(packed), dtype=np.uint8).reshape(6, 6)
    np.testing.assert_allclose((levels / 254) ** 2, pooled(shown.attention(1, 2), 2), atol=SHADE_ERROR)


def test_in_a_notebook_it_stands_in_a_frame_without_rights(shown: Reading) -> None:
    frame = framed(shown)
    assert frame == shown._repr_html_()
    ((tag, attributes),) = Elements(frame).elements
    assert (tag, attributes["sandbox"]) == ("iframe", "allow-scripts")
    assert html.unescape(frame[frame.index('srcdoc="') + 8 : frame.index('" width')]) == page(shown)


@pytest.mark.full
def test_the_script_runs_and_reads_the_weights(shown: Reading, tmp_path: Path) -> None:
    """In a real browser: the map's figures, the lens's rows, and no alert from the text."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser on this machine")
    path = shown.write_html(tmp_path / "page.html")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom"]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    layer, head = shown.inspection.sharpest_head()
    figures = shown.inspection.heads
    expected = f"Layer {layer}, head {head}: entropy {figures.entropy[layer, head]:.2f} bits"
    assert expected in done.stdout
    lens = re.search(r'<table id="lens">(.*?)</table>', done.stdout, re.DOTALL)
    assert lens is not None and lens.group(1).count("<tr>") == len(shown.inspection.lens) + 2
