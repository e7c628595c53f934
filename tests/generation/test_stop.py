"""Text as it comes: stop texts and characters over token borders, against the plain definition on the whole text."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_journey.generation.stop import TextOut

alphabet = st.text(st.sampled_from("ab\n é🎉\ufffd"), max_size=14)
stops = st.lists(st.text(st.sampled_from("ab\n é🎉\ufffd"), min_size=1, max_size=4), max_size=3)
some_bytes = alphabet.map(str.encode) | st.lists(st.sampled_from([b"a", b"b", b"\xf0", b"\x9f", b"\xc3", b"\xa9"])).map(
    b"".join
)


def plain(data: bytes, stops: list[str]) -> tuple[str, bool]:
    """The definition: in the whole text, what stands before the stop text that ends first."""
    text = data.decode("utf-8", "replace")
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return (text[: min(ends)[1]], True) if ends else (text, False)


@settings(deadline=None, max_examples=500)
@given(some_bytes, stops, st.data())
@example(b"abab", ["bab", "ba"], None)
def test_streamed_is_the_plain_definition_however_the_bytes_are_cut(
    data: bytes, stops: list[str], choices: st.DataObject | None
) -> None:
    out = TextOut(stops)
    pieces, place = [], 0
    while place < len(data):
        size = 1 if choices is None else choices.draw(st.integers(1, 6))
        pieces.append(out.feed(data[place : place + size]))
        place += size
        # Nothing is given out that the whole text does not begin with, even if all ended here.
        assert plain(data, stops)[0].startswith("".join(pieces))
    pieces.append(out.finish())
    assert ("".join(pieces), out.stopped) == plain(data, stops)


@given(some_bytes)
def test_without_stops_no_whole_character_is_held_back(data: bytes) -> None:
    out = TextOut()
    given_out = "".join(out.feed(data[place : place + 1]) for place in range(len(data)))
    assert (data.decode("utf-8", "replace")).startswith(given_out)
    assert given_out + out.finish() == data.decode("utf-8", "replace")


def test_only_what_may_begin_a_stop_text_is_held_back() -> None:
    out = TextOut(["END.", "\n\n"])
    assert [out.feed(data) for data in (b"The E", b"N", b"D of", b"\n", b"it EN", b"D", b". more", b" x")] == [
        *("The ", "", "END of", "", "\nit ", "", "", "")
    ]
    assert out.stopped and out.finish() == ""


@pytest.mark.parametrize(("data", "text"), [(b"caf\xc3", "caf\ufffd"), (b"caf\xc3\xa9 E", "café E")])
def test_what_was_held_comes_at_the_end(data: bytes, text: str) -> None:
    out = TextOut(["END"])
    assert out.feed(data) + out.finish() == text
