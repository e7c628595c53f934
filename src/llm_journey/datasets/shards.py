"""Token shards: a split's documents as one long row of token ids in memory-mapped files.

On disk, for a split called `train`:

    train-00000.bin, train-00001.bin, ...   the ids, little-endian uint16 (vocabularies up to 65,536) or uint32
    train-documents.bin                     where each document starts, little-endian int64, plus the end of the last
    train.json                              the index: counts, dtype, SHA-256 of every file, the fingerprint

Every shard but the last holds exactly `shard_tokens` ids, so a position names its shard by division and a document may
run over the edge of one. The index is removed first and written last: a split either opens whole or is refused.
Raw numbers and JSON only; nothing here can run code when it is opened.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from llm_journey.core import files
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.core.paths import inside

Int64Array = npt.NDArray[np.int64]
Encode = Callable[[list[str]], list[list[int]]]

_FORMAT = "llm-journey-shards-1"
_OFFSET_DTYPE = np.dtype("<i8")
_BATCH_CHARACTERS = 1 << 20  # text handed to the tokenizer in one call
_BATCH_DOCUMENTS = 1024
_MAX_INDEX_BYTES = 64 << 20
_MAX_UINT16_VOCABULARY = 1 << 16


def write_shards(
    texts: Iterable[str],
    encode: Encode,
    directory: Path,
    *,
    split: str,
    vocab_size: int,
    end_id: int,
    shard_tokens: int = 50_000_000,
) -> None:
    """Write the documents of a split as token shards: each document's ids, then `end_id`.

    `encode` gets about 1 MB of text at a time. See `write_documents`.
    """

    def documents() -> Iterator[tuple[Sequence[int], int]]:
        for batch in _batches(texts):
            encoded = encode(batch)
            if len(encoded) != len(batch):
                raise ValueError(f"encode returned {len(encoded)} rows for {len(batch)} texts")
            for text, ids in zip(batch, encoded, strict=True):
                yield ids, len(text.encode("utf-8"))

    write_documents(
        documents(), directory, split=split, vocab_size=vocab_size, end_id=end_id, shard_tokens=shard_tokens
    )


def write_documents(
    documents: Iterable[tuple[Sequence[int], int]],
    directory: Path,
    *,
    split: str,
    vocab_size: int,
    end_id: int,
    shard_tokens: int = 50_000_000,
) -> None:
    """Write documents that are ids already, each with the bytes of its text, as token shards.

    Memory is bounded by one shard (2 or 4 bytes a token) and the offsets (8 bytes a document). On an error nothing of
    the split is left behind. Raises BadInputError where there is no document or where an id does not fit the
    vocabulary, JourneyError where the disk is full or cannot be written.
    """
    if not 0 <= end_id < vocab_size or shard_tokens < 1:
        raise ValueError(f"end_id {end_id} must lie in a vocabulary of {vocab_size}; shard_tokens {shard_tokens} > 0")
    dtype = np.dtype("<u2" if vocab_size <= _MAX_UINT16_VOCABULARY else "<u4")
    writer = _Writer(directory, split, dtype, shard_tokens)
    num_bytes = 0
    offsets = [0]
    index_path = directory / f"{split}.json"
    try:
        index_path.unlink(missing_ok=True)
        for ids, size in documents:
            num_bytes += size
            writer.add(_checked(ids, vocab_size, end_id))
            offsets.append(writer.num_tokens)
        if len(offsets) == 1:
            raise BadInputError(
                f"the {split} split holds no document, so it has no tokens; add text or split otherwise"
            )
        writer.flush()
        starts = writer.write_file(f"{split}-documents.bin", np.array(offsets, dtype=_OFFSET_DTYPE).tobytes())
        index: dict[str, Any] = {
            "format": _FORMAT,
            "split": split,
            "dtype": dtype.str,
            "vocab_size": vocab_size,
            "end_id": end_id,
            "shard_tokens": shard_tokens,
            "num_tokens": writer.num_tokens,
            "num_documents": len(offsets) - 1,
            "num_bytes": num_bytes,
            "documents": starts,
            "shards": writer.shards,
        }
        index["fingerprint"] = files.sha256_json(index)
        files.write_json(index_path, index)
    except BaseException as error:
        with suppress(OSError):  # what went wrong first is what the caller hears of
            index_path.unlink(missing_ok=True)
            _remove_shards(directory, split, keep=())
        if isinstance(error, OSError):
            raise JourneyError(
                f"{directory}: the token shards cannot be written ({error.strerror or error}); "
                "free disk space or choose another folder (JOURNEY_HOME)"
            ) from None
        raise
    _remove_shards(directory, split, keep=[shard["file"] for shard in writer.shards])


class _Writer:
    """Gathers ids into shards of equal length and writes each one atomically."""

    def __init__(self, directory: Path, split: str, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self.shards: list[dict[str, Any]] = []
        self.num_tokens = 0
        self._directory, self._split = directory, split
        self._buffer = np.empty(min(shard_tokens, 1 << 20), dtype=dtype)
        self._shard_tokens = shard_tokens
        self._filled = 0

    def add(self, ids: npt.NDArray[Any]) -> None:
        self.num_tokens += len(ids)
        while len(ids):
            part = ids[: self._shard_tokens - self._filled]
            needed = self._filled + len(part)
            if needed > len(self._buffer):
                self._buffer = np.resize(self._buffer, min(self._shard_tokens, 2 * needed))
            self._buffer[self._filled : needed] = part
            self._filled = needed
            ids = ids[len(part) :]
            if self._filled == self._shard_tokens:
                self.flush()

    def flush(self) -> None:
        if self._filled:
            name = f"{self._split}-{len(self.shards):05d}.bin"
            self.shards.append(self.write_file(name, self._buffer[: self._filled].tobytes()))
            self._filled = 0

    def write_file(self, name: str, data: bytes) -> dict[str, Any]:
        path = self._directory / name
        files.write_bytes(path, data)
        return {"file": name, "bytes": len(data), "sha256": files.sha256_file(path)}


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _checked(ids: Sequence[int], vocab_size: int, end_id: int) -> npt.NDArray[Any]:
    row = np.empty(len(ids) + 1, dtype=np.int64)
    row[:-1] = ids
    row[-1] = end_id
    if row.min() < 0 or row.max() >= vocab_size:
        wrong = int(row.min() if row.min() < 0 else row.max())
        raise BadInputError(f"the tokenizer gave id {wrong}, outside its vocabulary of {vocab_size}; save it again")
    return row


def _remove_shards(directory: Path, split: str, keep: Iterable[str]) -> None:
    """Delete a split's files, except the shards in `keep` (and with them the document offsets)."""
    kept = set(keep)
    if kept:
        kept.add(f"{split}-documents.bin")
    for path in directory.glob(f"{split}-*.bin"):
        middle = path.name.removeprefix(f"{split}-").removesuffix(".bin")
        if (middle.isdigit() or middle == "documents") and path.name not in kept:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class TokenShards:
    """One split's tokens, memory-mapped: opening costs no memory, reading costs what is read.

    `num_bytes` counts the UTF-8 bytes of the documents' text (for bits per byte). `fingerprint` (64 hexadecimal
    digits) changes whenever a token, a document boundary or the vocabulary does.
    """

    directory: Path
    split: str
    vocab_size: int
    end_id: int
    num_tokens: int
    num_documents: int
    num_bytes: int
    fingerprint: str
    document_starts: Int64Array  # (num_documents,), memory-mapped
    _offsets: Int64Array  # (num_documents + 1,): the starts and the end of the last
    _shards: tuple[npt.NDArray[Any], ...]
    _shard_tokens: int

    @classmethod
    def open(cls, directory: Path, split: str, *, verify: bool = False) -> Self:
        """Open a split. File sizes and the index's own hash are always checked; `verify=True` hashes every file too.

        Raises BadInputError where the split was never written, JourneyError naming the file that is damaged.
        """
        index = _read_index(directory, split)
        dtype, num_tokens, num_documents = np.dtype(index["dtype"]), index["num_tokens"], index["num_documents"]
        offsets = _map_file(directory, index["documents"], _OFFSET_DTYPE, num_documents + 1, verify)
        shards = []
        for number, entry in enumerate(index["shards"]):
            length = min(index["shard_tokens"], num_tokens - number * index["shard_tokens"])
            shards.append(_map_file(directory, entry, dtype, length, verify))
        if sum(len(shard) for shard in shards) != num_tokens or offsets[0] != 0 or offsets[-1] != num_tokens:
            raise _damaged(directory / f"{split}.json", "its counts do not agree with its files")
        if verify and not bool(np.all(np.diff(offsets) > 0)):
            raise _damaged(directory / index["documents"]["file"], "its document starts do not ascend")
        return cls(
            directory=directory,
            split=split,
            vocab_size=index["vocab_size"],
            end_id=index["end_id"],
            num_tokens=num_tokens,
            num_documents=num_documents,
            num_bytes=index["num_bytes"],
            fingerprint=index["fingerprint"],
            document_starts=offsets[:-1],
            _offsets=offsets,
            _shards=tuple(shards),
            _shard_tokens=index["shard_tokens"],
        )

    def read(self, start: int, stop: int) -> Int64Array:
        """Tokens `start` to `stop` (exclusive) of the split's one long row, across shards: int64 (stop - start,)."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start}:{stop} lie outside the {self.num_tokens} of {self.split}")
        row = np.empty(stop - start, dtype=np.int64)
        position = start
        while position < stop:
            number, first = divmod(position, self._shard_tokens)
            part = self._shards[number][first : first + stop - position]
            row[position - start : position - start + len(part)] = part
            position += len(part)
        return row

    def document(self, number: int) -> Int64Array:
        """The tokens of document `number`, its end token included: int64 (length,)."""
        if not 0 <= number < self.num_documents:
            raise IndexError(f"document {number} lies outside the {self.num_documents} of {self.split}")
        return self.read(int(self._offsets[number]), int(self._offsets[number + 1]))

    def holding(self, documents: Sequence[Int64Array], num_bytes: int) -> Self:
        """A split of other documents (end tokens included, `num_bytes` of text), in memory; nothing is written."""
        tokens = np.concatenate(documents).astype(self._shards[0].dtype)
        offsets = np.cumsum([0, *map(len, documents)], dtype=np.int64)
        digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in (tokens, offsets)]
        return replace(
            self,
            num_tokens=len(tokens),
            num_documents=len(documents),
            num_bytes=num_bytes,
            fingerprint=files.sha256_json([self.fingerprint, *digests]),
            document_starts=offsets[:-1],
            _offsets=offsets,
            _shards=(tokens,),
            _shard_tokens=len(tokens),
        )

    def document_lengths(self) -> Int64Array:
        """Tokens in each document, end tokens included: int64 (num_documents,)."""
        return np.diff(self._offsets)


def _read_index(directory: Path, split: str) -> dict[str, Any]:
    path = directory / f"{split}.json"
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise _damaged(path, f"it is larger than {_MAX_INDEX_BYTES} bytes")
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInputError(f"{directory}: no finished {split!r} token shards here; prepare the data again") from None
    except (ValueError, RecursionError):
        raise _damaged(path, "it is no JSON") from None
    if not isinstance(index, dict) or index.get("format") != _FORMAT:
        raise _damaged(path, f"it is no {_FORMAT} index")
    stated = index.pop("fingerprint", None)
    if stated != files.sha256_json(index):
        raise _damaged(path, "its fingerprint does not match its content")
    if not _well_formed(index):
        raise _damaged(path, "a key is missing, or a count or the dtype is out of range")
    return {**index, "fingerprint": stated}


def _well_formed(index: dict[str, Any]) -> bool:
    counts = [index.get(key) for key in ("vocab_size", "num_tokens", "num_documents", "shard_tokens")]
    if not all(type(count) is int and count > 0 for count in counts) or index.get("dtype") not in ("<u2", "<u4"):
        return False
    if type(index.get("num_bytes")) is not int or type(index.get("end_id")) is not int:
        return False
    entries = index.get("shards")
    if not isinstance(entries, list):
        return False
    kinds = {"file": str, "bytes": int, "sha256": str}
    return all(
        isinstance(entry, dict) and all(type(entry.get(key)) is kind for key, kind in kinds.items())
        for entry in [index.get("documents"), *entries]
    )


def _map_file(
    directory: Path, entry: dict[str, Any], dtype: np.dtype[Any], length: int, verify: bool
) -> npt.NDArray[Any]:
    """The file of an index entry as a read-only array of `length` numbers, once its size (and hash) agree."""
    path = inside(directory, entry["file"])
    try:
        size = path.stat().st_size
    except OSError:
        raise _damaged(path, "it is missing") from None
    if size != entry["bytes"] or size != length * dtype.itemsize:
        raise _damaged(path, f"it has {size} bytes where the index expects {max(length, 0) * dtype.itemsize}")
    if verify and files.sha256_file(path) != entry["sha256"]:
        raise _damaged(path, "its SHA-256 does not match the index")
    array: npt.NDArray[Any] = np.memmap(path, dtype=dtype, mode="r", shape=(length,))
    return array


def _damaged(path: Path, reason: str) -> JourneyError:
    return JourneyError(f"{path} is damaged: {reason}; delete the folder and prepare the data again")
