"""A bounded GGUF reader in NumPy alone: no count, length or offset is believed before the file's size has borne it out.

The file is mapped into memory; metadata becomes Python values and NumPy views, and a tensor is turned into numbers only
when it is asked for. A file whose counts lie is refused at once (llama.cpp#27188: the `gguf` package hangs on 49
bytes). What the numbers mean for a model is for `names` and `vocabulary`.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_journey.checkpoint.gguf import format as gguf
from llm_journey.checkpoint.gguf.format import TensorType
from llm_journey.checkpoint.gguf.quants import Floats, dequantize
from llm_journey.core.errors import BadInputError

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class TensorFacts:
    """Where a tensor lies. shape: as NumPy orders it (rows first), the reverse of how the file writes it."""

    name: str
    shape: tuple[int, ...]
    kind: TensorType
    start: int

    @property
    def num_bytes(self) -> int:
        """Its bytes in the file."""
        return self.kind.num_bytes(math.prod(self.shape))


class GgufFile:
    """An open file, checked as a whole: `metadata` (key -> value) and `tensors` (name -> facts).

    A value is a number, a bool, a text, a list of texts, or a NumPy array of numbers (0 and 1 for bools).
    """

    def __init__(self, path: Path) -> None:
        """Open and check `path`. Raises BadInputError that names the file and what is wrong, and where in it."""
        self.path = path
        self._data = _map(path)
        cursor = _Cursor(path, self._data)
        version, num_tensors, num_keys = _read_header(cursor)
        self.version = version
        self.metadata = dict(_read_metadata(cursor, num_keys))
        alignment = self._alignment()
        found = list(_read_tensor_facts(cursor, num_tensors))
        start = -(-cursor.position // alignment) * alignment
        self.tensors = self._placed(found, start, alignment)

    def numbers(self, name: str) -> Floats:
        """The tensor called `name` as float32, in its shape. Raises KeyError for an unknown name."""
        facts = self.tensors[name]
        data = self._data[facts.start : facts.start + facts.num_bytes]
        return dequantize(facts.kind, data).reshape(facts.shape)

    def _alignment(self) -> int:
        value = self.metadata.get("general.alignment", gguf.DEFAULT_ALIGNMENT)
        power = isinstance(value, int) and not isinstance(value, bool) and value > 0 and value & (value - 1) == 0
        if not power or value > gguf.MAX_ALIGNMENT:
            raise BadInputError(
                f"{self.path}: key 'general.alignment' = {str(value)[:40]}: must be a power of two up to "
                f"{gguf.MAX_ALIGNMENT}"
            )
        return int(value)

    def _placed(self, found: list[tuple[TensorFacts, int]], data: int, alignment: int) -> dict[str, TensorFacts]:
        """Tensors with their place in the file, once each lies inside it and none in another.

        Were they allowed to overlap, a small file could stand for more numbers than memory holds.
        """
        placed: dict[str, TensorFacts] = {}
        end_before = data
        for facts, offset in sorted(found, key=lambda item: item[1]):
            start = data + offset
            if offset % alignment:
                raise self._wrong(facts.name, f"begins at offset {offset}, no multiple of the alignment {alignment}")
            if start + facts.num_bytes > len(self._data):
                raise self._wrong(
                    facts.name,
                    f"needs {facts.num_bytes} bytes from {start} on, the file has {len(self._data)}; is it whole?",
                )
            if facts.name in placed:
                raise self._wrong(facts.name, "stands twice")
            if start < end_before:
                raise self._wrong(facts.name, "overlaps another tensor")
            placed[facts.name] = TensorFacts(facts.name, facts.shape, facts.kind, start)
            end_before = start + facts.num_bytes
        return placed

    def _wrong(self, name: str, what: str) -> BadInputError:
        return BadInputError(f"{self.path}: tensor {name[:80]!r} {what}")


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        size = path.stat().st_size
        if size < gguf.HEADER_BYTES:
            raise BadInputError(f"{path}: {size} bytes are no GGUF file; its header alone has {gguf.HEADER_BYTES}")
        return np.memmap(path, dtype=np.uint8, mode="r")
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


class _Cursor:
    """A place in the file that moves on as values are read, never beyond its end."""

    def __init__(self, path: Path, data: NDArray[np.uint8]) -> None:
        self._path, self._data, self._view = path, data, data.data
        self.position = 0
        self._strings_left = gguf.MAX_STRINGS

    @property
    def left(self) -> int:
        """Bytes behind this place."""
        return len(self._view) - self.position

    def error(self, what: str) -> BadInputError:
        """The error for something wrong at this place."""
        return BadInputError(f"{self._path}: damaged at byte {self.position}: {what}")

    def number(self, spelling: str) -> Any:
        """One number, spelled as `struct` does."""
        size = struct.calcsize("<" + spelling)
        self._need(size, "a number")
        (value,) = struct.unpack_from("<" + spelling, self._view, self.position)
        self.position += size
        return value

    def text(self, most: int | None = None) -> str:
        """A length and as many bytes of UTF-8."""
        if self._strings_left == 0:
            raise self.error(f"more than {gguf.MAX_STRINGS} texts")
        length = self.number("Q")
        if most is not None and length > most:
            raise self.error(f"a name of {length} bytes; at most {most} are allowed")
        self._need(length, f"a text of {length} bytes")
        self._strings_left -= 1
        try:
            value = str(self._view[self.position : self.position + length], "utf-8")
        except UnicodeDecodeError:
            raise self.error("a text that is no UTF-8") from None
        self.position += length
        return value

    def value(self, kind: int) -> Any:
        """A metadata value of a type's number."""
        if kind == gguf.STRING:
            return self.text()
        if kind == gguf.ARRAY:
            return self._array()
        if kind not in gguf.SCALARS:
            raise self.error(f"an unknown type of value, {kind}")
        if kind == gguf.BOOL:
            return bool(self.number("B"))
        return self.number(gguf.SCALARS[kind])

    def _array(self) -> Any:
        kind, count = self.number("I"), self.number("Q")
        if kind == gguf.STRING:
            if count > min(self.left // 8, self._strings_left):
                raise self.error(f"a list of {count} texts, which the {self.left} bytes behind it cannot hold")
            return self._texts(count)
        if kind not in gguf.SCALARS:
            raise self.error(f"a list of values of type {kind}; only numbers and texts can be listed")
        dtype = np.dtype("B" if kind == gguf.BOOL else gguf.SCALARS[kind]).newbyteorder("<")
        self._need(count * dtype.itemsize, f"a list of {count} numbers")
        start, self.position = self.position, self.position + count * dtype.itemsize
        return self._data[start : self.position].view(dtype)

    def _texts(self, count: int) -> list[str]:
        """`count` texts: what `text` does, in one loop, since vocabularies are long."""
        found: list[str] = []
        position, end = self.position, len(self._view)
        for _ in range(count):
            start = position + _LENGTH.size
            position = start + _LENGTH.unpack_from(self._view, position)[0] if start <= end else end + 1
            if position > end:
                raise self.error(f"text {len(found)} of a list of {count} does not fit in the file")
            try:
                found.append(str(self._view[start:position], "utf-8"))
            except UnicodeDecodeError:
                raise self.error(f"text {len(found)} of a list of {count} is no UTF-8") from None
        self.position = position
        self._strings_left -= count
        return found

    def _need(self, size: int, what: str) -> None:
        if size > self.left:
            raise self.error(f"{what} does not fit in the {self.left} bytes that are left")


def _read_header(cursor: _Cursor) -> tuple[int, int, int]:
    """Version, number of tensors, number of keys; the counts are what the rest of the file can hold."""
    magic = bytes(cursor.number("B") for _ in range(4))
    if magic != gguf.MAGIC:
        raise cursor.error(f"begins with {magic!r}, not {gguf.MAGIC!r}; this is no GGUF file")
    version = cursor.number("I")
    if version not in gguf.VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in gguf.VERSIONS
        kind = "a big-endian file" if swapped else f"version {version}"
        raise cursor.error(f"{kind}; little-endian files of version {' or '.join(map(str, gguf.VERSIONS))} are read")
    num_tensors, num_keys = cursor.number("Q"), cursor.number("Q")
    # The least that a key (name, type, one byte) and a tensor (name, dimensions, type, offset) can take.
    if num_keys > min(gguf.MAX_KEYS, cursor.left // 13):
        raise cursor.error(f"claims {num_keys} keys; {cursor.left} bytes are left, and {gguf.MAX_KEYS} are allowed")
    if num_tensors > min(gguf.MAX_TENSORS, cursor.left // 24):
        raise cursor.error(
            f"claims {num_tensors} tensors; {cursor.left} bytes are left, and {gguf.MAX_TENSORS} are allowed"
        )
    return version, num_tensors, num_keys


def _read_metadata(cursor: _Cursor, num_keys: int) -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    for _ in range(num_keys):
        key = cursor.text(gguf.MAX_NAME_BYTES)
        if key in seen:
            raise cursor.error(f"key {key[:80]!r} stands twice")
        seen.add(key)
        yield key, cursor.value(cursor.number("I"))


def _read_tensor_facts(cursor: _Cursor, num_tensors: int) -> Iterator[tuple[TensorFacts, int]]:
    """Each tensor's facts without its place, and the offset that the file gives for it."""
    for _ in range(num_tensors):
        name = cursor.text(gguf.MAX_NAME_BYTES)
        num_dimensions = cursor.number("I")
        if not 1 <= num_dimensions <= gguf.MAX_DIMENSIONS:
            raise cursor.error(
                f"tensor {name[:80]!r} has {num_dimensions} dimensions; 1 to {gguf.MAX_DIMENSIONS} can be"
            )
        shape = tuple(cursor.number("Q") for _ in range(num_dimensions))[::-1]
        kind, offset = _tensor_type(cursor, name), cursor.number("Q")
        if min(shape) < 1 or math.prod(shape) > 1 << 62:
            raise cursor.error(f"tensor {name[:80]!r} has the shape {list(shape)}")
        if shape[-1] % kind.block:
            raise cursor.error(
                f"tensor {name[:80]!r} has rows of {shape[-1]}, no multiple of {kind.name}'s {kind.block}"
            )
        yield TensorFacts(name, shape, kind, 0), offset


def _tensor_type(cursor: _Cursor, name: str) -> TensorType:
    number = cursor.number("I")
    if number not in gguf.TYPE_BY_NUMBER:
        kind = gguf.OTHER_TYPES.get(number, f"of unknown number {number}")
        known = ", ".join(gguf.TENSOR_TYPES)
        raise cursor.error(f"tensor {name[:80]!r} is stored as {kind}; {known} are read: fetch or write such a file")
    return gguf.TYPE_BY_NUMBER[number]
