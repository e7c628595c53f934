"""Decoding: logit filters, greedy text with the key-value cache, beam search.

Legend: B batch, T positions, V vocabulary.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llm_journey.generation import sampling
from llm_journey.generation.beam import write_targets
from llm_journey.generation.engine import Engine
from llm_journey.generation.runner import Runner
from llm_journey.generation.sampling import SamplingConfig
from llm_journey.model.decoder import Decoder
from llm_journey.model.encoder_decoder import EncoderDecoder
from llm_journey.parity.differences import largest, num_differing
from llm_journey.parity.equality import Equality
from llm_journey.parity.random_models import (
    GPT2,
    LLAMA,
    QWEN3,
    opened_by_transformers,
    random_decoder,
    random_encoder_decoder,
    random_ids,
)


def _filter(planted: bool, *, ours: Callable[..., Tensor], peer: str, value: float, wrong: float) -> float:
    """One filter on 64 rows with ties: the largest difference of the kept logits' exponentials."""
    from transformers.generation import logits_process

    logits_bv, ids_bt = _logits_with_ties()
    expected = getattr(logits_process, peer)(value)(ids_bt, logits_bv.clone())
    return largest(ours(logits_bv, ids_bt, wrong if planted else value).exp(), expected.exp())


def _logits_with_ties() -> tuple[Tensor, Tensor]:
    """(64, 40) logits in quarters, and nine ids that stand before each row."""
    generator = torch.Generator().manual_seed(0)
    logits_bv = (torch.randn(64, 40, generator=generator) * 8).round() / 4
    return logits_bv, torch.randint(40, (64, 9), generator=generator)


def _all_filters(planted: bool) -> float:
    """What is drawn from, after everything at once: probabilities against transformers' processors in its order."""
    from transformers.generation import logits_process

    peer: Any = logits_process
    logits_bv, ids_bt = _logits_with_ties()
    scores = logits_bv.clone()
    for process in (
        peer.RepetitionPenaltyLogitsProcessor(1.3),
        peer.TemperatureLogitsWarper(0.7),
        peer.TopKLogitsWarper(20),
        peer.TopPLogitsWarper(0.9),
        peer.MinPLogitsWarper(0.05),
    ):
        scores = process(ids_bt, scores)
    config = SamplingConfig(
        temperature=0.71 if planted else 0.7, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.3
    )
    return largest(sampling.adjust(logits_bv, ids_bt, config).softmax(-1), scores.softmax(-1))


def _talkative_decoder(choices: dict[str, Any]) -> Decoder:
    """A random model that does not say one token for ever: strong matrices, no biases."""
    model = random_decoder(scale=0.6, **choices)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return model


def _greedy(planted: bool, *, choices: dict[str, Any], penalty: float) -> float:
    """How many of 4 x 32 new tokens differ from transformers' generate, ours from the engine, four in a pass."""
    model = _talkative_decoder(choices)
    prompts = random_ids(4, 12, model.config.vocab_size)
    with opened_by_transformers(model) as theirs:
        expected = theirs.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=32, do_sample=False, pad_token_id=0,
            repetition_penalty=penalty,
        )  # fmt: skip
    if planted:  # one weight may leave every choice as it was: the whole matrix changes its sign
        with torch.no_grad():
            model.blocks[0].attention.v.weight.neg_()  # type: ignore[union-attr, operator]
    config = SamplingConfig(temperature=0.0, max_new_tokens=32, repetition_penalty=penalty)
    engine = Engine(Runner(model))
    requests = [engine.submit(row, config) for row in prompts.tolist()]
    while engine.busy:
        engine.step()
    found = [token.id for request in requests for token in request.tokens]
    return num_differing(found, expected[:, prompts.shape[1] :].flatten().tolist())


def _decided_encoder_decoder() -> EncoderDecoder:
    """A random model whose hypotheses differ in score and length: plain norms, strong matrices, an end that comes."""
    model = random_encoder_decoder(num_layers=2, vocab_size=23, scale=0.3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            elif "embed" in name:
                parameter.mul_(0.4)  # tied to the head: large ones repeat the token that stands there
        assert model.head_bias is not None
        model.head_bias.normal_(generator=generator)
        model.head_bias[_END] += 4.5
    return model


_BEGIN = _PAD = 0
_END, _LONGEST = 1, 12


def _beams(planted: bool, *, num_beams: int, early_stopping: bool = False) -> float:
    """Scores of every hypothesis, infinite where one has other ids; the planted error adds a nat to the end."""
    model = _decided_encoder_decoder()
    sources = [row[:length] for row, length in zip(random_ids(4, 9, 23, seed=3).tolist(), (9, 4, 6, 1), strict=True)]
    ids, scores = _their_beams(model, sources, num_beams, early_stopping)
    if planted:
        model.head_bias.data[_END] += 1.0  # type: ignore[union-attr]
    found = write_targets(
        model, sources, begin_id=_BEGIN, end_id=_END, pad_id=_PAD, max_length=_LONGEST, num_beams=num_beams,
        penalty=lambda length: length**0.6, early_stopping=early_stopping,
    )  # fmt: skip
    hypotheses = [item for row in found for item in row]
    if [list(item.ids) for item in hypotheses] != ids:
        return math.inf
    return largest([item.score for item in hypotheses], scores) if num_beams > 1 else 0.0


def _their_beams(
    model: EncoderDecoder, sources: list[list[int]], num_beams: int, early_stopping: bool
) -> tuple[list[list[int]], list[float]]:
    """Ids (begin and end left out) and scores of transformers' hypotheses, best first; greedy search has no scores."""
    padded = torch.tensor([[*row, *[_PAD] * (9 - len(row))] for row in sources])
    mask = torch.tensor([[1] * len(row) + [0] * (9 - len(row)) for row in sources])
    with opened_by_transformers(model, "AutoModelForSeq2SeqLM") as theirs:
        settings = theirs.generation_config
        settings.update(bos_token_id=None, eos_token_id=_END, pad_token_id=_PAD, decoder_start_token_id=_BEGIN)
        settings.update(forced_eos_token_id=None, bad_words_ids=None)
        options = {"length_penalty": 0.6, "early_stopping": early_stopping or "never"} if num_beams > 1 else {}
        out = theirs.generate(
            input_ids=padded, attention_mask=mask, num_beams=num_beams, num_return_sequences=num_beams,
            max_new_tokens=_LONGEST, do_sample=False, output_scores=True, return_dict_in_generate=True, **options,
        )  # fmt: skip
    rows = [row[: row.index(_END)] if _END in row else row[:_LONGEST] for row in out.sequences[:, 1:].tolist()]
    return rows, out.sequences_scores.tolist() if num_beams > 1 else []


_vs_transformers = partial(Equality, reference="transformers", tolerance=0.0)
_same = partial(_vs_transformers, reason="the same operations")

EQUALITIES = (
    *(
        _same(
            component=component,
            compared=f"exponentials of the filtered logits, {peer}",
            difference=partial(_filter, ours=ours, peer=peer, value=value, wrong=wrong),
        )
        for component, peer, ours, value, wrong in (
            ("top-k", "TopKLogitsWarper", lambda logits, _, k: sampling.keep_top_k(logits, k), 5, 6),
            ("top-p", "TopPLogitsWarper", lambda logits, _, p: sampling.keep_top_p(logits, p), 0.8, 0.81),
            ("min-p", "MinPLogitsWarper", lambda logits, _, p: sampling.keep_min_p(logits, p), 0.1, 0.08),
            (
                "repetition penalty",
                "RepetitionPenaltyLogitsProcessor",
                sampling.penalise_repetition,
                1.3,
                1.31,
            ),
        )
    ),
    Equality(
        component="all filters at once",
        reference="transformers",
        compared="probabilities to draw from, its processors one after another",
        tolerance=1e-6,
        reason="a few roundings of float32",
        difference=_all_filters,
    ),
    *(
        _vs_transformers(
            component=f"greedy decoding with a key-value cache, {name}",
            compared="how many of 128 new tokens differ, generate()",
            reason="token for token",
            difference=partial(_greedy, choices=choices, penalty=penalty),
        )
        for name, choices, penalty in (
            ("gpt2", GPT2, 1.0),
            ("llama with grouped queries", LLAMA, 1.0),
            ("qwen3 with a sliding window", QWEN3 | {"sliding_window": 5}, 1.0),
            ("llama with a repetition penalty", LLAMA, 1.4),
        )
    ),
    _vs_transformers(
        component="greedy search of an encoder-decoder",
        compared="ids of four padded sources, generate(num_beams=1)",
        reason="token for token",
        difference=partial(_beams, num_beams=1),
    ),
    *(
        Equality(
            component=f"beam search, {name}",
            reference="transformers",
            compared="ids and scores of 20 hypotheses, best first, generate(num_beams=5)",
            tolerance=1e-4,
            reason="float32 log-probabilities added up",
            difference=partial(_beams, num_beams=5, early_stopping=early_stopping),
        )
        for name, early_stopping in (("to the end", False), ("stopping early", True))
    ),
)
