"""Feed token shards to training: deterministic, resumable at any batch, split between processes.

The loader's stream is endless: epoch after epoch, each in an order drawn from (seed, epoch) alone, without a gap in
between. What comes next follows from the shards, the seed and one number, the windows that all processes together
have taken. So a resumed run reads exactly what the uninterrupted one would have (accelerate#4071 and litgpt#1712 are
what goes wrong otherwise), also on another number of processes.

Legend: B rows of a batch, T positions of a row (the context), W processes.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from llm_journey.core.errors import BadInputError, unknown_name
from llm_journey.datasets.batching import IGNORED, Batch, Int64Array, from_windows
from llm_journey.datasets.position import check_process, read_state
from llm_journey.datasets.shards import TokenShards

Order = Literal["documents", "windows"]


class TokenLoader:
    """Batches of windows of T + 1 tokens, cut from shuffled text.

    order="documents": every epoch shuffles the documents and lays them end to end (each ends in the end token); a
    window's last token is the next one's first, and the stream runs on over the end of an epoch. So every token of
    every epoch is a target exactly once, save the very first token of the first epoch.

    order="windows": the shards' own row of tokens is cut into the floor((num_tokens - 1) / T) windows that fit; every
    epoch takes each exactly once, in shuffled order. The last (num_tokens - 1) mod T tokens are never seen.

    A step of all W processes takes B * W consecutive windows, process `rank` the rank-th B of them. Memory: two
    numbers a document (or one a window) for each of two epochs.
    """

    def __init__(
        self,
        shards: TokenShards,
        *,
        batch_size: int,
        context: int,
        seed: int,
        order: Order = "documents",
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        check_process(batch_size, context, world_size, rank)
        check_context(shards, context)
        if order not in ("documents", "windows"):
            raise unknown_name("order", order, ("documents", "windows"))
        self._shards, self._context, self._seed, self._order = shards, context, seed, order
        self._batch_size, self._world_size, self._rank = batch_size, world_size, rank
        self._windows_done = 0
        self._lengths = np.diff(np.append(shards.document_starts, shards.num_tokens))
        self._windows_in_epoch = (shards.num_tokens - 1) // context
        # A batch can lie across two epochs.
        self._epoch_order = lru_cache(maxsize=2)(self._draw_order)

    @property
    def epoch(self) -> float:
        """Passes over the data so far, of all processes together: 1.5 is half-way through the second."""
        if self._order == "windows":
            return self._windows_done / self._windows_in_epoch
        return self._windows_done * self._context / self._shards.num_tokens

    def next_batch(self) -> Batch:
        """This process's next B windows."""
        first = self._windows_done + self._rank * self._batch_size
        self._windows_done += self._batch_size * self._world_size
        if self._order == "windows":
            return from_windows(np.stack([self._window(first + row) for row in range(self._batch_size)]))
        start = first * self._context
        stream = self._stream(start, start + self._batch_size * self._context + 1)
        windows = np.lib.stride_tricks.sliding_window_view(stream, self._context + 1)[:: self._context]
        return from_windows(windows)

    def state(self) -> dict[str, Any]:
        """The position, to be stored with a checkpoint: small, plain JSON, the same on every process."""
        return {**self._identity(), "windows_done": self._windows_done}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken; the batch size and the number of processes may differ from then.

        Raises BadInputError for a state of other data (naming both fingerprints), seed, order or context.
        """
        self._windows_done = read_state(state, self._identity(), ("windows_done",))[0]

    def _identity(self) -> dict[str, Any]:
        return {
            "kind": "tokens",
            "fingerprint": self._shards.fingerprint,
            "seed": self._seed,
            "order": self._order,
            "context": self._context,
        }

    def _draw_order(self, epoch: int) -> tuple[Int64Array, Int64Array]:
        """The order of an epoch's documents or windows; for documents also where each ends in the epoch's text."""
        generator = np.random.default_rng([self._seed, epoch])
        if self._order == "windows":
            return generator.permutation(self._windows_in_epoch), np.empty(0, dtype=np.int64)
        order = generator.permutation(len(self._lengths))
        return order, np.cumsum(self._lengths[order])

    def _window(self, number: int) -> Int64Array:
        epoch, place = divmod(number, self._windows_in_epoch)
        start = int(self._epoch_order(epoch)[0][place]) * self._context
        return self._shards.read(start, start + self._context + 1)

    def _stream(self, start: int, stop: int) -> Int64Array:
        """Tokens `start` to `stop` (exclusive) of the endless text of shuffled epochs."""
        pieces: list[Int64Array] = []
        while start < stop:
            epoch, offset = divmod(start, self._shards.num_tokens)
            count = min(stop - start, self._shards.num_tokens - offset)
            pieces.extend(self._read_epoch(epoch, offset, offset + count))
            start += count
        return np.concatenate(pieces)

    def _read_epoch(self, epoch: int, start: int, stop: int) -> Iterator[Int64Array]:
        """The parts of documents that make up tokens `start` to `stop` (exclusive) of one epoch's text."""
        order, ends = self._epoch_order(epoch)
        first, last = np.searchsorted(ends, (start, stop - 1), side="right")
        documents, document_ends = order[first : last + 1], ends[first : last + 1]
        document_starts = document_ends - self._lengths[documents]
        shifts = self._shards.document_starts[documents] - document_starts
        from_tokens = np.maximum(document_starts, start) + shifts
        to_tokens = np.minimum(document_ends, stop) + shifts
        for from_token, to_token in zip(from_tokens.tolist(), to_tokens.tolist(), strict=True):
            yield self._shards.read(from_token, to_token)


def sequential_batches(shards: TokenShards, *, batch_size: int, context: int) -> Iterator[Batch]:
    """One pass over the shards in their own order, for evaluation: every token is a target exactly once.

    An end token stands before the first token, so that this is a target as well. The last window is filled up with
    end tokens whose targets are IGNORED; the last batch may have fewer than `batch_size` rows.
    """
    check_process(batch_size, context, 1, 0)
    step = batch_size * context
    for start in range(0, shards.num_tokens, step):
        targets = shards.read(start, min(start + step, shards.num_tokens))
        before = shards.end_id if start == 0 else int(shards.read(start - 1, start)[0])
        num_rows = -(-len(targets) // context)
        filled = np.full(num_rows * context, IGNORED, dtype=np.int64)
        filled[: len(targets)] = targets
        inputs = np.full(num_rows * context, shards.end_id, dtype=np.int64)
        inputs[0] = before
        inputs[1 : len(targets)] = targets[:-1]
        yield Batch(inputs.reshape(num_rows, context), filled.reshape(num_rows, context))


def check_context(shards: TokenShards, context: int) -> None:
    """Raises BadInputError where the data has no window of `context` tokens and a next one."""
    if shards.num_tokens < context + 1:
        raise BadInputError(
            f"the context of {context} tokens is longer than the data: the {shards.split} split has "
            f"{shards.num_tokens} tokens, and {context + 1} are needed; give more text or a shorter context"
        )
