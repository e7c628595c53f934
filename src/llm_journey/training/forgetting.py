"""What a model forgets of general text while it learns something else: its perplexity there, before and after.

The text's first tokens are read in rows of the training's length, each by itself; every token but a row's first is
predicted once. Not for a model's quality (training.validate), but for the difference between two states of it.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.batching import Int64Array
from llm_journey.datasets.catalog import resolve as resolve_source
from llm_journey.model.kinds import Model
from llm_journey.model.loss import next_token_loss
from llm_journey.text.readers import read_documents
from llm_journey.tokenizer import Tokenizer
from llm_journey.training.recipe import ForgettingConfig

_ROWS_TOKENS = 2048  # positions of a batch


def general_rows(
    config: ForgettingConfig, tokenizer: Tokenizer, context: int, resolve: Callable[[str], Path] = resolve_source
) -> Int64Array:
    """(rows, context) ids of the first `config.tokens` tokens of the source. BadInputError where there are too few."""
    ids: list[int] = []
    for document in read_documents(resolve(config.source)):
        ids += tokenizer.encode(document.text)
        if len(ids) >= config.tokens:
            break
    rows = min(len(ids), config.tokens) // context
    if not rows:
        raise BadInputError(f"forgetting.source {config.source}: holds fewer than {context} tokens")
    return np.array(ids[: rows * context], dtype=np.int64).reshape(rows, context)


def general_figures(model: Model, tokenizer: Tokenizer, rows_nt: Int64Array) -> dict[str, float]:
    """Of every token of (N, T) rows but the first of each: exp of the mean loss, and bits for each byte of their text,
    which can be compared between tokenizers."""
    was_training = model.training
    model.eval()
    step = max(_ROWS_TOKENS // rows_nt.shape[1], 1)
    nats = 0.0
    try:
        with torch.inference_mode():
            for start in range(0, len(rows_nt), step):
                ids_bt = torch.from_numpy(rows_nt[start : start + step]).to(model.device)
                loss = next_token_loss(model(ids_bt[:, :-1]), ids_bt[:, 1:])
                nats += float(loss) * ids_bt[:, 1:].numel()
    finally:
        model.train(was_training)
    num_bytes = sum(len(tokenizer.decode_bytes(row)) for row in rows_nt[:, 1:].tolist())
    return {
        "general_perplexity": math.exp(nats / (rows_nt.shape[0] * (rows_nt.shape[1] - 1))),
        "general_bits_per_byte": nats / math.log(2) / num_bytes,
    }
