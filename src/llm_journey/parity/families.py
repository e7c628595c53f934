"""Whole models of each family, written to a folder of ours and opened there by transformers: logits and gradients.

Each batch has rows padded on the left, on the right, on both sides and not at all. Only real positions are compared:
what a model says at padding means nothing, and the two say different things there.

Legend: B batch, T positions, V vocabulary, R real positions of the batch.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from llm_journey.checkpoint.families import to_huggingface
from llm_journey.model.encoder import Encoder
from llm_journey.model.encoder_decoder import EncoderDecoder
from llm_journey.model.kinds import Model
from llm_journey.model.loss import next_token_loss
from llm_journey.parity.differences import largest
from llm_journey.parity.equality import Equality
from llm_journey.parity.random_models import (
    BERT,
    GPT2,
    LLAMA,
    MARIAN,
    QWEN3,
    opened_by_transformers,
    plant,
    random_decoder,
    random_ids,
    random_model,
)

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "llama with grouped queries": LLAMA,
    "qwen3": QWEN3,
    "qwen3 with a sliding window": QWEN3 | {"sliding_window": 5},
    "bert": BERT,
    "marian": MARIAN,
}
OPENERS = {
    "decoder": "AutoModelForCausalLM",
    "encoder": "AutoModelForMaskedLM",
    "encoder_decoder": "AutoModelForSeq2SeqLM",
}
_ODD: dict[str, Any] = {"vocab_size": 101, "width": 18, "num_heads": 6, "num_layers": 2, "mlp_width": 37}
_SIZES: tuple[dict[str, Any], ...] = (
    {},
    _ODD,
    {"vocab_size": 257, "width": 96, "num_heads": 8, "num_layers": 5, "context": 80},
)
_ODD_HEADS: dict[str, Any] = {"width": 24, "head_width": 4, "num_kv_heads": 3}
# Padding before and after the tokens of each row.
_SIDES = ((0, 0), (5, 0), (0, 7), (3, 4), (12, 0), (0, 12))
_LENGTH = 21
_SUMS = "float32 sums taken in another order"


def _padded(planted: bool, *, choices: dict[str, Any]) -> float:
    """Logits of a padded batch in three sizes; the planted error shows one padding token of the last."""
    differences = []
    for size in _SIZES:
        grouped = "num_kv_heads" in choices
        model = random_model(**choices | size | (_ODD_HEADS if grouped and size is _ODD else {}))
        seen_too = planted and size is _SIZES[-1]
        with opened_by_transformers(model, OPENERS[model.config.kind]) as theirs, torch.inference_mode():
            differences.append(largest(_logits(model, shown=seen_too), _their_logits(model, theirs)))
    return max(differences)


def _gradients(planted: bool, *, choices: dict[str, Any]) -> float:
    """Every gradient of a random weighting of a padded batch's logits, relative to the largest of its tensor."""
    model = random_model(**choices)
    with opened_by_transformers(model, OPENERS[model.config.kind]) as theirs:
        expected_rv = _their_logits(model, theirs)
        weights_rv = torch.randn(expected_rv.shape, generator=torch.Generator().manual_seed(4))
        torch.autograd.backward((expected_rv * weights_rv).mean())
        if planted:
            plant(model.blocks[1].mlp.up.weight)  # type: ignore[union-attr, arg-type]
        torch.autograd.backward((_logits(model) * weights_rv).mean())
        return _largest_gradient_difference(model, theirs)


def _largest_gradient_difference(model: Model, theirs: Any) -> float:
    """A gradient that only one side has is infinitely different."""
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    if len(gradients) < len(list(model.parameters())):
        return float("inf")
    _, ours = to_huggingface(model.config, gradients)
    # transformers' sinusoids of Marian are a table that never changes, yet counted among its parameters; the bias of
    # its logits is no parameter there.
    learned = {name: value for name, value in theirs.named_parameters() if "embed_positions" not in name}
    if not learned.keys() <= ours.keys() <= learned.keys() | {"final_logits_bias"}:
        return float("inf")
    # A key's bias moves all scores of a query alike: its gradient is zero but for rounding.
    scales = {name: max(float(value.grad.abs().max()), 1e-3) for name, value in learned.items()}
    return max(largest(ours[name], value.grad) / scales[name] for name, value in learned.items())


def _logits(model: Model, shown: bool = False) -> Tensor:
    """Ours at real positions, (R, V). shown: one padding token of the second row is taken for a real one."""
    ids_bt, real_bt = _rows(model, _LENGTH)
    told_bt = real_bt.clone()
    told_bt[1, 4] = shown
    match model:
        case EncoderDecoder():
            target_bt, target_real_bt = _rows(model, _LENGTH - 2, seed=2)
            found: Tensor = model(ids_bt, target_bt, source_padding_mask_bs=told_bt, padding_mask_bt=target_real_bt)
            real_bt = target_real_bt
        case Encoder():
            types_bt = _token_types(model)
            found = model(ids_bt, padding_mask_bs=told_bt, positions_bt=_positions(real_bt), token_types_bt=types_bt)
        case _:
            found = model(ids_bt, padding_mask_bs=told_bt, positions_bt=_positions(real_bt))
    return found[real_bt]


def _their_logits(model: Model, theirs: Any) -> Tensor:
    """transformers' at real positions, (R, V)."""
    ids_bt, real_bt = _rows(model, _LENGTH)
    inputs: dict[str, Any] = {"input_ids": ids_bt, "attention_mask": real_bt.long()}
    if isinstance(model, EncoderDecoder):
        target_bt, real_bt = _rows(model, _LENGTH - 2, seed=2)
        inputs |= {"decoder_input_ids": target_bt, "decoder_attention_mask": real_bt.long()}
    else:
        inputs |= {"position_ids": _positions(real_bt)}
    if isinstance(model, Encoder):
        inputs |= {"token_type_ids": _token_types(model)}
    logits: Tensor = theirs(**inputs).logits[real_bt]
    return logits


def _rows(model: Model, length: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Ids and True at real tokens, each (6, length)."""
    places = torch.arange(length)
    real = torch.stack([(places >= left) & (places < length - right) for left, right in _SIDES])
    return random_ids(len(_SIDES), length, model.config.vocab_size, seed), real


def _positions(real_bt: Tensor) -> Tensor:
    """Counted from each row's first real token."""
    return (real_bt.cumsum(-1) - 1).clamp(min=0)


def _token_types(model: Model) -> Tensor:
    return random_ids(len(_SIDES), _LENGTH, model.config.token_types, seed=3)


def _loss(planted: bool) -> float:
    """The mean next-token loss of a text, whose exponential is its perplexity; the planted error shifts the targets."""
    model = random_decoder(**LLAMA)
    ids_bt = random_ids(2, 40, model.config.vocab_size)
    with opened_by_transformers(model) as theirs, torch.inference_mode():
        expected = theirs(ids_bt, labels=ids_bt).loss
        targets_bt = ids_bt.roll(1) if planted else ids_bt
        return largest(next_token_loss(model(ids_bt[:, :-1]), targets_bt[:, 1:]), expected)


_vs_transformers = partial(Equality, reference="transformers", tolerance=1e-4)

EQUALITIES = (
    *(
        _vs_transformers(
            component=f"model, {name}",
            compared="logits of random weights in three sizes, padding on either side, from our folder",
            reason=_SUMS,
            difference=partial(_padded, choices=choices),
        )
        for name, choices in FAMILIES.items()
    ),
    *(
        _vs_transformers(
            component=f"gradients, {name}",
            compared="every gradient, padding on either side, from our folder",
            reason=f"{_SUMS}, relative to the largest gradient of a tensor",
            difference=partial(_gradients, choices=choices),
        )
        for name, choices in FAMILIES.items()
    ),
    Equality(
        component="perplexity",
        reference="transformers",
        compared="mean next-token loss of a llama-type model, its own loss",
        tolerance=2e-6,
        reason="a few roundings of a loss of 5 nats",
        difference=_loss,
    ),
)
