"""HTML and PDF: the words come out, hostile files are given up within their limits, the next file is read."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_journey.text import pages
from llm_journey.text.documents import Limits, Unreadable
from llm_journey.text.pages import PageReader

PAGE = """<!DOCTYPE html>
<html><head><title>Title</title><style>p { color: red }</style><script>alert("x")</script></head>
<body><nav>Home | About</nav>
<h1>A  lighthouse</h1>
<p>It guides <b>ships</b> at sea;<br>keepers
lived in it.</p><p>Caf&eacute; &amp; more</p>
<ul><li>one</li><li>two <a href="/x">linked</a></li></ul>
<table><tr><th>Name</th><th>Height</th></tr><tr><td>Pharos</td><td>100&nbsp;m</td></tr></table>
<pre>if x:
    return 1</pre>
<!-- a comment --><noscript>none</noscript><footer>imprint</footer>
</body></html>"""
PAGE_TEXT = """A lighthouse

It guides ships at sea;
keepers lived in it.

Café & more

one
two linked

Name\tHeight
Pharos\t100\xa0m

if x:
    return 1"""


def make_pdf(*page_texts: str, trailer: str = "") -> bytes:
    """A PDF with one line of Helvetica a page, written by hand."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(page_texts)))
    bodies = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(page_texts)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(page_texts):
        content = f"BT /F1 24 Tf 72 720 Td ({text}) Tj ET"
        bodies.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        bodies.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    data = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(bodies, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(bodies) + 1
    end = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R {trailer} >>\n"
    return data + f"{end}startxref\n{len(data)}\n%%EOF\n".encode()


@pytest.fixture(scope="module")
def reader() -> Iterator[PageReader]:
    with PageReader(Limits()) as reader:
        yield reader


def read_html(reader: PageReader, folder: Path, markup: str | bytes) -> str:
    path = folder / "page.html"
    path.write_bytes(markup.encode("utf-8") if isinstance(markup, str) else markup)
    return reader.read(path, "html")


def test_the_words_of_a_page(reader: PageReader, tmp_path: Path) -> None:
    assert read_html(reader, tmp_path, PAGE) == PAGE_TEXT


@pytest.mark.parametrize(
    "markup",
    [
        b"<meta charset='iso-8859-1'><p>caf\xe9</p>",
        b"<meta charset='utf-8'><p>caf\xc3\xa9</p>",
        b"<p>caf\xe9</p>",
        b"<p>caf\xc3\xa9</p>",
        b"\xef\xbb\xbf<p>caf\xc3\xa9</p>",
        b"\xff\xfe" + "<p>café</p>".encode("utf-16-le"),
        b"<meta charset='no-such-thing'><p>caf\xc3\xa9</p>",
        b'<?xml version="1.0" encoding="utf-8"?><html><body><p>caf\xc3\xa9</p></body></html>',
    ],
)
def test_encodings_of_pages(reader: PageReader, tmp_path: Path, markup: bytes) -> None:
    assert read_html(reader, tmp_path, markup) == "café"


def test_entities_are_never_fetched_or_expanded(reader: PageReader, tmp_path: Path) -> None:
    """CVE-2025-66516 (XXE): an entity may name a file; a chain of them may grow without end."""
    secret = tmp_path / "secret"
    secret.write_text("SECRET", encoding="utf-8")
    chain = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(1, 9))
    markup = f'<!DOCTYPE html [<!ENTITY x SYSTEM "file://{secret}"><!ENTITY e1 "lol">{chain}]><p>a &x; &e9; b</p>'
    text = read_html(reader, tmp_path, markup)
    assert "SECRET" not in text
    assert "lollol" not in text
    assert len(text) < len(markup)


@pytest.mark.parametrize(
    ("markup", "reason"),
    [
        (b"", "holds no HTML elements"),
        (b"<p>\0\0</p>", "looks binary"),
        (b"<script>only()</script>", "holds no text"),
        (b"<div>" * 50_000 + b"deep", "nested deeper than 2000 elements"),
    ],
)
def test_pages_that_are_refused(reader: PageReader, tmp_path: Path, markup: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        read_html(reader, tmp_path, markup)
    assert read_html(reader, tmp_path, "<p>the next one</p>") == "the next one"


def test_a_page_that_takes_too_long_is_given_up_and_the_next_is_read(tmp_path: Path) -> None:
    """Half a million attributes in one tag cost libxml2 minutes (quadratic)."""
    with PageReader(Limits(page_seconds=2)) as reader:
        attributes = " ".join(f"a{number}=1" for number in range(500_000))
        started = time.monotonic()
        with pytest.raises(Unreadable, match="took longer than 2 s"):
            read_html(reader, tmp_path, f"<div {attributes}>x</div>")
        assert time.monotonic() - started < 10
        assert read_html(reader, tmp_path, "<p>the next one</p>") == "the next one"


def test_a_crash_of_the_parser_is_one_files_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashing = tmp_path / "worker.py"
    crashing.write_text("import os, sys; sys.stdin.readline(); os.abort()", encoding="utf-8")
    with PageReader(Limits()) as reader:
        with monkeypatch.context() as patch:
            patch.setattr(pages, "_WORKER", crashing)
            with pytest.raises(Unreadable, match="made the parser crash"):
                read_html(reader, tmp_path, "<p>x</p>")
        assert read_html(reader, tmp_path, "<p>the next one</p>") == "the next one"


def test_sizes_are_bounded(tmp_path: Path) -> None:
    with PageReader(Limits(page_file_bytes=1 << 20, page_characters=1000)) as reader:
        with pytest.raises(Unreadable, match="the limit for a page is 1 MiB"):
            read_html(reader, tmp_path, "<p>" + "x" * (2 << 20))
        with pytest.raises(Unreadable, match="more than 1000 characters"):
            read_html(reader, tmp_path, "<p>" + "x" * 2000)


def test_the_words_of_a_pdf(reader: PageReader, tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(make_pdf("Lighthouses guide ships.", "", "Keepers lived in them."))
    assert reader.read(path, "pdf") == "Lighthouses guide ships.\n\nKeepers lived in them."


def test_pdfs_that_are_refused(reader: PageReader, tmp_path: Path) -> None:
    encryption = f"/ID [<{'00' * 16}> <{'00' * 16}>] /Encrypt << /Filter /Standard /V 1 /R 2 /P -4 "
    encryption += f"/O <{'11' * 32}> /U <{'22' * 32}> >>"
    cases = {
        "no readable PDF": b"%PDF-1.4 cut",
        "is encrypted; save it without a password": make_pdf("secret", trailer=encryption),
        "scanned pages need OCR": make_pdf("", ""),
        "has 10001 pages; the limit is 10000": make_pdf(*[""] * 10_001),
    }
    for reason, data in cases.items():
        path = tmp_path / "a.pdf"
        path.write_bytes(data)
        with pytest.raises(Unreadable, match=reason):
            reader.read(path, "pdf")
