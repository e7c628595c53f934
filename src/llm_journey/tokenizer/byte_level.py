"""The byte alphabet of byte-level BPE: 256 symbols, so that any byte string can be written.

GPT-2 (Radford et al. 2019, section 2.2) gives each byte a printable character: the 188 printable Latin-1 bytes stand
for themselves, the other 68 take the characters from U+0100 on. `tokenizer.json` spells its vocabulary in these
characters, and their code point order is the order in which Hugging Face's trainer numbers them. Our byte ids follow
the same order, which is what makes ties between equally frequent pairs fall the same way.
"""

from functools import cache

import numpy as np

NUM_BYTES = 256
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
# ID_TO_BYTE[i] is the byte that token id i stands for; BYTE_TO_ID is its inverse, as a table for bytes.translate.
ID_TO_BYTE = bytes([*_PRINTABLE, *(value for value in range(NUM_BYTES) if value not in set(_PRINTABLE))])
BYTE_TO_ID = bytes(ID_TO_BYTE.index(value) for value in range(NUM_BYTES))
BYTE_TO_ID_ARRAY = np.frombuffer(BYTE_TO_ID, dtype=np.uint8)


@cache
def _characters() -> tuple[dict[int, str], dict[str, int]]:
    num_printable = len(_PRINTABLE)
    to_character = {
        byte: chr(byte) if index < num_printable else chr(NUM_BYTES + index - num_printable)
        for index, byte in enumerate(ID_TO_BYTE)
    }
    return to_character, {character: byte for byte, character in to_character.items()}


def to_characters(data: bytes) -> str:
    """`data` spelled with GPT-2's printable characters, one character a byte."""
    to_character, _ = _characters()
    return "".join([to_character[byte] for byte in data])


def from_characters(text: str) -> bytes:
    """The bytes that `text` spells. Raises KeyError where a character is none of the 256."""
    _, to_byte = _characters()
    return bytes([to_byte[character] for character in text])
