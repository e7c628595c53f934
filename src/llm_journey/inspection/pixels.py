"""Weights as colours: one scale for terminal, pictures and page, and pictures of few colours as PNG bytes.

A weight w is shown as the square root of w: half of all rows put 0.9 on one key, and what they do with the rest is
what one looks for. The ramp goes from white through orange to violet and falls steadily in lightness, so that it reads
in grey too.
"""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llm_journey.inspection.maps import FloatArray, pooled

Bytes = NDArray[np.uint8]
LEVELS = 254  # shades 0 .. 254; the last of 256 colours is for the lines between pictures
LINE = 255
TILE, GAP = 48, 4  # pixels: one head in the overview, and what lies between two
_STOPS = ("#ffffff", "#fdebd0", "#f9b872", "#e8743b", "#b5304f", "#6a1a5e", "#1f0f3d")
_LINE_COLOR = "#d9d9d2"


def shades(weights: FloatArray) -> Bytes:
    """Weights in [0, 1] as shades 0 .. LEVELS."""
    result: Bytes = np.rint(np.sqrt(np.clip(weights, 0.0, 1.0)) * LEVELS).astype(np.uint8)
    return result


def palette() -> Bytes:
    """(256, 3) colours of the shades; all differ."""
    stops = np.array([_rgb(stop) for stop in _STOPS], dtype=float)
    places = np.linspace(0, len(stops) - 1, LEVELS + 1)
    ramp = np.stack([np.interp(places, np.arange(len(stops)), stops[:, channel]) for channel in range(3)], axis=1)
    return np.concatenate([np.rint(ramp), [_rgb(_LINE_COLOR)]]).astype(np.uint8)


def overview(maps: Sequence[FloatArray]) -> Bytes:
    """All heads at a glance: one row of tiles a layer, one tile a head, lines between them. Shades (height, width)."""
    rows, columns = len(maps), maps[0].shape[0]
    sheet = np.full((rows * (TILE + GAP) + GAP, columns * (TILE + GAP) + GAP), LINE, dtype=np.uint8)
    for row, heads in enumerate(maps):
        for column, weights in enumerate(heads):
            top, left = GAP + row * (TILE + GAP), GAP + column * (TILE + GAP)
            sheet[top : top + TILE, left : left + TILE] = _tile(weights)
    return sheet


def png(picture: Bytes) -> bytes:
    """A picture in shades as a PNG file with the palette (ISO/IEC 15948, colour type 3)."""
    height, width = picture.shape
    lines = np.zeros((height, width + 1), dtype=np.uint8)  # each line begins with its filter: 0, none
    lines[:, 1:] = picture
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = (
        (b"IHDR", header),
        (b"PLTE", palette().tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 6)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _tile(weights: FloatArray) -> Bytes:
    cells = shades(pooled(weights, -(-max(weights.shape) // TILE)))
    rows, columns = (np.arange(TILE) * size // TILE for size in cells.shape)
    result: Bytes = cells[rows[:, None], columns]
    return result


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color.removeprefix("#")))
