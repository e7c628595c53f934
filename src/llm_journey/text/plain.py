"""Plain text files: which encoding, whether it is text at all, and pieces of very long files in bounded memory.

The encoding rule. A byte-order mark decides (UTF-8, UTF-16, UTF-32). Without one a file is UTF-8; a line that is not
valid UTF-8 is read as Windows-1252 (its five unassigned bytes as ISO 8859-1), so that a file put together from
several encodings keeps both its halves. Nothing is guessed from letter statistics.

The binary rule. A NUL byte, or more than 5% control characters in a block, is not text.

The piece rule. A file of at most `Limits.whole_file_bytes` is one document. A longer one is cut into pieces of about
`Limits.piece_characters`, each at the last blank line that fits, else at the last line end, else where it stands.
"""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from llm_journey.text.documents import Limits, Unreadable

_BLOCK = 1 << 20
_LONGEST_LINE = 4 << 20  # bytes; a longer line is decoded in parts
_MAX_CONTROL_SHARE = 0.05
_CONTROL = bytes(byte for byte in range(32) if byte not in b"\t\n\v\f\r\x1b\b") + b"\x7f"
# UTF-32 first: its little-endian mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_pieces(path: Path, limits: Limits, fallback_lines: list[int]) -> Iterator[str]:
    """The text of a file, whole or in pieces (see the rules above); memory is bounded by a few pieces.

    The number of lines read as Windows-1252 is appended to `fallback_lines`. Raises Unreadable for binary files.
    """
    with path.open("rb") as file:
        blocks = decoded_blocks(file, fallback_lines)
        if path.stat().st_size <= limits.whole_file_bytes:
            yield "".join(blocks)
        else:
            yield from _cut(blocks, limits.piece_characters)


def decoded_blocks(file: BinaryIO, fallback_lines: list[int]) -> Iterator[str]:
    """A binary file's text, block by block, by the encoding rule above."""
    mark = file.read(4)
    encoding, skip = next(((name, len(bom)) for bom, name in _MARKS if mark.startswith(bom)), ("utf-8", 0))
    file.seek(skip)
    if encoding == "utf-8":
        yield from _utf8_blocks(file, fallback_lines)
    else:
        yield from _wide_blocks(file, encoding)


def decode_line(line: bytes) -> tuple[str, bool]:
    """A line's text, and whether it had to be read as Windows-1252."""
    try:
        return line.decode("utf-8"), False
    except UnicodeDecodeError:
        pass
    try:
        return line.decode("cp1252"), True
    except UnicodeDecodeError:
        return line.decode("latin-1"), True


def refuse_binary(block: bytes) -> None:
    """Raise Unreadable where a block of a file is not text."""
    if b"\0" in block:
        raise Unreadable("looks binary (it holds NUL bytes); only text can be read")
    share = (len(block) - len(block.translate(None, _CONTROL))) / max(len(block), 1)
    if share > _MAX_CONTROL_SHARE:
        raise Unreadable(f"looks binary ({share:.0%} control characters); only text can be read")


def _utf8_blocks(file: BinaryIO, fallback_lines: list[int]) -> Iterator[str]:
    num_fallback = 0
    rest = b""
    while block := file.read(_BLOCK):
        refuse_binary(block)
        block = rest + block
        end = block.rfind(b"\n") + 1
        if not end and len(block) >= _LONGEST_LINE:
            end = _character_start(block)
        rest = block[end:]
        text, count = _decode_lines(block[:end])
        num_fallback += count
        yield text
    text, count = _decode_lines(rest)
    fallback_lines.append(num_fallback + count)
    yield text


def _decode_lines(block: bytes) -> tuple[str, int]:
    try:
        return block.decode("utf-8"), 0
    except UnicodeDecodeError:
        lines = [decode_line(line) for line in block.splitlines(keepends=True)]
        return "".join(text for text, _ in lines), sum(fell_back for _, fell_back in lines)


def _character_start(block: bytes) -> int:
    """The last position, at most three bytes before the end, where a UTF-8 character begins."""
    for position in range(len(block) - 1, len(block) - 4, -1):
        if block[position] & 0xC0 != 0x80:
            return position
    return len(block)


def _wide_blocks(file: BinaryIO, encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    while block := file.read(_BLOCK):
        text = decoder.decode(block)
        if text.count("\0") + text.count("�") > _MAX_CONTROL_SHARE * len(text):
            raise Unreadable(f"looks binary (it is not valid {encoding.upper()}); only text can be read")
        yield text
    yield decoder.decode(b"", final=True)


def _cut(blocks: Iterator[str], length: int) -> Iterator[str]:
    waiting = ""
    for block in blocks:
        waiting += block
        while len(waiting) > length:
            end = waiting.rfind("\n\n", 0, length) + 2
            if end < 2 + length // 2:
                end = waiting.rfind("\n", 0, length) + 1
            if end < 1 + length // 2:
                end = length
            yield waiting[:end]
            waiting = waiting[end:]
    if waiting:
        yield waiting
