"""Decoding: logit filters, and greedy text with the key-value cache."""

from typing import Any

import torch

from llm_journey.generation import sampling
from llm_journey.generation.decode import generate
from llm_journey.generation.sampling import SamplingConfig
from llm_journey.parity.equality import Equality
from llm_journey.parity.random_models import LLAMA, opened_by_transformers, plant, random_decoder, random_ids


def _filters(planted: bool) -> float:
    """Top-k, top-p, min-p and the repetition penalty on 64 rows with ties: the largest difference of kept logits."""
    from transformers.generation import logits_process

    theirs: Any = logits_process

    generator = torch.Generator().manual_seed(0)
    logits_bv = (torch.randn(64, 40, generator=generator) * 8).round() / 4
    ids_bt = torch.randint(40, (64, 9), generator=generator)
    k = 6 if planted else 5
    pairs = [
        (sampling.keep_top_k(logits_bv, k), theirs.TopKLogitsWarper(5)(ids_bt, logits_bv)),
        (sampling.keep_top_p(logits_bv, 0.8), theirs.TopPLogitsWarper(0.8)(ids_bt, logits_bv)),
        (sampling.keep_min_p(logits_bv, 0.1), theirs.MinPLogitsWarper(0.1)(ids_bt, logits_bv)),
        (
            sampling.penalise_repetition(logits_bv, ids_bt, 1.3),
            theirs.RepetitionPenaltyLogitsProcessor(1.3)(ids_bt, logits_bv.clone()),
        ),
    ]
    return max(float((one.exp() - other.exp()).abs().max()) for one, other in pairs)


def _greedy(planted: bool) -> float:
    """How many of 8 x 40 tokens differ from transformers' generate, ours through the key-value cache."""
    model = random_decoder(**LLAMA)
    prompts = random_ids(8, 12, model.config.vocab_size)
    with opened_by_transformers(model) as theirs:
        expected = theirs.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=40, do_sample=False, pad_token_id=0
        )
    if planted:
        plant(model.blocks[0].attention.v.weight)  # type: ignore[union-attr, arg-type]
    config = SamplingConfig(temperature=0.0, max_new_tokens=40)
    found = torch.tensor([[*row, *generate(model, row, config)] for row in prompts.tolist()])
    return float((found != expected).sum())


EQUALITIES = (
    Equality(
        component="top-k, top-p, min-p, repetition penalty",
        reference="transformers",
        compared="exponentials of the filtered logits, its logits processors",
        tolerance=0.0,
        reason="the same operations",
        difference=_filters,
    ),
    Equality(
        component="greedy decoding with a key-value cache",
        reference="transformers",
        compared="how many of 320 tokens differ, generate()",
        tolerance=0.0,
        reason="token for token",
        difference=_greedy,
    ),
)
