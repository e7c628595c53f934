"""What training takes a step on: a batch of inputs and targets, or of pairs; and sequences padded to one length.

Legend: B rows of a batch, T positions of a row, S of a source. Arrays are NumPy int64; the training side
turns them into tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from llm_journey.core.errors import BadInputError, unknown_name

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# A target with this value adds nothing to the loss: the default `ignore_index` of PyTorch's cross-entropy.
IGNORED = -100


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs and the token that follows each of them.

    `segments` numbers the documents inside each row (attention must not cross from one to another), and `positions`
    counts from 0 inside each; both are None where a row is one running text.
    """

    inputs: Int64Array  # (B, T)
    targets: Int64Array  # (B, T), IGNORED where there is nothing to predict
    segments: Int64Array | None = None  # (B, T)
    positions: Int64Array | None = None  # (B, T)

    def num_targets(self) -> int:
        """Targets that count towards the loss."""
        return int(np.count_nonzero(self.targets != IGNORED))

    def num_tokens(self) -> int:
        """Tokens that the batch spends of a budget: here each target is one."""
        return self.num_targets()


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Sources to read, and targets to write: `inputs` is the target shifted right by a begin token."""

    source: Int64Array  # (B, S)
    source_mask: BoolArray  # (B, S), True at real tokens
    inputs: Int64Array  # (B, T)
    targets: Int64Array  # (B, T), IGNORED where there is nothing to predict

    def num_targets(self) -> int:
        """Targets that count towards the loss."""
        return int(np.count_nonzero(self.targets != IGNORED))

    def num_tokens(self) -> int:
        """Tokens read and written, padding not counted."""
        return int(np.count_nonzero(self.source_mask)) + self.num_targets()


def from_windows(windows: Int64Array) -> Batch:
    """Windows (B, T + 1) of running text as a batch: position t's target is the token at t + 1."""
    return Batch(np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:]))


def pad_batch(
    sequences: Sequence[Sequence[int] | Int64Array],
    *,
    pad_id: int,
    length: int | None = None,
    side: Literal["right", "left"] = "right",
) -> tuple[Int64Array, BoolArray]:
    """Sequences laid into one array: (ids (B, T), mask (B, T), True where a token is real).

    T is `length`, or the longest sequence's. `side` says where the padding goes: right for training, left for
    generation, where every row must end in its newest token. Raises BadInputError for no sequence, an unknown side,
    and a sequence longer than `length` (naming both lengths; nothing is ever cut in silence).
    """
    if not len(sequences):
        raise BadInputError("no sequence to pad; give at least one")
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    longest = int(lengths.max())
    width = longest if length is None else length
    if longest > width:
        raise BadInputError(f"a sequence of {longest} tokens does not fit the length {width}; shorten it or raise that")
    match side:
        case "right":
            mask = np.arange(width) < lengths[:, None]
        case "left":
            mask = np.arange(width) >= width - lengths[:, None]
        case _:
            raise unknown_name("padding side", side, ("right", "left"))
    ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    ids[mask] = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences])
    return ids, mask


def pad_documents(
    documents: Sequence[Int64Array], *, pad_id: int, start_id: int | None = None, length: int | None = None
) -> Batch:
    """One document a row, padded on the right; the padding's targets are IGNORED.

    With `start_id`, that token stands before each document, so that its first token is a target too; without it a
    document of n tokens gives n - 1 targets. `length` is T. Raises BadInputError as `pad_batch` does.
    """
    before = [] if start_id is None else [start_id]
    whole = [np.concatenate([np.array(before, dtype=np.int64), document]) for document in documents]
    inputs, mask = pad_batch([document[:-1] for document in whole], pad_id=pad_id, length=length)
    targets = np.full_like(inputs, IGNORED)
    targets[mask] = np.concatenate([document[1:] for document in whole])
    return Batch(inputs, targets)


def pad_pairs(sources: Sequence[Int64Array], targets: Sequence[Int64Array], *, begin_id: int, pad_id: int) -> PairBatch:
    """One pair a row, padded on the right. Each target ends as it shall end (in the end token, as a rule).

    The decoder reads `begin_id` first, so that every token of the target is one to predict.
    """
    source, source_mask = pad_batch(sources, pad_id=pad_id)
    written = pad_documents(targets, pad_id=pad_id, start_id=begin_id)
    return PairBatch(source=source, source_mask=source_mask, inputs=written.inputs, targets=written.targets)
