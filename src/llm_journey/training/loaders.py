"""Where a run's batches come from: shards of prepared text, a stream that need not fit on a disk, pairs, chats.

A loader that corrupts text draws what it does to batch n from (seed, n) alone, so its position is that of the text
below it and one number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.batching import Batch, Int64Array, PairBatch, pad_pairs
from llm_journey.datasets.catalog import CATALOG, resolve
from llm_journey.datasets.chat_loader import ChatLoader, ChatShards, Rows
from llm_journey.datasets.corruption import MASK_TOKEN, MaskedBatch, corrupt_spans, mask_tokens, sentinel_tokens
from llm_journey.datasets.held_out import NOTHING, HeldOut
from llm_journey.datasets.loader import TokenLoader, check_context
from llm_journey.datasets.packing import PackedLoader
from llm_journey.datasets.pairs import PairLoader
from llm_journey.datasets.position import read_state
from llm_journey.datasets.shards import TokenShards
from llm_journey.datasets.streaming import StreamingLoader
from llm_journey.text.cleaning import clean
from llm_journey.tokenizer import Tokenizer
from llm_journey.training.recipe import Recipe

_DRAWS = 0xC0  # keeps a corrupting loader's random numbers apart from those of the order of the text


class Loader(Protocol):
    """Batches without end. `state` is its position as JSON values; `restore` goes on from there."""

    def next_batch(self) -> Batch | PairBatch: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class TextLoader(Protocol):
    """A Loader of running text: windows of next-token targets."""

    def next_batch(self) -> Batch: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Masking:
    """What `mask_tokens` needs to know of a vocabulary."""

    mask_id: int
    replacements: Int64Array
    special_ids: tuple[int, ...]
    rate: float

    @classmethod
    def of(cls, tokenizer: Tokenizer, rate: float) -> "Masking":
        """Special tokens are neither hidden nor put in place of others. BadInputError without a mask token."""
        if MASK_TOKEN not in tokenizer.special_tokens:
            raise BadInputError(f"this tokenizer has no {MASK_TOKEN}; add it to tokenizer.special_tokens")
        replacements = np.array(sorted(tokenizer.vocabulary.values()), dtype=np.int64)
        special = tuple(sorted(tokenizer.special_tokens.values()))
        return cls(tokenizer.special_tokens[MASK_TOKEN], replacements, special, rate)

    def apply(self, ids_bt: Int64Array, generator: np.random.Generator) -> MaskedBatch:
        """Hide tokens of each row."""
        return mask_tokens(
            ids_bt,
            generator,
            mask_id=self.mask_id,
            replacements=self.replacements,
            eligible_bt=~np.isin(ids_bt, self.special_ids),
            rate=self.rate,
        )


class MaskingLoader:
    """Windows of running text with tokens hidden in them (Devlin et al. 2019); anew in every epoch."""

    def __init__(self, inner: TextLoader, masking: Masking, seed: int) -> None:
        self._inner, self._masking, self._seed, self._batches_done = inner, masking, seed, 0

    def next_batch(self) -> MaskedBatch:
        """The next windows. A window's tokens are its inputs; the one token behind it belongs to the next window."""
        generator = np.random.default_rng([self._seed, _DRAWS, self._batches_done])
        self._batches_done += 1
        return self._masking.apply(self._inner.next_batch().inputs, generator)

    def state(self) -> dict[str, Any]:
        """The position, to be stored with a checkpoint."""
        return {**self._identity(), "batches_done": self._batches_done, "text": self._inner.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken. Raises BadInputError for a state of other data or settings."""
        (batches_done,) = read_state(state, self._identity(), ("batches_done",))
        self._inner.restore(state["text"])
        self._batches_done = batches_done

    def _identity(self) -> dict[str, Any]:
        return {"kind": "masked", "rate": self._masking.rate, "seed": self._seed}


class MixedLoader:
    """Batches whose first rows come from one loader, the others from another."""

    def __init__(self, first: TextLoader, second: TextLoader) -> None:
        self._loaders = (first, second)

    def next_batch(self) -> Batch:
        """The next rows of both."""
        parts = [loader.next_batch() for loader in self._loaders]
        return Batch(
            np.concatenate([part.inputs for part in parts]),
            np.concatenate([part.targets for part in parts]),
            _joined([part.segments for part in parts]),
            _joined([part.positions for part in parts]),
        )

    def state(self) -> dict[str, Any]:
        """The positions, to be stored with a checkpoint."""
        return {"kind": "mixed", "loaders": [loader.state() for loader in self._loaders]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken. Raises BadInputError for a state of other data or settings."""
        found = state.get("loaders")
        if state.get("kind") != "mixed" or not isinstance(found, list) or len(found) != len(self._loaders):
            raise BadInputError("the saved position is that of another loader; start a new run")
        for loader, each in zip(self._loaders, found, strict=True):
            loader.restore(each)


def _joined(arrays: Sequence[Int64Array | None]) -> Int64Array | None:
    found = [array for array in arrays if array is not None]
    return np.concatenate(found) if len(found) == len(arrays) else None


class SpanLoader:
    """Windows of running text as pairs: the text without some spans, and the spans (Raffel et al. 2020)."""

    def __init__(self, inner: TextLoader, sentinels: Sequence[int], end_id: int, rate: float, seed: int) -> None:
        self._inner, self._sentinels, self._end_id = inner, tuple(sentinels), end_id
        self._rate, self._seed, self._batches_done = rate, seed, 0

    def next_batch(self) -> PairBatch:
        """The next windows; each target ends in the end token."""
        generator = np.random.default_rng([self._seed, _DRAWS, self._batches_done])
        self._batches_done += 1
        return span_pairs(
            self._inner.next_batch().inputs, generator, sentinels=self._sentinels, end_id=self._end_id, rate=self._rate
        )

    def state(self) -> dict[str, Any]:
        """The position, to be stored with a checkpoint."""
        return {**self._identity(), "batches_done": self._batches_done, "text": self._inner.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken. Raises BadInputError for a state of other data or settings."""
        (batches_done,) = read_state(state, self._identity(), ("batches_done",))
        self._inner.restore(state["text"])
        self._batches_done = batches_done

    def _identity(self) -> dict[str, Any]:
        return {"kind": "span", "rate": self._rate, "seed": self._seed}


def span_pairs(
    ids_bt: Int64Array, generator: np.random.Generator, *, sentinels: Sequence[int], end_id: int, rate: float
) -> PairBatch:
    """Rows of text as pairs by span corruption, the end token behind each source and each target."""
    pairs = [corrupt_spans(row, generator, sentinels=sentinels, rate=rate) for row in ids_bt]
    sources, targets = ([np.append(ids, end_id) for ids in side] for side in zip(*pairs, strict=True))
    return pad_pairs(sources, targets, begin_id=end_id, pad_id=end_id)


def sentinel_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The sentinels that a vocabulary has, in their order. Raises BadInputError where it has fewer than two."""
    names = [name for name in sentinel_tokens(len(tokenizer.special_tokens)) if name in tokenizer.special_tokens]
    if len(names) < 2:
        raise BadInputError(
            "this tokenizer has no sentinels; add <extra_id_0>, <extra_id_1>, ... to its special_tokens"
        )
    return tuple(tokenizer.special_tokens[name] for name in names)


def make_loader(
    recipe: Recipe,
    shards: TokenShards,
    tokenizer: Tokenizer | None = None,
    targets: TokenShards | None = None,
    held_out: HeldOut = NOTHING,
    replay: TokenShards | None = None,
) -> Loader:
    """The loader that the recipe names: of `training.stream` (encoded by `tokenizer`), else of `shards`.

    `targets` are the answers to the documents of `shards`, for objective seq2seq; for stage sft, which tokens of them
    are trained. `held_out`: what a stream must leave out. `replay`: general text for some
    of the rows. Raises BadInputError for a stream that is not there, and for a tokenizer without the tokens that the
    objective needs.
    """
    training, seed = recipe.training, recipe.seed
    if recipe.objective == "seq2seq":
        if targets is None:
            raise BadInputError("objective seq2seq needs the targets of its sources")
        batch_size = training.batch_size
        return PairLoader(shards, targets, batch_size=batch_size, context=recipe.row_length, seed=seed)
    if recipe.stage == "sft":
        if targets is None:
            raise BadInputError("stage sft needs to know which tokens are trained")
        rows: Rows = "packed" if training.order == "packed" else "padded"
        chats, batch_size = ChatShards(shards, targets), training.batch_size
        return ChatLoader(chats, batch_size=batch_size, context=recipe.row_length, seed=seed, rows=rows)
    text = _text_loader(recipe, shards, tokenizer, held_out)
    if replay is not None:
        return MixedLoader(text, _text_loader(recipe, replay, None, NOTHING, rows=recipe.replay_rows))
    if recipe.objective == "next_token":
        return text
    if tokenizer is None:
        raise BadInputError(f"objective {recipe.objective} needs a tokenizer")
    if recipe.objective == "masked":
        return MaskingLoader(text, Masking.of(tokenizer, training.corruption_rate), seed)
    return SpanLoader(text, sentinel_ids(tokenizer), tokenizer.end_id, training.corruption_rate, seed)


def _text_loader(
    recipe: Recipe,
    shards: TokenShards,
    tokenizer: Tokenizer | None,
    held_out: HeldOut,
    rows: int | None = None,
) -> TextLoader:
    """rows: of a batch; by default what replay leaves of the recipe's."""
    training, seed = recipe.training, recipe.seed
    batch_size, context = rows or training.batch_size - recipe.replay_rows, recipe.row_length
    if training.stream is not None:
        if tokenizer is None:
            raise BadInputError("training.stream needs a tokenizer")
        encode = partial(_encode_streamed, tokenizer, recipe.data.cleaning, held_out)
        return StreamingLoader(
            str(resolve(training.stream)) if training.stream in CATALOG else training.stream,
            encode,
            end_id=tokenizer.end_id,
            batch_size=batch_size,
            context=context,
            seed=seed,
            text_key=recipe.data.text_key,
        )
    if training.order == "packed":
        check_context(shards, context)
        return PackedLoader(shards, batch_size=batch_size, context=context, seed=seed)
    return TokenLoader(shards, batch_size=batch_size, context=context, seed=seed, order=training.order)


def _encode_streamed(tokenizer: Tokenizer, cleaning: bool, held_out: HeldOut, texts: list[str]) -> list[list[int]]:
    """Ids of streamed documents, cleaned as prepared text is; held-out ones are left out."""
    cleaned = [clean(text) for text in texts] if cleaning else texts
    return tokenizer.encode_batch([text for text in cleaned if text and not held_out.holds(text)])
