"""Passages are stretches of their document, cover it, fit their size, and end where a reader would stop."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.core.config import validate
from llm_journey.core.errors import BadInputError
from llm_journey.rag.chunk import CHUNKERS, ChunkConfig, chunks

TEXT = st.lists(st.sampled_from([*"ab.!? \n#", "\n\n", "é", "\n# h\n"]), max_size=300).map("".join)


@pytest.mark.parametrize("chunker", CHUNKERS)
@settings(max_examples=80, deadline=None)
@given(text=TEXT, size=st.integers(20, 90), overlap=st.integers(0, 10))
def test_passages_are_stretches_that_cover_the_text(chunker: str, text: str, size: int, overlap: int) -> None:
    config = ChunkConfig(chunker=chunker, size=size, overlap=overlap)  # type: ignore[arg-type]
    found = chunks(text, config)
    covered = set()
    for chunk in found:
        assert text[chunk.start : chunk.stop] == chunk.text == chunk.text.strip() != ""
        assert len(chunk.text) <= size
        covered |= set(range(chunk.start, chunk.stop))
    assert all(text[index].isspace() for index in range(len(text)) if index not in covered)
    assert [chunk.start for chunk in found] == sorted(chunk.start for chunk in found)
    for one, other in pairwise(found):
        assert one.stop - other.start <= max(overlap, 0)
        assert other.stop > one.stop


def test_sentences_stay_whole() -> None:
    text = "One bridge stood. Two rivers met there! Was it old? Nobody knew."
    found = chunks(text, ChunkConfig(chunker="sentence", size=40, overlap=0))
    assert [chunk.text for chunk in found] == ["One bridge stood. Two rivers met there!", "Was it old? Nobody knew."]
    shared = chunks(text, ChunkConfig(chunker="sentence", size=44, overlap=22))
    assert shared[1].text.startswith("Two rivers met there!")


def test_paragraphs_before_sentences() -> None:
    text = "First paragraph. With two.\n\nSecond paragraph, a longer one. It goes on and on."
    found = chunks(text, ChunkConfig(size=60, overlap=0))
    assert [chunk.text for chunk in found] == [
        "First paragraph. With two.",
        "Second paragraph, a longer one. It goes on and on.",
    ]


def test_sections_bear_their_headings() -> None:
    text = "intro\n# One\ntext\n## Sub\n```\n# no heading\n```\nmore\n# Two\nend"
    found = chunks(text, ChunkConfig(chunker="markdown", size=200, overlap=0))
    assert [(chunk.heading, chunk.text.splitlines()[0]) for chunk in found] == [
        ("", "intro"),
        ("One", "# One"),
        ("One > Sub", "## Sub"),
        ("Two", "# Two"),
    ]
    assert "# no heading" in found[2].text


def test_a_text_without_any_boundary() -> None:
    found = chunks("x" * 100, ChunkConfig(size=30, overlap=0))
    assert [len(chunk.text) for chunk in found] == [30, 30, 30, 10]
    assert chunks("", ChunkConfig()) == [] == chunks(" \n ", ChunkConfig())


def test_wrong_settings() -> None:
    for choices in ({"size": 5}, {"size": 100, "overlap": 60}, {"chunker": "by feel"}):
        with pytest.raises(BadInputError):
            validate(ChunkConfig, choices, "chunks")
