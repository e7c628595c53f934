"""What a step minimises and what a validation says, by the recipe's `objective`: one visible lookup.

    next_token   cross-entropy of each next token (a decoder)
    masked       of the tokens that were hidden (an encoder; Devlin et al. 2019, section 3.1)
    span         of the spans that were cut out, written in order (an encoder-decoder; Raffel et al. 2020, 3.1.4)
    seq2seq      of the target of each pair, under teacher forcing (an encoder-decoder; Vaswani et al. 2017)

Every loss is a mean in nats over the targets that count. What is drawn for validation is the same each time, for every
run: the figures of two runs on the same data can be compared.

Legend: B batch, T positions, N targets, D width, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm_journey.datasets.batching import IGNORED, Batch, Int64Array, PairBatch
from llm_journey.datasets.chat_loader import ChatShards, all_chats
from llm_journey.datasets.corruption import NO_TOKEN, tokens_before
from llm_journey.datasets.loader import sequential_batches
from llm_journey.datasets.pairs import all_pairs
from llm_journey.datasets.shards import TokenShards
from llm_journey.model.decoder import Decoder
from llm_journey.model.kinds import Model
from llm_journey.model.loss import linear_cross_entropy, next_token_loss
from llm_journey.training.inputs import Inputs
from llm_journey.training.loaders import Masking, sentinel_ids, span_pairs
from llm_journey.training.recipe import ObjectiveName, Recipe
from llm_journey.training.validate import validate

AnyBatch = Batch | PairBatch
# `model.hidden`, or what torch.compile made of it.
Hidden = Callable[..., Tensor]
# (model, its hidden, batch, label smoothing) -> mean loss in nats over the batch's targets.
Loss = Callable[[Model, Hidden, AnyBatch, float], Tensor]

_VALIDATION_SEED = 20_190_524
_ROWS = 32
# Positions of a batch of chats, and numbers in the logits that they may have: 128 MiB in float32.
_CHAT_TOKENS, _CHAT_LOGITS = 4096, 1 << 25
_TOKENS_COUNTED = 10_000_000


@dataclass(frozen=True)
class Objective:
    """loss: of one batch. figures: of the held-out data, "validation_loss" among them."""

    loss: Loss
    figures: Callable[[Recipe, Model, Inputs], dict[str, float]]


def next_token(model: Model, hidden: Hidden, batch: AnyBatch, label_smoothing: float = 0.0) -> Tensor:
    """Each token from those before it."""
    assert isinstance(batch, Batch)
    inputs, targets, segments, positions = (
        None if array is None else torch.tensor(array, device=model.device)
        for array in (batch.inputs, batch.targets, batch.segments, batch.positions)
    )
    assert inputs is not None and targets is not None
    hidden_btd = hidden(inputs, segments_bt=segments, positions_bt=positions)
    return linear_cross_entropy(hidden_btd, model.head_weight, targets, label_smoothing)


def masked_tokens(model: Model, hidden: Hidden, batch: AnyBatch, label_smoothing: float = 0.0) -> Tensor:
    """Each hidden token from all that is seen. Logits are made at the targets alone: 15% of the positions."""
    assert isinstance(batch, Batch)
    targets_bt = torch.tensor(batch.targets, device=model.device)
    chosen_bt = targets_bt != IGNORED
    hidden_nd = hidden(torch.tensor(batch.inputs, device=model.device))[chosen_bt]
    return next_token_loss(model.logits(hidden_nd), targets_bt[chosen_bt], label_smoothing)


def written_targets(model: Model, hidden: Hidden, batch: AnyBatch, label_smoothing: float = 0.0) -> Tensor:
    """Each token of the target from the source and the target's own tokens before it."""
    assert isinstance(batch, PairBatch)
    hidden_btd, targets_bt = _target_states(model, hidden, batch)
    if model.config.head_bias:
        return next_token_loss(model.logits(hidden_btd), targets_bt, label_smoothing)
    return linear_cross_entropy(hidden_btd, model.head_weight, targets_bt, label_smoothing)


def unigram_token(shards: TokenShards) -> int:
    """The token that stands most often in the text (its first 10 million tokens), the end token aside."""
    counts = np.bincount(shards.read(0, min(shards.num_tokens, _TOKENS_COUNTED)), minlength=shards.vocab_size)
    counts[shards.end_id] = 0
    return int(counts.argmax())


def likeliest_followers(shards: TokenShards) -> Int64Array:
    """(V,): for each token the one that follows it most often in the text (its first 10 million tokens).

    The end token is nobody's answer; a token that nothing follows is followed by the commonest one.
    """
    ids = shards.read(0, min(shards.num_tokens, _TOKENS_COUNTED)).astype(np.int64)
    pairs = ids[:-1] * shards.vocab_size + ids[1:]
    kinds, counts = np.unique(pairs[ids[1:] != shards.end_id], return_counts=True)
    followers = np.full(shards.vocab_size, unigram_token(shards), dtype=np.int64)
    # Of each token's followers the most frequent comes last, so it is the one that stays.
    order = np.argsort(counts, kind="stable")
    followers[kinds[order] // shards.vocab_size] = kinds[order] % shards.vocab_size
    return followers


def _target_states(model: Model, hidden: Hidden, batch: PairBatch) -> tuple[Tensor, Tensor]:
    source, mask, inputs, targets = (
        torch.tensor(array, device=model.device)
        for array in (batch.source, batch.source_mask, batch.inputs, batch.targets)
    )
    # Padding behind a target needs no mask: attention there is causal, and no real token looks that far.
    return hidden(source, inputs, source_padding_mask_bs=mask), targets


def _next_token_figures(_: Recipe, model: Model, inputs: Inputs) -> dict[str, float]:
    assert isinstance(model, Decoder)
    found = validate(model, inputs.validation)
    return {"validation_loss": found.loss, "perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte}


def _chat_figures(_: Recipe, model: Model, inputs: Inputs) -> dict[str, float]:
    """Of the assistant's tokens alone: loss, and how often the token is the likeliest."""
    assert inputs.validation_targets is not None
    tally = _Tally()
    limit = min(_CHAT_TOKENS, _CHAT_LOGITS // inputs.validation.vocab_size)
    with _evaluating(model):
        chats = ChatShards(inputs.validation, inputs.validation_targets)
        for batch in all_chats(chats, context=model.config.context, most_tokens=limit):
            targets_bt = torch.from_numpy(batch.targets).to(model.device)
            chosen_bt = targets_bt != IGNORED
            inputs_bt, segments_bt, positions_bt = (
                None if array is None else torch.from_numpy(array).to(model.device)
                for array in (batch.inputs, batch.segments, batch.positions)
            )
            hidden: Hidden = model.hidden
            hidden_btd = hidden(inputs_bt, segments_bt=segments_bt, positions_bt=positions_bt)
            tally.add(model.logits(hidden_btd[chosen_bt]), targets_bt[chosen_bt])
    return tally.figures() | {"answer_accuracy": tally.share(tally.right)}


def _masked_figures(recipe: Recipe, model: Model, inputs: Inputs) -> dict[str, float]:
    """How often the hidden token is the likeliest, and how often it is the commonest of the training text."""
    masking = Masking.of(inputs.tokenizer, recipe.training.corruption_rate)
    generator = np.random.default_rng(_VALIDATION_SEED)
    commonest = unigram_token(inputs.train)
    tally = _Tally()
    with _evaluating(model):
        for plain in sequential_batches(inputs.validation, batch_size=_ROWS, context=recipe.model.context):
            batch = masking.apply(plain.inputs, generator)
            targets_bt = torch.from_numpy(batch.targets).to(model.device)
            chosen_bt = targets_bt != IGNORED
            hidden: Hidden = model.hidden
            hidden_btd = hidden(torch.from_numpy(batch.inputs).to(model.device))
            tally.add(model.logits(hidden_btd[chosen_bt]), targets_bt[chosen_bt], commonest)
    return tally.figures() | {
        "masked_accuracy": tally.share(tally.right),
        "unigram_accuracy": tally.share(tally.common),
    }


def _pair_figures(recipe: Recipe, model: Model, inputs: Inputs) -> dict[str, float]:
    assert inputs.validation_targets is not None, recipe.objective
    tally = _Tally()
    with _evaluating(model):
        for batch in all_pairs(inputs.validation, inputs.validation_targets, _ROWS * 4):
            hidden_btd, targets_bt = _target_states(model, model.hidden, batch)
            chosen_bt = targets_bt != IGNORED
            tally.add(model.logits(hidden_btd[chosen_bt]), targets_bt[chosen_bt])
    return tally.figures() | {"token_accuracy": tally.share(tally.right)}


def _span_figures(recipe: Recipe, model: Model, inputs: Inputs) -> dict[str, float]:
    """How often a token that was cut out is the likeliest, given the source and the span before it; and two guesses.

    unigram_accuracy: always the commonest token of the training text. bigram_accuracy: always the likeliest after the
    token before it. Sentinels and end tokens count in the loss and in token_accuracy alone: where a span ends is easy.
    """
    sentinels = sentinel_ids(inputs.tokenizer)
    commonest, followers = unigram_token(inputs.train), likeliest_followers(inputs.train)
    whole, spans = _Tally(), _Tally()
    following = 0
    with _evaluating(model):
        for batch in _span_batches(recipe, inputs, sentinels):
            hidden_btd, targets_bt = _target_states(model, model.hidden, batch)
            chosen_bt = batch.targets != IGNORED
            logits_nv, targets_n = model.logits(hidden_btd[chosen_bt]), targets_bt[chosen_bt]
            whole.add(logits_nv, targets_n)
            cut_n = ~np.isin(batch.targets[chosen_bt], (*sentinels, inputs.tokenizer.end_id))
            spans.add(logits_nv[cut_n], targets_n[cut_n], commonest)
            before_n = _tokens_before(batch, sentinels)[chosen_bt]
            guesses_n = np.where(before_n == NO_TOKEN, commonest, followers[before_n])
            following += int((guesses_n == batch.targets[chosen_bt])[cut_n].sum())
    return whole.figures() | {
        "token_accuracy": whole.share(whole.right),
        "span_accuracy": spans.share(spans.right),
        "unigram_accuracy": spans.share(spans.common),
        "bigram_accuracy": spans.share(following),
    }


def _span_batches(recipe: Recipe, inputs: Inputs, sentinels: tuple[int, ...]) -> Iterator[PairBatch]:
    generator = np.random.default_rng(_VALIDATION_SEED)
    end_id, rate = inputs.tokenizer.end_id, recipe.training.corruption_rate
    for plain in sequential_batches(inputs.validation, batch_size=_ROWS, context=recipe.model.context):
        yield span_pairs(plain.inputs, generator, sentinels=sentinels, end_id=end_id, rate=rate)


def _tokens_before(batch: PairBatch, sentinels: tuple[int, ...]) -> Int64Array:
    """(B, T): for each target the token before it in the text (datasets.corruption)."""
    before_bt = np.full_like(batch.targets, NO_TOKEN)
    for row, (source, targets) in enumerate(zip(batch.source, batch.targets, strict=True)):
        real = targets[targets != IGNORED]
        before_bt[row, : len(real)] = tokens_before(source[batch.source_mask[row]], real, sentinels)
    return before_bt


@dataclass
class _Tally:
    """Sums over the targets of a validation."""

    nats: float = 0.0
    count: int = 0
    right: int = 0
    common: int = 0

    def add(self, logits_nv: Tensor, targets_n: Tensor, commonest: int = -1) -> None:
        self.nats += float(next_token_loss(logits_nv, targets_n)) * len(targets_n)
        self.count += len(targets_n)
        self.right += int((logits_nv.argmax(-1) == targets_n).sum())
        self.common += int((targets_n == commonest).sum())

    def share(self, number: int) -> float:
        return number / max(self.count, 1)

    def figures(self) -> dict[str, float]:
        loss = self.nats / max(self.count, 1)
        return {"validation_loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """Dropout is off meanwhile, and nothing is kept for a backward pass."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "next_token": Objective(next_token, _next_token_figures),
    "masked": Objective(masked_tokens, _masked_figures),
    "span": Objective(written_targets, _span_figures),
    "seq2seq": Objective(written_targets, _pair_figures),
}
_CHATS = Objective(next_token, _chat_figures)


def objective_of(recipe: Recipe) -> Objective:
    """What a run minimises and says of its held-out data: of chats it is the next token too, of the assistant's."""
    return _CHATS if recipe.stage == "sft" else OBJECTIVES[recipe.objective]
