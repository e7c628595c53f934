"""The program that takes text out of HTML pages and PDFs, run as a process of its own (see pages.py).

Parsers written in C meet hostile files here: one that never ends, wants all the memory or crashes takes this process
with it and nothing else. It reads one JSON request a line and answers each with one JSON line. It imports nothing of
this package, so that it starts fast. Scripts, styles and the like are dropped; entities are never fetched.
"""

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

_MEMORY_BYTES = 4 << 30
_MAX_DEPTH = 2000  # libxml2 silently stops at 2048; short of that the page was read whole
_CHUNK = 1 << 16
_LINE, _PARAGRAPH, _CELL = "\n", "\n\n", "\t"
_DROPPED = frozenset(
    ["audio", "button", "canvas", "dialog", "embed", "footer", "head", "iframe", "math", "nav", "noscript", "object"]
)
_DROPPED |= {"script", "select", "style", "svg", "template", "textarea", "video"}
_GAPS = {
    **dict.fromkeys(["address", "article", "aside", "blockquote", "dl", "figure", "form", "header", "hr"], _PARAGRAPH),
    **dict.fromkeys(["h1", "h2", "h3", "h4", "h5", "h6", "main", "ol", "p", "pre", "section", "table"], _PARAGRAPH),
    **dict.fromkeys(["caption", "dd", "div", "dt", "figcaption", "legend", "li", "option", "tr"], _LINE),
    **dict.fromkeys(["td", "th"], _CELL),
    "ul": _PARAGRAPH,
}
_SPACES = re.compile(r"[ \t\r\n\f]+")
_CHARSET = re.compile(rb"""<meta[^>]{0,500}?charset\s*=\s*["']?\s*([a-zA-Z0-9_:.-]{1,40})""", re.IGNORECASE)


class Refused(Exception):  # noqa: N818 - its message is the answer
    """The page is not read; the message says why."""


def main() -> None:
    """Answer requests until standard input ends."""
    _limit_memory()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"text": _KINDS[request["kind"]](Path(request["path"]), request)}
        except Refused as refusal:
            answer = {"problem": str(refusal)}
        except ImportError as error:
            answer = {"problem": f"needs {error.name}: pip install 'llm-journey[data]'"}
        except MemoryError:
            answer = {"problem": f"needs more than {_MEMORY_BYTES >> 30} GiB of memory to read"}
        except Exception as error:
            answer = {"problem": f"cannot be parsed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def html_text(path: Path, request: dict[str, Any]) -> str:
    """The readable text of an HTML page: a line per block, blank lines around paragraphs."""
    etree = importlib.import_module("lxml.etree")
    markup = _decode_html(path.read_bytes())
    parser = etree.HTMLParser(no_network=True, remove_comments=True, remove_pis=True, huge_tree=True)
    for start in range(0, len(markup), _CHUNK):
        parser.feed(markup[start : start + _CHUNK])
    try:
        root = parser.close()
    except etree.XMLSyntaxError:
        root = None
    if root is None:
        raise Refused("holds no HTML elements")
    return _bounded(_gather(etree.iterwalk(root, events=("start", "end"))), request)


def pdf_text(path: Path, request: dict[str, Any]) -> str:
    """The text layer of a PDF, pages separated by blank lines."""
    pdfium = importlib.import_module("pypdfium2")
    try:
        document = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        encrypted = "password" in str(error).lower()
        raise Refused("is encrypted; save it without a password" if encrypted else "is no readable PDF") from None
    try:
        if len(document) > request["pdf_pages"]:
            raise Refused(f"has {len(document)} pages; the limit is {request['pdf_pages']}")
        pages: list[str] = []
        length = 0
        for number in range(len(document)):
            page = document[number]
            text_page = page.get_textpage()
            pages.append(text_page.get_text_bounded().replace("\r\n", "\n").replace("￾", "").strip())
            text_page.close()
            page.close()
            length += len(pages[-1])
            if length > request["page_characters"]:
                break
    finally:
        document.close()
    if not length:
        raise Refused("holds no text layer (scanned pages need OCR first)")
    return _bounded("\n\n".join(page for page in pages if page), request)


_KINDS = {"html": html_text, "pdf": pdf_text}


def _gather(walk: Any) -> str:
    page = _Page()
    depth = 0
    for event, element in walk:
        tag = element.tag if isinstance(element.tag, str) else "script"
        if event == "start":
            depth += 1
            if depth > _MAX_DEPTH:
                raise Refused(f"is nested deeper than {_MAX_DEPTH} elements")
            if tag in _DROPPED:
                walk.skip_subtree()
                continue
            page.preformatted += tag == "pre"
            page.gap(tag)
            page.add(element.text)
        else:
            depth -= 1
            page.preformatted -= tag == "pre"
            if tag != "br":
                page.gap(tag)
            page.add(element.tail)
    return "\n".join(line.rstrip() for line in "".join(page.parts).split("\n")).strip()


class _Page:
    """The text so far, and the widest gap that is due before the next words."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.preformatted = 0
        self._due = ""

    def gap(self, tag: str) -> None:
        gap = _GAPS.get(tag, "")
        if tag == "br":  # the second of two parts paragraphs
            gap = _PARAGRAPH if self._due else _LINE
        self._due = max(self._due, gap, key=("", _CELL, _LINE, _PARAGRAPH).index)

    def add(self, text: str | None) -> None:
        if not text:
            return
        text = text.replace("\r\n", "\n") if self.preformatted else _SPACES.sub(" ", text)
        if self._due:
            text = text.lstrip("\n") if self.preformatted else text.lstrip(" ")
            if not text:
                return
            self.parts.append(self._due)
            self._due = ""
        self.parts.append(text)


def _decode_html(data: bytes) -> str:
    """A byte-order mark decides, then the page's own <meta charset>, then UTF-8, then Windows-1252."""
    marks = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
    for mark, encoding in marks:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    if b"\0" in data:
        raise Refused("looks binary (it holds NUL bytes); only text can be read")
    declared = _CHARSET.search(data[:4096])
    if declared and declared[1].lower() not in (b"utf-8", b"utf8"):
        try:
            return data.decode(declared[1].decode("ascii"), "replace")
        except (LookupError, ValueError):
            pass
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace") if declared else data.decode("cp1252", "replace")


def _bounded(text: str, request: dict[str, Any]) -> str:
    if len(text) > request["page_characters"]:
        raise Refused(f"holds more than {request['page_characters']} characters of text")
    if not text:
        raise Refused("holds no text")
    return text


def _limit_memory() -> None:
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        allowed = _MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, _MEMORY_BYTES)
        resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # a system without such limits; time and size are still bounded
        pass


if __name__ == "__main__":
    main()
