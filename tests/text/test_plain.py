"""Plain text: the encoding rule, the binary rule, pieces that lose nothing, bounded memory."""

import codecs
import io
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.text import plain
from llm_journey.text.documents import Limits, Unreadable
from llm_journey.text.plain import decode_line, decoded_blocks, read_pieces, refuse_binary

TEXT = "Zürich, naïve, 灯塔, 👩‍💻\nsecond line\n"


def decoded(data: bytes) -> str:
    return "".join(decoded_blocks(io.BytesIO(data), []))


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_mark_decides_the_encoding(mark: bytes, encoding: str) -> None:
    assert decoded(mark + TEXT.encode(encoding)) == TEXT


def test_only_the_lines_that_are_no_utf8_are_windows_1252() -> None:
    counts: list[int] = []
    data = "grüße\n".encode() + "“Zürich” €\n".encode("cp1252") + "naïve\n".encode()
    assert "".join(decoded_blocks(io.BytesIO(data), counts)) == "grüße\n“Zürich” €\nnaïve\n"
    assert counts == [1]
    assert decode_line(b"\xe9\x81") == ("\xe9\x81", True)  # 0x81 is unassigned in Windows-1252


@settings(max_examples=60)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"]) | st.just("\n")), block=st.integers(4, 40))
def test_blocks_never_cut_a_character(text: str, block: int) -> None:
    text = text.removeprefix("\ufeff")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "_BLOCK", block)
        patch.setattr(plain, "_LONGEST_LINE", block)
        assert decoded(text.encode("utf-8")) == text
        assert decoded(codecs.BOM_UTF16_LE + text.encode("utf-16-le")) == text


@pytest.mark.parametrize("data", [b"text\0text", bytes(range(1, 32)) * 4, b"\x7f" * 50 + b"x" * 50])
def test_binary_data_is_refused(data: bytes) -> None:
    with pytest.raises(Unreadable, match="looks binary"):
        decoded(data)


def test_utf16_that_is_none_is_refused() -> None:
    with pytest.raises(Unreadable, match="not valid UTF-16-LE"):
        decoded(codecs.BOM_UTF16_LE + b"\x00\xd8" * 100)


def test_terminal_colours_and_form_feeds_are_text() -> None:
    refuse_binary(b"\x1b[1mbold\x1b[0m\x0c\ttabs\r\n" * 3)


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(st.text(alphabet="ab \n", max_size=30)), piece=st.integers(4, 60))
def test_pieces_add_up_to_the_file(tmp_path_factory: pytest.TempPathFactory, lines: list[str], piece: int) -> None:
    path = tmp_path_factory.mktemp("pieces") / "a.txt"
    text = "\n".join(lines)
    path.write_text(text, encoding="utf-8")
    limits = Limits(whole_file_bytes=-1, piece_characters=piece)
    pieces = list(read_pieces(path, limits, []))
    assert "".join(pieces) == text
    assert all(0 < len(part) <= piece for part in pieces)


def test_a_large_file_without_a_line_end_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    with path.open("wb") as file:
        for _ in range(24):
            file.write("é".encode() * (1 << 19))
    tracemalloc.start()
    total = sum(len(part) for part in read_pieces(path, Limits(), []))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 24 << 19
    assert peak < 24 << 20
