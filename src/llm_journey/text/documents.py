"""What reading yields: documents, and the problems met on the way. The bounds that every reader keeps to."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text of a corpus.

    `identifier` is unique in the corpus and the same on every machine (a path inside the source, with `#` and a
    number for a row or a piece). `source` says where it came from, for a person: `path`, or `path:line` for a row;
    all pieces of one long file have the same source.
    """

    identifier: str
    text: str
    source: str


@dataclass(frozen=True)
class Problem:
    """A file, or part of one, that was not read as it stands; `skipped` is False where its text was used anyway."""

    path: str
    reason: str
    skipped: bool = True


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what one file may cost. They are far above real text and far below what a hostile file asks for."""

    whole_file_bytes: int = 4 << 20  # a plain text file up to this size is one document
    piece_characters: int = 1 << 20  # a longer one is cut into pieces of about this length
    line_bytes: int = 16 << 20  # a row of JSON Lines
    expansion: int = 200  # unpacked bytes per packed byte, once `expansion_from` bytes are out
    expansion_from: int = 64 << 20
    unpacked_bytes: int = 64 << 30
    page_file_bytes: int = 256 << 20  # an HTML page or a PDF
    page_characters: int = 32 << 20  # text taken from one of them
    page_seconds: float = 60.0
    pdf_pages: int = 10_000


class Unreadable(Exception):  # noqa: N818 - names a state of the file, never shown as an exception
    """Raised by a reader whose file cannot be read on; the message is the reason of the Problem."""
