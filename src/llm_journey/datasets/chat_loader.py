"""Chats fed to training: every token that the assistant wrote is a target once an epoch, and no other is.

On disk a split of chats is two splits of token shards whose n-th documents belong together: the ids, and for each id 1
where it is trained, else 0. Rows are padded or packed:

    padded   B examples; those of like length share a batch, padded to its longest, or joined where that is less
    packed   several examples a row of the whole context, none of which sees another (datasets.packing)

The order follows from the seed and the epoch alone, so that a position is three small numbers. Legend: B rows of a
batch, T positions of a row.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from llm_journey.core.errors import BadInputError, unknown_name
from llm_journey.datasets.batching import IGNORED, Batch, Int64Array, pad_batch
from llm_journey.datasets.packing import Piece, pack, plan_rows
from llm_journey.datasets.position import check_process, read_state
from llm_journey.datasets.shards import TokenShards, write_documents

Rows = Literal["padded", "packed"]
_SHARES = (1, 2, 3, 4, 8)  # the longest example's lengths that a row of several may have
_ATTENDED_AS_ONE = 750  # positions of a row that cost as much to look at as one costs to compute, about
_POOL = 64  # batches whose examples are sorted by length together


class ChatShards:
    """One split's examples. `ids` and `trained` as they are on disk, end tokens behind each document."""

    def __init__(self, ids: TokenShards, trained: TokenShards) -> None:
        if not np.array_equal(ids.document_lengths(), trained.document_lengths()):
            raise BadInputError(f"{ids.directory}: the masks of {ids.split} are of other chats; prepare the data again")
        self.ids, self.trained = ids, trained
        self.lengths: Int64Array = ids.document_lengths() - 1

    @classmethod
    def open(cls, directory: Path, split: str, *, verify: bool = False) -> Self:
        """Open a split that `write_chats` wrote. Raises as `TokenShards.open` does."""
        ids, trained = (TokenShards.open(directory, name, verify=verify) for name in (split, f"{split}-trained"))
        return cls(ids, trained)

    @property
    def fingerprint(self) -> str:
        """What identifies ids and masks together."""
        return f"{self.ids.fingerprint[:32]}{self.trained.fingerprint[:32]}"

    @property
    def num_examples(self) -> int:
        return self.ids.num_documents

    @property
    def num_trained(self) -> int:
        """Tokens that are trained."""
        return sum(int(self.example(number)[1].sum()) for number in range(self.num_examples))

    def example(self, number: int) -> tuple[Int64Array, Int64Array]:
        """(ids, trained) of one example, each (length,)."""
        return self.ids.document(number)[:-1], self.trained.document(number)[:-1]


def write_chats(
    examples: Iterable[tuple[Sequence[int], Sequence[bool]]],
    directory: Path,
    *,
    split: str,
    vocab_size: int,
    end_id: int,
    num_bytes: Callable[[Sequence[int]], int] = lambda _: 0,
) -> None:
    """Write examples (ids, trained) as a split. They are kept in memory meanwhile; raises as `write_documents` does.

    num_bytes: of the text that ids stand for, where somebody wants to know.
    """
    kept = [(list(ids), [int(each) for each in trained]) for ids, trained in examples]
    for name, index, size, end in ((split, 0, vocab_size, end_id), (f"{split}-trained", 1, 2, 0)):
        documents = ((example[index], 0 if index else num_bytes(example[0])) for example in kept)
        write_documents(documents, directory, split=name, vocab_size=size, end_id=end)


class ChatLoader:
    """Batches of chats without end, epoch after epoch, with the same contract as `TokenLoader`.

    Raises BadInputError for an example of more than T + 1 tokens: whether it is cut or left out is decided before.
    """

    def __init__(self, shards: ChatShards, *, batch_size: int, context: int, seed: int, rows: Rows = "padded") -> None:
        check_process(batch_size, context, 1, 0)
        if rows not in ("padded", "packed"):
            raise unknown_name("rows", rows, ("padded", "packed"))
        if int(shards.lengths.max()) > context + 1:
            raise BadInputError(
                f"a chat of {int(shards.lengths.max())} tokens does not fit the context of {context}; leave it out"
            )
        self._shards, self._batch_size, self._context, self._seed, self._rows = shards, batch_size, context, seed, rows
        self._epoch, self._batch = 0, 0
        self._plan = lru_cache(maxsize=1)(self._plan_epoch)

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self._epoch + self._batch / len(self._plan(self._epoch))

    def next_batch(self) -> Batch:
        """The next rows; a batch at the end of an epoch may have fewer than B."""
        batches = self._plan(self._epoch)
        chosen = batches[self._batch]
        self._batch += 1
        if self._batch == len(batches):
            self._epoch, self._batch = self._epoch + 1, 0
        examples, pad_id = [[self._shards.example(number) for number in row] for row in chosen], self._shards.ids.end_id
        if self._rows == "packed":
            return _stacked([_row(row, self._context, pad_id) for row in examples])
        return join_examples([row[0] for row in examples], context=self._context, pad_id=pad_id)

    def state(self) -> dict[str, Any]:
        """The position, to be stored with a checkpoint."""
        return {**self._identity(), "epoch": self._epoch, "batch": self._batch}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken. Raises BadInputError for a state of other data or settings."""
        epoch, batch = read_state(state, self._identity(), ("epoch", "batch"))
        if batch >= len(self._plan(epoch)):
            raise BadInputError(f"the saved position (batch {batch}) lies outside the data; it is damaged")
        self._epoch, self._batch = epoch, batch

    def _identity(self) -> dict[str, Any]:
        return {
            "kind": f"chats, {self._rows}",
            "fingerprint": self._shards.fingerprint,
            "seed": self._seed,
            "context": self._context,
            "batch_size": self._batch_size,
        }

    def _plan_epoch(self, epoch: int) -> list[list[list[int]]]:
        """The batches of an epoch: for each its rows, for each row the numbers of its examples."""
        generator = np.random.default_rng([self._seed, epoch])
        order = generator.permutation(self._shards.num_examples)
        rows = self._packed_rows(order) if self._rows == "packed" else self._sorted_rows(order)
        batches = [rows[start : start + self._batch_size] for start in range(0, len(rows), self._batch_size)]
        return [batches[index] for index in generator.permutation(len(batches))]

    def _sorted_rows(self, order: Int64Array) -> list[list[int]]:
        size = _POOL * self._batch_size
        pools = (order[start : start + size] for start in range(0, len(order), size))
        return [[int(each)] for pool in pools for each in pool[np.argsort(self._shards.lengths[pool], kind="stable")]]

    def _packed_rows(self, order: Int64Array) -> list[list[int]]:
        planned = plan_rows((self._shards.lengths[order] - 1).tolist(), self._context)
        return [[int(order[piece.document]) for piece in row] for row in planned]


def all_chats(shards: ChatShards, *, context: int, most_tokens: int) -> Iterator[Batch]:
    """Every example once, those of like length together; a batch is one, or up to so many positions."""
    numbers = np.argsort(shards.lengths, kind="stable")
    begin = 0
    while begin < len(numbers):
        end = begin + 1
        while end < len(numbers) and (end - begin + 1) * int(shards.lengths[numbers[end]]) <= most_tokens:
            end += 1
        examples = [shards.example(int(number)) for number in numbers[begin:end]]
        yield join_examples(examples, context=context, pad_id=shards.ids.end_id)
        begin = end


def join_examples(examples: Sequence[tuple[Int64Array, Int64Array]], *, context: int, pad_id: int) -> Batch:
    """A batch of whole examples (ids, trained) in few positions: short ones share a row where that costs less than
    padding each of them to the longest, and none sees another. context: the most positions of a row."""
    lengths = [len(ids) - 1 for ids, _ in examples]
    plans = [
        plan_rows(lengths, max(lengths) * share) for share in _SHARES if share == 1 or max(lengths) * share <= context
    ]
    rows = min(plans, key=_cost)
    if len(rows) == len(examples):
        inputs, mask = pad_batch([ids[:-1] for ids, _ in examples], pad_id=pad_id)
        targets = np.full_like(inputs, IGNORED)
        targets[mask] = np.concatenate([_targets(ids, trained) for ids, trained in examples])
        return Batch(inputs, targets)
    longest = max(map(_room, rows))
    return _stacked([_row([examples[piece.document] for piece in row], longest, pad_id) for row in rows])


def _cost(rows: Sequence[Sequence[Piece]]) -> float:
    """Of computing rows, in positions: each is read once, and looks at those of its row."""
    longest = max(map(_room, rows))
    return len(rows) * longest * (1 + longest / _ATTENDED_AS_ONE)


def _room(row: Sequence[Piece]) -> int:
    return sum(piece.stop - piece.start for piece in row)


def _row(examples: Sequence[tuple[Int64Array, Int64Array]], context: int, pad_id: int) -> Batch:
    """One row (1, T) of whole examples, and what is trained of them."""
    row = pack([ids for ids, _ in examples], context, pad_id=pad_id)
    assert len(row.inputs) == 1
    order = plan_rows([len(ids) - 1 for ids, _ in examples], context)[0]
    targets = row.targets.copy()
    begin = 0
    for piece in order:
        end = begin + piece.stop
        targets[0, begin:end] = _targets(*examples[piece.document])
        begin = end
    return Batch(row.inputs, targets, row.segments, row.positions)


def _stacked(rows: Sequence[Batch]) -> Batch:
    parts = zip(*((b.inputs, b.targets, b.segments, b.positions) for b in rows), strict=True)
    inputs, targets, segments, positions = (np.concatenate(part) for part in parts)
    return Batch(inputs, targets, segments, positions)


def _targets(ids: Int64Array, trained: Int64Array) -> Int64Array:
    """(length - 1,): what follows each token, where it is trained."""
    return np.where(trained[1:] == 1, ids[1:], IGNORED)
