"""Writes a GGUF file: keys, then tensors one after another, each made only when its turn comes.

A file is written under a temporary name by its caller (core.files.new_directory), so a half one is never seen.
"""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from llm_journey.checkpoint.gguf import format as gguf
from llm_journey.checkpoint.gguf.format import TensorType
from llm_journey.checkpoint.gguf.quants import Floats, quantize
from llm_journey.core.errors import JourneyError

# NumPy's kinds of numbers in lists -> the type that the file gives them.
_LISTED = {np.dtype("int32"): gguf.INT32, np.dtype("uint32"): gguf.UINT32, np.dtype("float32"): gguf.FLOAT32}
_MAX_UINT32 = (1 << 32) - 1


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor with the type that it is to have; `numbers` makes it, float32, in `shape` (rows first)."""

    name: str
    shape: tuple[int, ...]
    kind: TensorType
    numbers: Callable[[], Floats]

    @property
    def num_bytes(self) -> int:
        """Its bytes in the file, without padding."""
        return self.kind.num_bytes(math.prod(self.shape))


def write_file(path: Path, metadata: Mapping[str, Any], tensors: list[TensorToWrite]) -> None:
    """Write `path`. Texts, bools, whole numbers (uint32), floats (float32), lists of texts and NumPy arrays are values.

    Raises JourneyError naming a tensor whose numbers are not finite, or too large for its type.
    """
    with path.open("wb") as file:
        file.write(gguf.MAGIC + struct.pack("<IQQ", gguf.WRITTEN_VERSION, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_text(key) + _value(value))
        offset = 0
        for tensor in tensors:
            file.write(_text(tensor.name) + struct.pack("<I", len(tensor.shape)))
            file.write(struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape[::-1]))
            file.write(struct.pack("<IQ", tensor.kind.number, offset))
            offset += _padded(tensor.num_bytes)
        _pad(file)
        for tensor in tensors:
            file.write(_tensor_bytes(tensor))
            _pad(file)


def _tensor_bytes(tensor: TensorToWrite) -> bytes:
    numbers = tensor.numbers()
    # Every type but F32 holds a scale, or the numbers themselves, as a float16.
    most = np.finfo(np.float16 if tensor.kind.name != "F32" else np.float32).max
    if not np.all(np.abs(numbers) <= most):
        raise JourneyError(
            f"tensor {tensor.name} holds numbers that are not finite, or too large for {tensor.kind.name}; "
            "such a model cannot be written as GGUF"
        )
    return quantize(tensor.kind, np.ascontiguousarray(numbers).reshape(-1)).tobytes()


def _padded(size: int) -> int:
    return -(-size // gguf.DEFAULT_ALIGNMENT) * gguf.DEFAULT_ALIGNMENT


def _pad(file: IO[bytes]) -> None:
    file.write(bytes(_padded(file.tell()) - file.tell()))


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """A value behind the number of its type."""
    match value:
        case bool():
            return struct.pack("<I?", gguf.BOOL, value)
        case int() if 0 <= value <= _MAX_UINT32:
            return struct.pack("<II", gguf.UINT32, value)
        case float():
            return struct.pack("<If", gguf.FLOAT32, value)
        case str():
            return struct.pack("<I", gguf.STRING) + _text(value)
        case list():
            return struct.pack("<IIQ", gguf.ARRAY, gguf.STRING, len(value)) + b"".join(map(_text, value))
        case np.ndarray() if value.dtype in _LISTED:
            head = struct.pack("<IIQ", gguf.ARRAY, _LISTED[value.dtype], len(value))
            return head + value.astype(value.dtype.newbyteorder("<")).tobytes()
    raise TypeError(f"a GGUF file has no place for {value!r:.80}")
