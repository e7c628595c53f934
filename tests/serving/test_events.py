"""The quick form of a stream's events is the plain one, byte for byte; threads that fill mailboxes lose nothing."""

import asyncio
import threading

from hypothesis import given
from hypothesis import strategies as st

from llm_journey.serving.answers import _Mailbox
from llm_journey.serving.events import as_event, text_frame
from llm_journey.serving.responses import (
    ChatChoiceDelta,
    ChatEvent,
    CompletionAnswer,
    CompletionChoice,
    MessageDelta,
)

TEXTS = st.text(st.characters(exclude_categories=("Cs",)))  # what UTF-8 can hold


@given(TEXTS, TEXTS, st.integers(0, 7))
def test_a_frame_with_a_text_is_the_event(text: str, model: str, index: int) -> None:
    def chat(said: str) -> ChatEvent:
        choice = ChatChoiceDelta(index=index, delta=MessageDelta(content=said))
        return ChatEvent(id="chatcmpl-1", created=1, model=model, choices=[choice])

    def completion(said: str) -> CompletionAnswer:
        choice = CompletionChoice(index=index, text=said, finish_reason=None)
        return CompletionAnswer(id="cmpl-1", created=1, model=model, choices=[choice])

    assert text_frame(chat)(text) == as_event(chat(text))
    assert text_frame(completion)(text) == as_event(completion(text))


def test_every_control_character_and_plane() -> None:
    def chat(said: str) -> ChatEvent:
        choice = ChatChoiceDelta(index=0, delta=MessageDelta(content=said))
        return ChatEvent(id="chatcmpl-1", created=1, model="m", choices=[choice])

    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000), 0x1F389, 0x10FFFF]))
    assert text_frame(chat)(text) == as_event(chat(text))


def test_nothing_put_by_any_thread_is_lost() -> None:
    """Four threads fill twelve mailboxes while their readers empty them: each gets all of its own, in order."""
    count = 3000

    async def read_all() -> list[list[int]]:
        boxes = [_Mailbox() for _ in range(12)]

        def fill(part: list[_Mailbox]) -> None:
            for number in range(count):
                for box in part:
                    box.put((number, "stop"))

        threads = [threading.Thread(target=fill, args=(boxes[first::4],)) for first in range(4)]
        for thread in threads:
            thread.start()

        async def read(box: _Mailbox) -> list[int]:
            return [(await box.get())[0] for _ in range(count)]

        async with asyncio.timeout(60):
            return await asyncio.gather(*(read(box) for box in boxes))

    assert asyncio.run(read_all()) == [list(range(count))] * 12
