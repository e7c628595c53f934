"""A library holds what was last given to it, whatever came before; nothing is embedded twice or half written."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError
from llm_journey.rag.chunk import ChunkConfig, chunks
from llm_journey.rag.library import FILE, Library, Passage
from llm_journey.text.documents import Document

CONFIG = ChunkConfig(size=40, overlap=0)


def documents(texts: dict[str, str]) -> list[Document]:
    return [Document(name, text, f"{name}:1") for name, text in texts.items()]


class Counting:
    """Vectors that say which text they are of; how many texts were embedded."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        return np.array([[len(text), sum(map(ord, text)) % 97, 1] for text in texts], dtype=np.float32)


def held(library: Library) -> list[Passage]:
    return sorted(library.passages(), key=lambda passage: (passage.document, passage.start))


def expected(texts: dict[str, str], config: ChunkConfig = CONFIG) -> list[Passage]:
    first: dict[str, str] = {}
    for name, text in texts.items():
        first.setdefault(text, name)
    return [
        Passage(chunk.text, name, f"{name}:1", chunk.start, chunk.stop, chunk.heading)
        for name, text in sorted(texts.items())
        if first[text] == name
        for chunk in chunks(text, config)
    ]


NAMES, TEXTS = st.sampled_from("abcdef"), st.sampled_from(["", "one. " * 20, "two", "three. " * 9, "four\n\nfive"])


@settings(max_examples=40, deadline=None)
@given(states=st.lists(st.dictionaries(NAMES, TEXTS, max_size=5), min_size=1, max_size=4))
def test_after_any_history_it_holds_the_last_documents(
    states: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    embed = Counting()
    with Library(tmp_path_factory.mktemp("library")) as library:
        for texts in states:
            update = library.update(documents(texts), CONFIG)
            assert update.added + update.changed + update.unchanged + update.doubles == len(texts)
            library.embed("counting", embed)
            assert held(library) == expected(texts)
            found = library.vectors("counting")
            assert len(found) == len(library.passages())
            if len(found):
                assert np.array_equal(found, Counting()([each.text for each in library.passages()]))
        again = library.update(documents(states[-1]), CONFIG)
        again.vectors = library.embed("counting", embed)
        assert again.is_empty
    assert len(embed.texts) == len(set(embed.texts)), "no text is embedded twice"


def test_only_what_changed_is_cut_and_embedded_again(tmp_path: Path) -> None:
    embed = Counting()
    with Library(tmp_path) as library:
        library.update(documents({"a": "old text", "b": "stays", "c": "goes"}), CONFIG)
        library.embed("counting", embed)
        before = len(embed.texts)
        update = library.update(documents({"a": "new text", "b": "stays"}), CONFIG)
        assert (update.added, update.changed, update.unchanged, update.removed) == (0, 1, 1, 1)
        assert library.embed("counting", embed) == 1 and embed.texts[before:] == ["new text"]
        assert library.forget_vectors() == 2
        assert library.num_documents == 2
    with Library(tmp_path) as library:
        assert library.embed("counting", embed) == 0
        library.update(documents({"a": "new text", "b": "stays"}), ChunkConfig(size=50, overlap=0))
        assert [passage.text for passage in held(library)] == ["new text", "stays"]


def test_an_update_that_fails_leaves_whole_documents(tmp_path: Path) -> None:
    def failing() -> object:
        yield from documents({"a": "new a", "b": "new b"})
        raise RuntimeError("the disk was pulled out")

    with Library(tmp_path) as library:
        library.update(documents({"a": "old a", "z": "old z"}), CONFIG)
        before = held(library)
        with pytest.raises(RuntimeError, match="pulled out"):
            library.update(failing(), CONFIG)  # type: ignore[arg-type]
        assert held(library) == before
        library.update(documents({"a": "new a"}), CONFIG)
        assert [passage.text for passage in held(library)] == ["new a"]


def test_embedding_that_fails_keeps_what_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_journey.rag.library._EMBED_AT_ONCE", 2)
    embed = Counting()

    def failing(texts: Sequence[str]) -> np.ndarray:
        if len(embed.texts) >= 4:
            raise RuntimeError("no more")
        return embed(texts)

    with Library(tmp_path) as library:
        library.update(documents({name: f"text {name}" for name in "abcdefg"}), CONFIG)
        with pytest.raises(RuntimeError, match="no more"):
            library.embed("counting", failing)
        with pytest.raises(BadInputError, match="3 of 7 passages have no vector of counting"):
            library.vectors("counting")
        assert library.embed("counting", embed) == 3
        assert len(library.vectors("counting")) == 7 == len(set(embed.texts))


def test_what_is_no_library(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(BadInputError, match="no library"):
        Library(tmp_path)
    (tmp_path / FILE).unlink()
    with Library(tmp_path):
        pass
    with sqlite3.connect(tmp_path / FILE) as file:
        file.execute("pragma user_version = 99")
    with pytest.raises(BadInputError, match="version 99"):
        Library(tmp_path)
