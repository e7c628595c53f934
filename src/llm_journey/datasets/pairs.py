"""Pairs of token sequences for an encoder-decoder: two token shards, document n of the one answering n of the other.

Endless and resumable as the loader of running text (loader): epoch after epoch, each in an order drawn from
(seed, epoch) alone. Rows of about the same length stand in one batch, so that little of it is padding.

Legend: B rows of a batch.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.batching import Int64Array, PairBatch, pad_pairs
from llm_journey.datasets.position import check_process, read_state
from llm_journey.datasets.shards import TokenShards

_BATCHES_SORTED_TOGETHER = 32


class PairLoader:
    """Batches of B pairs; sources and targets end in the shards' end token, which also begins and pads.

    Every epoch shuffles the pairs, sorts stretches of 32 batches by the source's length, and shuffles the batches. The
    last pairs of an epoch, fewer than B, are left out of it.
    """

    def __init__(self, sources: TokenShards, targets: TokenShards, *, batch_size: int, context: int, seed: int) -> None:
        check_process(batch_size, context, 1, 0)
        check_pairs(sources, targets, context)
        if batch_size > sources.num_documents:
            raise BadInputError(f"batch_size {batch_size} is more than the {sources.num_documents} pairs there are")
        self._sources, self._targets, self._batch_size, self._seed = sources, targets, batch_size, seed
        self._lengths = sources.document_lengths()
        self._batches_in_epoch = sources.num_documents // batch_size
        self._batches_done = 0
        self._epoch_order = lru_cache(maxsize=1)(self._draw_order)

    def next_batch(self) -> PairBatch:
        """The next B pairs."""
        epoch, place = divmod(self._batches_done, self._batches_in_epoch)
        self._batches_done += 1
        return read_pairs(self._sources, self._targets, self._epoch_order(epoch)[place])

    def state(self) -> dict[str, Any]:
        """The position, to be stored with a checkpoint."""
        return {**self._identity(), "batches_done": self._batches_done}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken. Raises BadInputError for a state of other data, seed or batch size."""
        self._batches_done = read_state(state, self._identity(), ("batches_done",))[0]

    def _identity(self) -> dict[str, Any]:
        return {
            "kind": "pairs",
            "fingerprint": self._sources.fingerprint,
            "targets": self._targets.fingerprint,
            "seed": self._seed,
            "batch_size": self._batch_size,
        }

    def _draw_order(self, epoch: int) -> Int64Array:
        """(batches of the epoch, B): which pairs stand in which batch."""
        generator = np.random.default_rng([self._seed, epoch])
        order = generator.permutation(len(self._lengths))[: self._batches_in_epoch * self._batch_size]
        stretch = _BATCHES_SORTED_TOGETHER * self._batch_size
        for start in range(0, len(order), stretch):
            part = order[start : start + stretch]
            order[start : start + stretch] = part[np.argsort(self._lengths[part], kind="stable")]
        batches = order.reshape(self._batches_in_epoch, self._batch_size)
        return batches[generator.permutation(self._batches_in_epoch)]


def read_pairs(sources: TokenShards, targets: TokenShards, numbers: Int64Array) -> PairBatch:
    """The pairs of these numbers as one batch."""
    chosen = numbers.tolist()
    return pad_pairs(
        [sources.document(number) for number in chosen],
        [targets.document(number) for number in chosen],
        begin_id=targets.end_id,
        pad_id=sources.end_id,
    )


def all_pairs(sources: TokenShards, targets: TokenShards, batch_size: int) -> Iterator[PairBatch]:
    """Every pair once, shortest source first, for evaluation; the last batch may be smaller."""
    order = np.argsort(sources.document_lengths(), kind="stable")
    for start in range(0, len(order), batch_size):
        yield read_pairs(sources, targets, order[start : start + batch_size])


def check_pairs(sources: TokenShards, targets: TokenShards, context: int) -> None:
    """Raises BadInputError where the two are no pairs, or one of them is longer than `context` tokens."""
    if sources.num_documents != targets.num_documents:
        raise BadInputError(
            f"{sources.num_documents} sources and {targets.num_documents} targets are no pairs; prepare the data again"
        )
    for what, shards in (("source", sources), ("target", targets)):
        longest = int(shards.document_lengths().max())
        if longest > context:
            raise BadInputError(
                f"the longest {what} of the {shards.split} split has {longest} tokens, the context is {context}; "
                "set model.context higher"
            )
