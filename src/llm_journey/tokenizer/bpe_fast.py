"""Byte pair training that touches only what a merge changes; proven equal to `bpe.train`.

All unique words lie in one flat array of cells, one cell a byte, with a separator between words. A token of n bytes
owns n cells and writes its id into the first and the last of them, so both neighbours are found without links: the
next token starts n cells on, the one before ends one cell back. Inner cells that once started a token are DEAD.

Every occurrence of a pair arises at one moment: when the younger of its two tokens is made. So each pair gets its list
of positions once, and its count only falls afterwards. Old positions are checked when the list is used, and old counts
when the pair comes off the heap (lazy deletion).

A merge with many occurrences runs in NumPy, one with few in plain Python, because a NumPy call costs about as much as
ten occurrences handled one by one. Both share the same memory.
"""

import array
import gc
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from llm_journey.tokenizer.bpe import Pair, word_bytes
from llm_journey.tokenizer.byte_level import BYTE_TO_ID_ARRAY, NUM_BYTES

_SEPARATOR = -1
_DEAD = -2
# A pair is one integer, left << 20 | right: tokens are numbered below 2**20.
_ID_BITS = 20
_ID_MASK = (1 << _ID_BITS) - 1
MAX_TOKENS = 1 << _ID_BITS
# A heap entry is one integer, pair - (count << 40): the smallest is the most frequent pair, then the smallest pair.
_PAIR_BITS = 2 * _ID_BITS
_PAIR_MASK = (1 << _PAIR_BITS) - 1
# Up to this many positions a merge runs in plain Python (measured: 30 to 80 are equally good).
_FEW = 48
_PROGRESS_EVERY = 256

Positions = list[int] | npt.NDArray[np.int32]


def train(
    word_counts: Mapping[str, int], num_merges: int, on_progress: Callable[[int, int], None] | None = None
) -> list[Pair]:
    """The first `num_merges` merges, or fewer where no pair is left; merge i makes token 256 + i.

    `on_progress(done, num_merges)` is called now and then. Raises ValueError for more than 2**20 tokens.
    """
    if NUM_BYTES + num_merges > MAX_TOKENS:
        raise ValueError(f"at most {MAX_TOKENS - NUM_BYTES} merges can be learned, not {num_merges}")
    with _no_garbage_collection():
        state = _State(word_counts, num_merges)
        while len(state.merges) < num_merges and state.merge_best():
            if on_progress and len(state.merges) % _PROGRESS_EVERY == 0:
                on_progress(len(state.merges), num_merges)
    return state.merges


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Training makes many small objects and no cycles; collecting in between costs time and finds nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _State:
    """The words' cells, and each pair's count, positions and heap entry."""

    def __init__(self, word_counts: Mapping[str, int], num_merges: int) -> None:
        self.merges: list[Pair] = []
        self.lengths = [1] * NUM_BYTES  # bytes a token
        self._lengths_array = np.ones(NUM_BYTES + num_merges, dtype=np.int32)
        words = [word_bytes(word) for word in word_counts]
        sizes = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        separators = np.concatenate(([0], np.cumsum(sizes + 1)))
        num_cells = int(separators[-1]) + 1
        # array.array for the plain path (its items are faster to reach than NumPy's), NumPy views of the same memory.
        self.cells = array.array("i", bytes(4 * num_cells))
        self.weights = array.array("q", bytes(8 * num_cells))
        self._cells_array = np.frombuffer(self.cells, dtype=np.int32)
        self._weights_array = np.frombuffer(self.weights, dtype=np.int64)
        is_byte = np.ones(num_cells, dtype=bool)
        is_byte[separators] = False
        self._cells_array[separators] = _SEPARATOR
        self._cells_array[is_byte] = BYTE_TO_ID_ARRAY[np.frombuffer(b"".join(words), dtype=np.uint8)]
        counts = np.fromiter(word_counts.values(), dtype=np.int64, count=len(words))
        self._weights_array[1:] = np.repeat(counts, sizes + 1)
        self.counts: dict[int, int] = {}
        self.positions: dict[int, Positions] = {}
        self.heap: list[int] = []
        self._find_byte_pairs()

    def _find_byte_pairs(self) -> None:
        left, right = self._cells_array[:-1], self._cells_array[1:]
        positions = np.flatnonzero((left >= 0) & (right >= 0)).astype(np.int32)
        if not len(positions):
            return
        # Two byte ids fit 16 bits, for which NumPy's stable sort is a radix sort.
        keys = (left[positions] * NUM_BYTES + right[positions]).astype(np.uint16)
        order = np.argsort(keys, kind="stable")
        keys, positions = keys[order].astype(np.int64), positions[order]
        pairs = (keys // NUM_BYTES) << _ID_BITS | keys % NUM_BYTES
        self._add_pairs(pairs, positions, self._weights_array[positions])

    def _add_pairs(
        self, pairs: npt.NDArray[np.int64], positions: npt.NDArray[np.int32], weights: npt.NDArray[np.int64]
    ) -> tuple[list[int], list[int]]:
        """Enter new pairs, given once for each occurrence and sorted. Returns the pairs and their counts."""
        starts = np.flatnonzero(np.concatenate(([True], pairs[1:] != pairs[:-1])))
        names: list[int] = pairs[starts].tolist()
        counts: list[int] = np.add.reduceat(weights, starts).tolist()
        bounds: list[int] = [*starts.tolist(), len(positions)]
        self.counts.update(zip(names, counts, strict=True))
        for index, pair in enumerate(names):
            self.positions[pair] = positions[bounds[index] : bounds[index + 1]]
            heapq.heappush(self.heap, pair - (counts[index] << _PAIR_BITS))
        return names, counts

    def merge_best(self) -> bool:
        """Make one token of the most frequent pair. False where no pair is left."""
        while self.heap:
            entry = heapq.heappop(self.heap)
            pair = entry & _PAIR_MASK
            count = self.counts[pair]
            current = pair - (count << _PAIR_BITS)
            if current == entry:
                break
            if count:
                heapq.heappush(self.heap, current)
        else:
            return False
        left, right = pair >> _ID_BITS, pair & _ID_MASK
        self._lengths_array[len(self.lengths)] = self.lengths[left] + self.lengths[right]
        self.lengths.append(self.lengths[left] + self.lengths[right])
        self.merges.append((left, right))
        positions = self.positions.pop(pair)
        if len(positions) <= _FEW:
            self._merge_few(left, right, positions if isinstance(positions, list) else positions.tolist())
        else:
            self._merge_many(left, right, np.asarray(positions, dtype=np.int32))
        self.counts[pair] = 0
        return True

    def _merge_few(self, left: int, right: int, positions: Sequence[int]) -> None:
        """Merge at the given positions (ascending), one after the other."""
        cells, weights, lengths = self.cells, self.weights, self.lengths
        new = len(lengths) - 1
        step, size = lengths[left], lengths[new]
        merged = []
        for start in positions:
            if cells[start] == left and cells[start + step] == right:
                cells[start] = new
                cells[start + step] = _DEAD
                cells[start + size - 1] = new
                merged.append(start)
        counts: dict[int, int] = {}
        places: dict[int, list[int]] = {}
        shift = new << _ID_BITS
        for start in merged:
            before, after = cells[start - 1], cells[start + size]
            weight = weights[start]
            # Where the token before was made just now, that pair is counted from its side.
            if before >= 0 and before != new:
                pair = before << _ID_BITS | new
                if pair in counts:
                    counts[pair] += weight
                    places[pair].append(start - lengths[before])
                else:
                    counts[pair] = weight
                    places[pair] = [start - lengths[before]]
            if after >= 0:
                pair = shift | after
                if pair in counts:
                    counts[pair] += weight
                    places[pair].append(start)
                else:
                    counts[pair] = weight
                    places[pair] = [start]
        self.positions.update(places)
        for pair, count in counts.items():
            heapq.heappush(self.heap, pair - (count << _PAIR_BITS))
        self.counts.update(counts)
        self._take_from_old(left, right, new, counts.items())

    def _merge_many(self, left: int, right: int, positions: npt.NDArray[np.int32]) -> None:
        """Merge at the given positions (ascending), all at once."""
        cells, new = self._cells_array, len(self.lengths) - 1
        step, size = self.lengths[left], self.lengths[new]
        starts = positions[cells[positions] == left]
        starts = starts[cells[starts + step] == right]
        if left == right:
            starts = _every_other(starts, step)
        cells[starts] = new
        cells[starts + step] = _DEAD
        cells[starts + (size - 1)] = new
        before, after = cells[starts - 1], cells[starts + size]
        has_before, has_after = (before >= 0) & (before != new), after >= 0
        before, after = before[has_before], after[has_after]
        starts_before, starts_after = starts[has_before], starts[has_after]
        pairs = np.concatenate((before.astype(np.int64) << _ID_BITS | new, new << _ID_BITS | after.astype(np.int64)))
        if not len(pairs):
            return
        order = np.argsort(pairs, kind="stable")
        places = np.concatenate((starts_before - self._lengths_array[before], starts_after))[order]
        names, counts = self._add_pairs(pairs[order], places, self._weights_array[places])
        self._take_from_old(left, right, new, zip(names, counts, strict=True))

    def _take_from_old(self, left: int, right: int, new: int, pairs: Iterable[tuple[int, int]]) -> None:
        """Each new pair (x, new) took the place of (x, left), each (new, y) that of (right, y).

        Two new tokens side by side took the place of (right, left).
        """
        counts = self.counts
        for pair, count in pairs:
            before, after = pair >> _ID_BITS, pair & _ID_MASK
            if before != new:
                counts[before << _ID_BITS | left] -= count
            else:
                counts[right << _ID_BITS | (left if after == new else after)] -= count


def _every_other(starts: npt.NDArray[np.int32], step: int) -> npt.NDArray[np.int32]:
    """Of the occurrences of a token beside itself, those that merge: in each run the first, the third, and so on."""
    index = np.arange(len(starts))
    begins = np.concatenate(([True], starts[1:] != starts[:-1] + step))
    run_start = np.maximum.accumulate(np.where(begins, index, 0))
    every_other: npt.NDArray[np.int32] = starts[(index - run_start) % 2 == 0]
    return every_other
