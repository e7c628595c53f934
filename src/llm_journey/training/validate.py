"""Validation on held-out documents: loss in nats a token, perplexity, and bits per byte.

Each document is scored by itself: the end token stands before it, every token of its text is a target exactly once,
and the end token behind it is none, so the figure compares with compressors and n-gram models that see the same text.
Bits per byte (Gao et al. 2020, "The Pile", section 3.1) do not depend on the tokenizer: summed nats / (ln 2 * bytes).
A document longer than the context is read in windows that overlap by half, so that no token past the first window
has less than half a context before it.

Of more held-out text than a run wants to read each time, `sample_held_out` draws documents once, by a seed of its own:
all validations of a run, and runs with other seeds, see the same ones.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from llm_journey.datasets.batching import IGNORED, Batch, Int64Array, pad_batch
from llm_journey.datasets.shards import TokenShards
from llm_journey.model.decoder import Decoder
from llm_journey.tokenizer import Tokenizer
from llm_journey.training.inputs import Inputs

# Positions of a batch, and numbers in its logits: 128 MiB in float32, whatever the vocabulary.
_TOKENS_A_BATCH = 8192
_LOGITS_A_BATCH = 1 << 25
_SAMPLE_SEED = 0


@dataclass(frozen=True)
class Validation:
    """Figures of one pass over the held-out documents."""

    loss: float
    bits_per_byte: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@dataclass(frozen=True)
class HeldOut:
    """What the validations of a run read: `inputs` with that held-out text, and its share of all held-out tokens."""

    inputs: Inputs
    share: float

    @property
    def figures(self) -> dict[str, float]:
        """How much was read, for metrics and report; nothing where it was all."""
        tokens = self.inputs.validation.num_tokens
        return {} if self.share == 1 else {"validation_tokens": tokens, "validation_share": self.share}


def sample_held_out(inputs: Inputs, most: int | None) -> HeldOut:
    """The held-out documents, or where they have more than `most` tokens as many of them, drawn, as fit.

    One document that is larger by itself gives its first `most` tokens; of pairs, each whole, at least one is taken.
    """
    whole, targets = inputs.validation, inputs.validation_targets
    if most is None or whole.num_tokens <= most:
        return HeldOut(inputs, 1.0)
    order = np.random.default_rng(_SAMPLE_SEED).permutation(whole.num_documents)
    fitting = int(np.searchsorted(np.cumsum(whole.document_lengths()[order]), most, side="right"))
    numbers = np.sort(order[: max(fitting, 1)])
    documents = [whole.document(int(number)) for number in numbers]
    if not fitting and targets is None:
        documents = [np.append(documents[0][: max(most - 1, 1)], whole.end_id)]
    sample = _holding(whole, documents, inputs.tokenizer)
    if targets is not None:
        written = [targets.document(int(number)) for number in numbers]
        inputs = replace(inputs, validation_targets=_holding(targets, written, inputs.tokenizer))
    return HeldOut(replace(inputs, validation=sample), sample.num_tokens / whole.num_tokens)


def _holding(shards: TokenShards, documents: list[Int64Array], tokenizer: Tokenizer) -> TokenShards:
    return shards.holding(documents, sum(len(tokenizer.decode_bytes(ids[:-1].tolist())) for ids in documents))


def validate(model: Decoder, shards: TokenShards) -> Validation:
    """Score every held-out document with `model`; dropout is off meanwhile, random generators are not touched."""
    was_training = model.training
    model.eval()
    nats, count = 0.0, 0
    try:
        with torch.inference_mode():
            for batch in validation_batches(shards, model.config.context):
                inputs = torch.from_numpy(batch.inputs).to(model.device)
                targets = torch.from_numpy(batch.targets).to(model.device)
                logits_btv = model(inputs)
                nats += float(_summed_nats(logits_btv, targets))
                count += batch.num_targets()
    finally:
        model.train(was_training)
    return Validation(loss=nats / max(count, 1), bits_per_byte=nats / math.log(2) / shards.num_bytes, tokens=count)


def validation_batches(shards: TokenShards, context: int) -> Iterator[Batch]:
    """All held-out windows, grouped by length so that little is padding; a batch is one, or up to 8,192 positions.

    A larger vocabulary than 4,096 makes the batches smaller, so that evaluating takes no more memory than training did.
    """
    limit = min(_TOKENS_A_BATCH, _LOGITS_A_BATCH // shards.vocab_size)
    windows = sorted(_windows(shards, context), key=lambda pair: len(pair[0]))
    start = 0
    while start < len(windows):
        stop = start + 1
        while stop < len(windows) and (stop - start + 1) * len(windows[stop][0]) <= limit:
            stop += 1
        inputs, mask = pad_batch([window for window, _ in windows[start:stop]], pad_id=shards.end_id)
        targets = np.full_like(inputs, IGNORED)
        targets[mask] = np.concatenate([target for _, target in windows[start:stop]])
        yield Batch(inputs, targets)
        start = stop


def _windows(shards: TokenShards, context: int) -> Iterator[tuple[Int64Array, Int64Array]]:
    for number in range(shards.num_documents):
        text = shards.document(number)[:-1]  # without the end token
        inputs = np.concatenate([np.array([shards.end_id], dtype=np.int64), text[:-1]])
        if not len(text):
            continue
        stride = max(context // 2, 1)
        scored = 0
        for begin in range(0, len(text), stride):
            end = min(begin + context, len(text))
            targets = text[begin:end].copy()
            targets[: scored - begin] = IGNORED
            yield inputs[begin:end], targets
            scored = end
            if end == len(text):
                break


def _summed_nats(logits_btv: torch.Tensor, targets_bt: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(
        logits_btv.flatten(0, 1).float(), targets_bt.flatten(), ignore_index=IGNORED, reduction="sum"
    )
