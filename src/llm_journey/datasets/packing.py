"""Pack whole documents into rows, so that neither attention nor a target crosses from one document to another.

Best-fit packing as in Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (section 3): the longest
document first, each into the row with the least room that still holds it. A document that fits a row is never cut; a
longer one is cut into pieces that share one token, so that every token stays a target. First-fit (the first row with
room, documents in the order given) is the plain alternative.

Legend: R or B rows, T positions of a row (the context).
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from llm_journey.core.errors import BadInputError, unknown_name
from llm_journey.datasets.batching import IGNORED, Batch, Int64Array
from llm_journey.datasets.position import check_process, read_state
from llm_journey.datasets.shards import TokenShards

Method = Literal["best_fit", "first_fit"]
_GROUP_DOCUMENTS = 4096


@dataclass(frozen=True)
class Piece:
    """Targets `start` to `stop` (exclusive) of document number `document`: stop - start positions of a row."""

    document: int
    start: int
    stop: int


def plan_rows(num_targets: Sequence[int], context: int, *, method: Method = "best_fit") -> list[list[Piece]]:
    """Which piece of which document goes into which row, from the number of targets of each document alone.

    A document of more than `context` targets is cut into full rows and a rest; one of none takes no room. Raises
    BadInputError for a context below 1 or an unknown method.
    """
    if context < 1:
        raise BadInputError(f"context {context} must be at least 1")
    pieces = [
        Piece(document, start, min(start + context, count))
        for document, count in enumerate(num_targets)
        for start in range(0, count, context)
    ]
    match method:
        case "best_fit":
            return _best_fit(pieces, context)
        case "first_fit":
            return _first_fit(pieces, context)
        case _:
            raise unknown_name("packing method", method, ("best_fit", "first_fit"))


def pack(
    documents: Sequence[Int64Array],
    context: int,
    *,
    pad_id: int,
    start_id: int | None = None,
    method: Method = "best_fit",
) -> Batch:
    """Documents packed into rows (R, T) with `segments` and `positions` that begin anew with each document.

    With `start_id`, that token stands before each document, so that every token of every document is a target
    exactly once; without it, each but the first of its document is. Room that stays empty is filled with `pad_id` as
    a segment of its own whose targets are IGNORED. Raises BadInputError as `plan_rows` does, and for no targets.
    """
    whole = [_with_start(document, start_id) for document in documents]
    rows = plan_rows([max(len(document) - 1, 0) for document in whole], context, method=method)
    if not rows:
        raise BadInputError("nothing to pack: the documents have no token to predict; give longer ones")
    return _fill(rows, whole, context, pad_id)


def fill_fraction(batch: Batch) -> float:
    """The part of the positions that carry a target: 1.0 is a packing without waste."""
    return batch.num_targets() / batch.targets.size


class PackedLoader:
    """Packed batches from token shards, with the same contract as `TokenLoader`.

    Every epoch shuffles the documents by (seed, epoch), packs them in groups of 4,096 (best fit) and shuffles each
    group's rows. The shards' end token stands before each document, so every token is a target once an epoch. Rows
    run on over the end of an epoch. A step of all W processes takes B * W consecutive rows, process `rank` the
    rank-th B of them. Memory: one group of documents.
    """

    def __init__(
        self, shards: TokenShards, *, batch_size: int, context: int, seed: int, world_size: int = 1, rank: int = 0
    ) -> None:
        check_process(batch_size, context, world_size, rank)
        self._shards, self._context, self._seed = shards, context, seed
        self._batch_size, self._world_size, self._rank = batch_size, world_size, rank
        self._lengths = np.diff(np.append(shards.document_starts, shards.num_tokens))
        self._num_groups = -(-shards.num_documents // _GROUP_DOCUMENTS)
        self._epoch, self._group, self._row = 0, 0, 0
        self._documents_in_order = lru_cache(maxsize=1)(self._shuffle_documents)
        self._rows_of = lru_cache(maxsize=1)(self._plan_group)

    @property
    def epoch(self) -> float:
        """Passes over the data so far, of all processes together: 1.5 is half-way through the second."""
        inside_group = self._row / len(self._rows_of(self._epoch, self._group)) if self._row else 0.0
        return self._epoch + (self._group + inside_group) / self._num_groups

    def next_batch(self) -> Batch:
        """This process's next B packed rows."""
        rows = [self._next_row() for _ in range(self._batch_size * self._world_size)]
        first = self._rank * self._batch_size
        mine = rows[first : first + self._batch_size]
        numbers = sorted({piece.document for row in mine for piece in row})
        place = {number: index for index, number in enumerate(numbers)}
        documents = [_with_start(self._shards.document(number), self._shards.end_id) for number in numbers]
        renumbered = [[Piece(place[piece.document], piece.start, piece.stop) for piece in row] for row in mine]
        return _fill(renumbered, documents, self._context, self._shards.end_id)

    def state(self) -> dict[str, Any]:
        """The position, to be stored with a checkpoint: small, plain JSON, the same on every process."""
        return {**self._identity(), "epoch": self._epoch, "group": self._group, "row": self._row}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken; the batch size and the number of processes may differ from then.

        Raises BadInputError for a state of other data (naming both fingerprints), seed or context, or a damaged one.
        """
        epoch, group, row = read_state(state, self._identity(), ("epoch", "group", "row"))
        if group >= self._num_groups or row > len(self._rows_of(epoch, group)):
            raise BadInputError(f"the saved position (group {group}, row {row}) lies outside the data; it is damaged")
        self._epoch, self._group, self._row = epoch, group, row

    def _identity(self) -> dict[str, Any]:
        return {
            "kind": "packed",
            "fingerprint": self._shards.fingerprint,
            "seed": self._seed,
            "context": self._context,
        }

    def _next_row(self) -> list[Piece]:
        rows = self._rows_of(self._epoch, self._group)
        while self._row == len(rows):
            self._group, self._row = self._group + 1, 0
            if self._group == self._num_groups:
                self._epoch, self._group = self._epoch + 1, 0
            rows = self._rows_of(self._epoch, self._group)
        self._row += 1
        return rows[self._row - 1]

    def _shuffle_documents(self, epoch: int) -> Int64Array:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._lengths))

    def _plan_group(self, epoch: int, group: int) -> list[list[Piece]]:
        """The rows of one group of an epoch's shuffled documents, in shuffled order; pieces name shard documents."""
        start = group * _GROUP_DOCUMENTS
        numbers = self._documents_in_order(epoch)[start : start + _GROUP_DOCUMENTS]
        rows = plan_rows(self._lengths[numbers].tolist(), self._context)
        order = np.random.default_rng([self._seed, epoch, group]).permutation(len(rows))
        names = numbers.tolist()
        return [[Piece(names[piece.document], piece.start, piece.stop) for piece in rows[index]] for index in order]


def _with_start(document: Int64Array, start_id: int | None) -> Int64Array:
    document = np.asarray(document, dtype=np.int64)
    return document if start_id is None else np.concatenate([np.array([start_id], dtype=np.int64), document])


def _best_fit(pieces: list[Piece], context: int) -> list[list[Piece]]:
    rows: list[list[Piece]] = []
    rows_with_room: dict[int, list[int]] = {}  # room -> rows that have exactly it
    rooms: list[int] = []  # the keys of rows_with_room, ascending
    for piece in sorted(pieces, key=lambda piece: piece.start - piece.stop):
        length = piece.stop - piece.start
        place = bisect.bisect_left(rooms, length)
        if place == len(rooms):
            row, room = len(rows), context
            rows.append([])
        else:
            room = rooms[place]
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                del rows_with_room[room], rooms[place]
        rows[row].append(piece)
        if left := room - length:
            if left not in rows_with_room:
                rows_with_room[left] = []
                bisect.insort(rooms, left)
            rows_with_room[left].append(row)
    return rows


def _first_fit(pieces: list[Piece], context: int) -> list[list[Piece]]:
    rows: list[list[Piece]] = []
    rooms = np.empty(len(pieces), dtype=np.int64)
    for piece in pieces:
        length = piece.stop - piece.start
        fitting = rooms[: len(rows)] >= length
        row = int(fitting.argmax()) if fitting.any() else len(rows)
        if row == len(rows):
            rows.append([])
            rooms[row] = context
        rows[row].append(piece)
        rooms[row] -= length
    return rows


def _fill(rows: list[list[Piece]], documents: Sequence[Int64Array], context: int, pad_id: int) -> Batch:
    shape = (len(rows), context)
    inputs = np.full(shape, pad_id, dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    segments = np.empty(shape, dtype=np.int64)
    positions = np.empty(shape, dtype=np.int64)
    count = np.arange(context)
    for row, segment, begin, piece in _places(rows):
        length = context - begin if piece is None else piece.stop - piece.start
        span = slice(begin, begin + length)
        if piece is not None:
            document = documents[piece.document]
            inputs[row, span] = document[piece.start : piece.stop]
            targets[row, span] = document[piece.start + 1 : piece.stop + 1]
        segments[row, span] = segment
        positions[row, span] = count[:length]
    return Batch(inputs, targets, segments, positions)


def _places(rows: list[list[Piece]]) -> Iterator[tuple[int, int, int, Piece | None]]:
    """(row, segment, first position, piece) of every piece, then of each row's empty room (no piece)."""
    for row, pieces in enumerate(rows):
        begin = 0
        for segment, piece in enumerate(pieces):
            yield row, segment, begin, piece
            begin += piece.stop - piece.start
        yield row, len(pieces), begin, None
