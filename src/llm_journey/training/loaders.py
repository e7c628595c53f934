"""Where a run's batches come from: the prepared text's shards, or a stream of documents that need not fit on a disk."""

from typing import Any, Protocol

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.batching import Batch
from llm_journey.datasets.loader import TokenLoader
from llm_journey.datasets.packing import PackedLoader
from llm_journey.datasets.shards import TokenShards
from llm_journey.datasets.streaming import StreamingLoader
from llm_journey.tokenizer import Tokenizer
from llm_journey.training.recipe import Recipe


class Loader(Protocol):
    """Batches without end. `state` is its position as JSON values; `restore` goes on from there."""

    def next_batch(self) -> Batch: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


def make_loader(recipe: Recipe, shards: TokenShards, tokenizer: Tokenizer | None = None) -> Loader:
    """The loader that the recipe names: of `training.stream` (encoded by `tokenizer`), else of `shards`.

    Raises BadInputError for a stream that is not there.
    """
    training, seed = recipe.training, recipe.seed
    batch_size, context = training.batch_size, recipe.model.context
    if training.stream is not None:
        if tokenizer is None:
            raise BadInputError("training.stream needs a tokenizer")
        return StreamingLoader(
            training.stream,
            tokenizer.encode_batch,
            end_id=tokenizer.end_id,
            batch_size=batch_size,
            context=context,
            seed=seed,
        )
    if training.order == "packed":
        return PackedLoader(shards, batch_size=batch_size, context=context, seed=seed)
    return TokenLoader(shards, batch_size=batch_size, context=context, seed=seed, order=training.order)
