"""Train on what does not fit on disk or in memory: a token stream through Hugging Face `datasets`.

Documents are read in blocks (1,000 by default), each block is shuffled by (seed, epoch, block), tokenized and cut into
windows; memory holds one block. `datasets` says where a block began (its `state_dict`), so that a resumed run reads
that block again and goes on at the same window. Shuffling is ours and not `IterableDataset.shuffle`, because that
one's buffer is lost when it is resumed. Blocks follow one another in the order of the source: sorted data should be
shuffled before it is streamed.

Texts are taken as they are: what a source needs in filtering and deduplication is done before. A file is known by its
name, its size and its bytes; beyond 256 MiB by samples of them, so that a small change may go unnoticed there.

Legend: B rows of a batch, T positions of a row (the context), W processes.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.core.files import sha256_json
from llm_journey.core.paths import cache_dir
from llm_journey.datasets.batching import Batch, Int64Array, from_windows
from llm_journey.datasets.position import check_process, read_state

# A file up to so many bytes is known by all of them, a larger one by so many pieces of so many bytes.
_HASHED_BYTES, _SAMPLES, _SAMPLED_BYTES = 256 << 20, 256, 1 << 16
Encode = Callable[[list[str]], list[list[int]]]

# What `datasets` reads a file with, by the end of its name. Of a text file, each paragraph is a document.
_BUILDERS: dict[str, tuple[str, dict[str, str]]] = {
    ".jsonl": ("json", {}),
    ".jsonl.gz": ("json", {}),
    ".parquet": ("parquet", {}),
    ".txt": ("text", {"sample_by": "paragraph"}),
    ".md": ("text", {"sample_by": "paragraph"}),
}


class StreamingLoader:
    """Batches of windows of T + 1 tokens from a stream of documents, endless: epoch after epoch.

    `source` is a file, a folder, a glob (.jsonl, .jsonl.gz, .parquet, .txt, .md: one kind at a time) or the name of a
    data set on the Hugging Face hub. `encode` turns texts into ids; `end_id` is put behind each document. A window's
    last token is the next one's first, also from block to block and from epoch to epoch.

    With W processes each reads its own part of the documents (`split_dataset_by_node`); the parts are disjoint and
    together the whole. So a position belongs to one process, and is only taken back by the same rank of as many.
    """

    def __init__(
        self,
        source: str | Path,
        encode: Encode,
        *,
        end_id: int,
        batch_size: int,
        context: int,
        seed: int,
        text_key: str = "text",
        split: str = "train",
        world_size: int = 1,
        rank: int = 0,
        block_documents: int = 1000,
    ) -> None:
        check_process(batch_size, context, world_size, rank)
        if block_documents < 1:
            raise BadInputError(f"block_documents {block_documents} must be at least 1")
        self._source, self._split, self._text_key = str(source), split, text_key
        self._encode, self._end_id = encode, end_id
        self._batch_size, self._context, self._seed = batch_size, context, seed
        self._world_size, self._rank, self._block_documents = world_size, rank, block_documents
        self._files = local_files(self._source)
        # Where the current block begins: in the stream, and in this loader's count.
        self._epoch, self._block, self._epoch_tokens = 0, 0, 0
        self._carry = np.empty(0, dtype=np.int64)
        self._stream_state: dict[str, Any] | None = None
        # The current block: its windows, how many of them were taken, and the tokens left over for the next block.
        self._windows = np.empty((0, context + 1), dtype=np.int64)
        self._row = 0
        self._rest = self._carry
        self._rest_tokens = 0
        self._dataset: Any = None
        self._rows: Iterator[Any] = iter(())

    @property
    def epoch(self) -> float:
        """Whole passes over this process's part of the stream (its length is not known, so no fraction)."""
        return float(self._epoch)

    def next_batch(self) -> Batch:
        """This process's next B windows. Raises JourneyError where the stream cannot be read on."""
        return from_windows(np.stack([self._next_window() for _ in range(self._batch_size)]))

    def state(self) -> dict[str, Any]:
        """This process's position, to be stored with a checkpoint: plain JSON, at most T token ids among it."""
        return {
            **self._identity(),
            "epoch": self._epoch,
            "block": self._block,
            "epoch_tokens": self._epoch_tokens,
            "row": self._row,
            "carry": self._carry.tolist(),
            "stream": copy.deepcopy(self._stream_state),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken. The batch size may differ from then.

        Raises BadInputError for a state of other data (naming both fingerprints), of another setting or process, or
        a damaged one.
        """
        epoch, block, tokens, row = read_state(state, self._identity(), ("epoch", "block", "epoch_tokens", "row"))
        carry, stream = state.get("carry"), state.get("stream")
        if not isinstance(carry, list) or len(carry) > self._context or not all(type(item) is int for item in carry):
            raise BadInputError(f"the saved position must carry at most {self._context} token ids; it is damaged")
        self._epoch, self._block, self._epoch_tokens = epoch, block, tokens
        self._carry = np.array(carry, dtype=np.int64)
        if stream is None:
            self._dataset = None
            return
        self._begin_epoch(epoch, stream)
        self._load_block()
        if row > len(self._windows):
            raise BadInputError(f"the saved position (row {row} of a block) lies outside the data; it is damaged")
        self._row = row

    @cached_property
    def _fingerprint(self) -> str:
        described = [_described(path) for path in self._files] or self._source
        return sha256_json([described, self._split, self._text_key])

    def _identity(self) -> dict[str, Any]:
        return {
            "kind": "stream",
            "fingerprint": self._fingerprint,
            "seed": self._seed,
            "context": self._context,
            "block_documents": self._block_documents,
            "world_size": self._world_size,
            "rank": self._rank,
        }

    def _next_window(self) -> Int64Array:
        if self._dataset is None:
            self._begin_epoch(self._epoch, None)
            self._load_block()
        while self._row == len(self._windows):
            self._block += 1
            self._carry = self._rest
            self._epoch_tokens += self._rest_tokens
            self._load_block()
        self._row += 1
        window: Int64Array = self._windows[self._row - 1]
        return window

    def _begin_epoch(self, epoch: int, stream_state: dict[str, Any] | None) -> None:
        self._dataset = open_stream(self._source, self._files, self._split, self._world_size, self._rank)
        self._dataset.set_epoch(epoch)
        if stream_state is not None:
            self._dataset.load_state_dict(copy.deepcopy(stream_state))
        self._rows = iter(self._dataset)

    def _load_block(self) -> None:
        """Read, shuffle, tokenize and cut the block that begins here; at the end of the stream the next epoch's."""
        self._stream_state = self._dataset.state_dict()
        documents = self._read_documents()
        if documents is None:
            self._end_epoch()
            documents = self._read_documents() or []
        order = np.random.default_rng([self._seed, self._epoch, self._block]).permutation(len(documents))
        ids = self._encode([documents[number] for number in order])
        tokens = [np.array([*document, self._end_id], dtype=np.int64) for document in ids]
        self._rest_tokens = sum(map(len, tokens))
        text = np.concatenate([self._carry, *tokens])
        count = max(len(text) - 1, 0) // self._context
        self._rest = text[count * self._context :]
        self._windows = np.empty((0, self._context + 1), dtype=np.int64)
        if count:
            views = np.lib.stride_tricks.sliding_window_view(text, self._context + 1)
            self._windows = views[: count * self._context : self._context]
        self._row = 0

    def _read_documents(self) -> list[str] | None:
        """The non-empty texts of the next block; None where the stream has ended."""
        try:
            rows = list(islice(self._rows, self._block_documents))
        except Exception as error:  # the reader of each format raises errors of its own
            raise JourneyError(
                f"{self._source} cannot be read on near document {self._block * self._block_documents:,} "
                f"({_one_line(error)}); mend or remove that row, or prepare the files as data.source, which skips it"
            ) from None
        if not rows:
            return None
        if self._text_key not in rows[0]:
            raise BadInputError(f"{self._source} has no {self._text_key!r}; its rows have {', '.join(rows[0])}")
        texts = [row[self._text_key] for row in rows]
        wrong = next((text for text in texts if not isinstance(text, str | None)), None)
        if wrong is not None:
            raise BadInputError(f"{self._source}: {self._text_key!r} holds {type(wrong).__name__}, not text")
        return [text for text in texts if text]

    def _end_epoch(self) -> None:
        if self._epoch_tokens <= self._context:
            raise BadInputError(
                f"the context of {self._context} tokens is longer than the data: {self._source} has "
                f"{self._epoch_tokens} tokens for this process, and {self._context + 1} are needed"
            )
        self._epoch, self._block, self._epoch_tokens = self._epoch + 1, 0, 0
        self._begin_epoch(self._epoch, None)
        self._stream_state = self._dataset.state_dict()


def _described(path: Path) -> list[object]:
    """What tells a file from another one: its name, its size, and the SHA-256 of its bytes; of a large file's those of
    pieces spread over it, both ends among them."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _HASHED_BYTES:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        else:
            for number in range(_SAMPLES):
                file.seek((size - _SAMPLED_BYTES) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLED_BYTES))
    return [path.name, size, digest.hexdigest()]


def local_files(source: str) -> list[Path]:
    """The files of a local source, sorted; none for a name on the hub.

    Raises BadInputError for a path that holds no readable file or files of several kinds.
    """
    path = Path(source).expanduser()
    if any(character in source for character in "*?["):
        anchor = Path(path.anchor) if path.is_absolute() else Path()
        found = sorted(item for item in anchor.glob(str(path.relative_to(path.anchor))) if item.is_file())
    elif path.is_dir():
        found = sorted(item for item in path.rglob("*") if item.is_file() and _kind(item))
    elif path.is_file():
        found = [path]
    elif _kind(path) or path.is_absolute() or source.startswith((".", "~")):
        raise BadInputError(f"{source}: no such file or folder")
    else:
        return []
    kinds = {_kind(item) for item in found}
    if not found or None in kinds:
        raise BadInputError(f"{source}: nothing to stream; give {', '.join(_BUILDERS)} files")
    if len({_BUILDERS[kind][0] for kind in kinds if kind}) > 1:
        raise BadInputError(f"{source}: files of several kinds ({', '.join(sorted(filter(None, kinds)))}); give one")
    return found


def open_stream(source: str, files: list[Path], split: str, world_size: int, rank: int) -> Any:
    """A `datasets.IterableDataset` over local `files`, or over the hub's `source` where there are none.

    Raises JourneyError where the `datasets` package is missing or the source cannot be opened.
    """
    try:
        from datasets.distributed import split_dataset_by_node

        import datasets
    except ImportError:
        raise JourneyError("streaming needs the datasets package; run `pip install 'llm-journey[data]'`") from None
    cache = str(cache_dir() / "datasets")
    try:
        if files:
            builder, options = _BUILDERS[_kind(files[0]) or ""]
            names = [str(file.resolve()) for file in files]
            dataset = datasets.load_dataset(
                builder, data_files={split: names}, split=split, streaming=True, cache_dir=cache, **options
            )
        else:
            dataset = datasets.load_dataset(source, split=split, streaming=True, cache_dir=cache)
    except Exception as error:  # datasets documents no closed set of errors
        raise JourneyError(f"{source} cannot be streamed ({_one_line(error)})") from None
    return split_dataset_by_node(dataset, rank=rank, world_size=world_size)


def _kind(path: Path) -> str | None:
    return next((ending for ending in _BUILDERS if path.name.endswith(ending)), None)


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
