"""Deduplication: which document says what an earlier one said, exactly or nearly.

Exact: the SHA-256 of the text with case and white space evened out.

Near: Jaccard similarity J of two documents' sets of shingles (runs of five words; of five characters in scripts
without spaces) by MinHash (Broder 1997, "On the resemblance and containment of documents"). For a random hash, the
smallest value over a set agrees between two sets with probability J, so the share of k = 256 hashes that agree
estimates J with a standard deviation of sqrt(J (1 - J) / k): 0.025 at J = 0.8.

Locality-sensitive hashing (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4) keeps the search
near-linear: the signature is cut into b bands of r hashes, and two documents are compared only where a whole band
agrees, which happens with probability 1 - (1 - J^r)^b. `choose_bands` takes the most selective r that still finds a
pair at the threshold with 95%; pairs above it are found more surely than that.

Everything is deterministic: the same texts in the same order give the same answer on every machine. A document is
compared with the ones kept before it, so each group of near-duplicates keeps its first member.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]

SHINGLE_LENGTH = 5
NUM_HASHES = 256
_RECALL_AT_THRESHOLD = 0.95
_MAX_BUCKET = 64  # documents of one band value that are compared; keeps hostile inputs near-linear
_MAX_WORDS_REMEMBERED = 1 << 20
_BLOCK_SHINGLES = 4096  # (4096, 256) uint64 = 8 MiB at a time
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, from the golden ratio: spreads neighbouring values
# Words, or single characters of scripts that do not part words by spaces (Thai to Khmer, kana, Chinese).
_WORDS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"
    "|[^\\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+"
)
_ASCII_WORDS = re.compile(r"\w+", re.ASCII)


class DuplicateIndex(Protocol):
    """Remembers documents and recognises the ones that say the same."""

    def add(self, identifier: str, text: str) -> str | None:
        """The identifier of the earlier document that `text` duplicates, else None; then it is remembered."""


class ExactIndex:
    """Recognises texts that are equal but for case and white space; 32 bytes and an identifier a document."""

    def __init__(self) -> None:
        self._seen: dict[bytes, str] = {}

    def add(self, identifier: str, text: str) -> str | None:
        """See DuplicateIndex."""
        earlier = self._seen.setdefault(content_hash(text), identifier)
        return None if earlier == identifier else earlier


class MinHashIndex:
    """Recognises texts whose estimated Jaccard similarity to an earlier one is at least `threshold`.

    Of several such texts the most similar one is named, the earliest among equals. Memory: 1 KiB a document for
    its signature, and one entry in each band's table.
    """

    def __init__(self, threshold: float = 0.8, *, seed: int = 0) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold {threshold} must lie above 0 and at most at 1")
        self._threshold = threshold
        self.num_bands, self.num_rows = choose_bands(threshold)
        self._hasher = MinHasher(seed)
        self._identifiers: list[str] = []
        self._signatures = np.empty((256, NUM_HASHES), dtype=np.uint32)
        self._tables: list[dict[bytes, list[int]]] = [{} for _ in range(self.num_bands)]

    def add(self, identifier: str, text: str) -> str | None:
        """See DuplicateIndex."""
        signature = self._hasher.signature(text)
        if signature is None:
            return None
        keys = self._band_keys(signature)
        found: set[int] = set()
        for table, key in zip(self._tables, keys, strict=True):
            found.update(table.get(key, ()))
        if found:
            candidates = np.array(sorted(found))
            similarities = (self._signatures[candidates] == signature).mean(axis=1)
            best = int(similarities.argmax())
            if similarities[best] >= self._threshold:
                return self._identifiers[int(candidates[best])]
        self._remember(identifier, signature, keys)
        return None

    def _remember(self, identifier: str, signature: npt.NDArray[np.uint32], keys: list[bytes]) -> None:
        number = len(self._identifiers)
        if number == len(self._signatures):
            grown = np.empty((2 * number, NUM_HASHES), dtype=np.uint32)
            grown[:number] = self._signatures
            self._signatures = grown
        self._signatures[number] = signature
        self._identifiers.append(identifier)
        for table, key in zip(self._tables, keys, strict=True):
            bucket = table.setdefault(key, [])
            if len(bucket) < _MAX_BUCKET:
                bucket.append(number)

    def _band_keys(self, signature: npt.NDArray[np.uint32]) -> list[bytes]:
        data, width = signature.tobytes(), 4 * self.num_rows
        return [data[start : start + width] for start in range(0, self.num_bands * width, width)]


class MinHasher:
    """Turns a text into its MinHash signature: the smallest value of each of 256 hashes over its shingles."""

    def __init__(self, seed: int = 0) -> None:
        generator = np.random.Generator(np.random.PCG64(seed))
        high = np.iinfo(np.uint64).max
        # Multiply-shift hashing (Dietzfelbinger et al. 1997): the high half of a * x + b modulo 2^64, a odd.
        self._factors: UInt64Array = generator.integers(0, high, NUM_HASHES, dtype=np.uint64) | np.uint64(1)
        self._offsets: UInt64Array = generator.integers(0, high, NUM_HASHES, dtype=np.uint64)
        self._words: dict[str, int] = {}

    def signature(self, text: str) -> npt.NDArray[np.uint32] | None:
        """uint32 (256,), or None for a text without a word."""
        hashed = self.shingle_hashes(text)
        if not len(hashed):
            return None
        smallest = np.full(NUM_HASHES, np.iinfo(np.uint64).max, dtype=np.uint64)
        for start in range(0, len(hashed), _BLOCK_SHINGLES):
            block = hashed[start : start + _BLOCK_SHINGLES, None] * self._factors + self._offsets
            np.minimum(smallest, block.min(axis=0), out=smallest)
        return (smallest >> np.uint64(32)).astype(np.uint32)

    def shingle_hashes(self, text: str) -> UInt64Array:
        """A 64-bit hash of each shingle of a text, in order: uint64 (max(words - 4, 1),); empty without words."""
        words = split_words(text)
        if len(self._words) > _MAX_WORDS_REMEMBERED:
            self._words.clear()
        known = self._words
        for word in set(words).difference(known):
            known[word] = int.from_bytes(
                hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
            )
        ids = np.array([known[word] for word in words], dtype=np.uint64)
        length = min(SHINGLE_LENGTH, len(ids))
        combined = np.zeros(max(len(ids) - length + 1, 0) if length else 0, dtype=np.uint64)
        for offset in range(length):
            combined = _mix(combined * np.uint64(_MULTIPLIER) + ids[offset : offset + len(combined)])
        return combined


def choose_bands(threshold: float, num_hashes: int = NUM_HASHES) -> tuple[int, int]:
    """(bands, rows): the most rows a band with which a pair at `threshold` is still compared with 95% probability."""
    rows = 1
    for candidate in range(1, num_hashes + 1):
        if collision_probability(threshold, num_hashes // candidate, candidate) >= _RECALL_AT_THRESHOLD:
            rows = candidate
    return num_hashes // rows, rows


def collision_probability(similarity: float, bands: int, rows: int) -> float:
    """Probability that two sets of that Jaccard similarity agree in at least one band: 1 - (1 - J^r)^b."""
    return float(1 - (1 - similarity**rows) ** bands)


def jaccard(first: str, second: str) -> float:
    """The true Jaccard similarity of two texts' shingle sets, |A and B| / |A or B|: what MinHash estimates."""
    first_set, second_set = set(shingles(first)), set(shingles(second))
    return len(first_set & second_set) / max(len(first_set | second_set), 1)


def shingles(text: str) -> Iterator[tuple[str, ...]]:
    """Runs of five words in order; a shorter text is one shingle."""
    words = split_words(text)
    length = min(SHINGLE_LENGTH, len(words))
    for start in range(len(words) - length + 1 if length else 0):
        yield tuple(words[start : start + length])


def split_words(text: str) -> list[str]:
    """Lower-case words without punctuation; single characters of scripts written without spaces."""
    lowered = text.lower()
    return (_ASCII_WORDS if lowered.isascii() else _WORDS).findall(lowered)


def content_hash(text: str) -> bytes:
    """SHA-256 (32 bytes) of a text with case and white space evened out."""
    return hashlib.sha256(evened(text).encode("utf-8", "surrogatepass")).digest()


def evened(text: str) -> str:
    """A text in lower case, each stretch of white space one space, none at its ends."""
    return " ".join(text.casefold().split())


def _mix(values: UInt64Array) -> UInt64Array:
    """The finalizer of SplitMix64 (Steele et al. 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: Any = values ^ (values >> np.uint64(31))
    return np.asarray(result, dtype=np.uint64)
