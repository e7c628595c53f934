"""Server-sent events (WHATWG HTML, section 9.2.6): bytes in, the data of each event out. Other fields are left out."""

import codecs
from collections.abc import Iterable, Iterator

from llm_journey.core.errors import JourneyError

_MAX_EVENT_CHARACTERS = 16 << 20


def read_events(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of each event, however the bytes were cut. An event that is not ended by an empty line is dropped.

    Raises JourneyError for an event longer than 16 Mi characters.
    """
    data: list[str] = []
    for line in _lines(chunks):
        if not line:
            if data:
                yield "\n".join(data)
            data = []
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
            if sum(map(len, data)) > _MAX_EVENT_CHARACTERS:
                raise JourneyError("an event of the stream is too long")


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines without their ends (CR LF, LF or CR)."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    for chunk in chunks:
        text = rest + decoder.decode(chunk)
        # A CR at the very end may be the first half of CR LF.
        kept = text[:-1] if text.endswith("\r") else text
        *lines, rest = kept.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        rest += text[len(kept) :]
        if len(rest) > _MAX_EVENT_CHARACTERS:
            raise JourneyError("an event of the stream is too long")
        yield from lines
    if rest.endswith("\r"):
        yield rest[:-1]
