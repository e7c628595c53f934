"""Decoding: logit filters, and greedy text with the key-value cache."""

from typing import Any

import torch

from llm_journey.generation import sampling
from llm_journey.generation.beam import write_targets
from llm_journey.generation.decode import generate
from llm_journey.generation.sampling import SamplingConfig
from llm_journey.model.encoder_decoder import EncoderDecoder
from llm_journey.parity.equality import Equality
from llm_journey.parity.random_models import (
    LLAMA,
    opened_by_transformers,
    plant,
    random_decoder,
    random_encoder_decoder,
    random_ids,
)


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


def _decided_encoder_decoder(end: int) -> EncoderDecoder:
    """A random model whose hypotheses differ and end at different lengths: strong blocks, weak embeddings."""
    model = random_encoder_decoder(scale=0.3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.sub_(0.7)
            elif parameter.ndim == 2:
                parameter.mul_(1 / 3 if "embed" in name else 4.0)
        assert model.head_bias is not None
        model.head_bias[end] += 1.5
    return model


def _beams(planted: bool) -> float:
    """Scores of 5 x 4 hypotheses against those of generate(num_beams=5), on a random model like Marian."""
    begin = pad = 0
    end, longest = 1, 12
    model = _decided_encoder_decoder(end)
    sources = [row[:length] for row, length in zip(random_ids(4, 9, 97, seed=3).tolist(), (9, 4, 6, 1), strict=True)]
    padded = torch.tensor([[*row, *[pad] * (9 - len(row))] for row in sources])
    with opened_by_transformers(model, "AutoModelForSeq2SeqLM") as theirs:
        mask = torch.tensor([[1] * len(row) + [0] * (9 - len(row)) for row in sources])
        settings = theirs.generation_config
        settings.update(bos_token_id=None, eos_token_id=end, pad_token_id=pad, decoder_start_token_id=begin)
        settings.update(forced_eos_token_id=None, bad_words_ids=None)
        expected = theirs.generate(
            input_ids=padded,
            attention_mask=mask,
            num_beams=5,
            num_return_sequences=5,
            max_new_tokens=longest,
            do_sample=False,
            length_penalty=0.6,
            early_stopping="never",
            output_scores=True,
            return_dict_in_generate=True,
        ).sequences_scores
    if planted:
        model.head_bias.data[end] += 0.5  # type: ignore[union-attr]
    found = write_targets(
        model,
        sources,
        begin_id=begin,
        end_id=end,
        pad_id=pad,
        max_length=longest,
        num_beams=5,
        penalty=lambda length: length**0.6,
    )
    ours = torch.tensor([item.score for row in found for item in row])
    return float((ours - expected).abs().max())


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
    Equality(
        component="beam search",
        reference="transformers",
        compared="scores of 20 hypotheses, best first, generate(num_beams=5)",
        tolerance=1e-4,
        reason="float32 log-probabilities added up",
        difference=_beams,
    ),
)
