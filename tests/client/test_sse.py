"""Server-sent events, however their bytes are cut."""

import pytest

from llm_journey.client import sse
from llm_journey.client.sse import read_events
from llm_journey.core.errors import JourneyError

STREAM = (
    ': a comment\ndata: {"a": "é 🎉"}\n\ndata:two\r\ndata: lines\r\n\r\nevent: x\rdata: cr\r\rid: 7\n\n'
    "data:  a space stays\n\ndata: [DONE]\n\ndata: never ended\n"
).encode()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_events_of_any_cut(size: int) -> None:
    chunks = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert list(read_events(chunks)) == ['{"a": "é 🎉"}', "two\nlines", "cr", " a space stays", "[DONE]"]


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_MAX_EVENT_CHARACTERS", 1000)
    for part in (b"data: x", b"x" * 100, b"data: xxxxxxxx\n"):
        with pytest.raises(JourneyError, match="too long"):
            list(read_events(part for _ in range(10_000)))
