"""Texts in from a file, vectors out to one, for `journey embed`.

Row i of the vectors belongs to text i, so a row that holds no text is an error here, not something to skip.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_journey.core.errors import BadInputError, JourneyError

if TYPE_CHECKING:
    from llm_journey.app.embedder import Embeddings

TEXT_KEY = "text"
MAX_FILE_BYTES = 1 << 30
FORMATS = (".npy", ".jsonl")


def read_texts(path: Path) -> list[str]:
    """The texts of a .jsonl file (key "text" of each row), or the lines of any other file that are not empty.

    Raises BadInputError naming the file, and the line that holds no text.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BadInputError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB; embed it in parts")
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: not UTF-8 text (byte {error.start}); convert it first") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise BadInputError(f"{path}: holds no text")
    if path.suffix == ".jsonl":
        return [_text_of(line, f"{path}: line {number}") for number, line in numbered]
    return [line.rstrip("\r") for _, line in numbered]


def vector_rows(found: "Embeddings") -> Iterator[dict[str, Any]]:
    """One JSON object a text. The numbers have as many digits as float32 needs, so that reading gives it back."""
    cut = set(found.cut)
    for index, (vector, tokens) in enumerate(zip(found.vectors, found.tokens, strict=True)):
        embedding = [float(str(number)) for number in vector]
        yield {"index": index, "tokens": tokens, "cut": index in cut, "embedding": embedding}


def write_vectors(found: "Embeddings", path: Path) -> None:
    """The vectors as a NumPy file (.npy: texts x width, float32), or as JSON lines (.jsonl); atomically.

    Raises JourneyError where the file cannot be written.
    """
    import numpy as np

    from llm_journey.core.files import write_bytes

    buffer = io.BytesIO()
    if path.suffix == ".npy":
        np.save(buffer, found.vectors, allow_pickle=False)
    else:
        buffer.writelines(f"{json.dumps(row, allow_nan=False)}\n".encode() for row in vector_rows(found))
    try:
        write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise JourneyError(f"{path}: cannot be written ({error.strerror})") from None


def _text_of(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise BadInputError(f"{where}: no JSON; each line must be an object with the key {TEXT_KEY!r}") from None
    if not isinstance(row, dict) or not isinstance(row.get(TEXT_KEY), str):
        raise BadInputError(f"{where}: holds no string under the key {TEXT_KEY!r}")
    text: str = row[TEXT_KEY]
    return text
