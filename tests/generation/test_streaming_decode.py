"""Streamed decoding: when it stops and why, what it refuses, what it leaves alone."""

from typing import Any

import pytest
import torch

from llm_journey.core.errors import BadInputError
from llm_journey.generation.decode import generate
from llm_journey.generation.sampling import SamplingConfig
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder


def _model(**choices: Any) -> Decoder:
    sizes = {"vocab_size": 31, "width": 16, "num_layers": 2, "num_heads": 2, "context": 12}
    model = Decoder(TransformerConfig(**(sizes | choices))).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5 if parameter.ndim == 1 else 0.0, 0.3, generator=generator)
    return model


GREEDY = SamplingConfig(temperature=0, max_new_tokens=6)


def test_incident_10_a_prompt_longer_than_the_context_is_refused_with_both_counts() -> None:
    """ollama#17889: such a prompt was cut in silence. Refused at the call, before anything is computed."""
    with pytest.raises(BadInputError, match="the prompt has 13 tokens, the model's context holds 12") as caught:
        generate(_model(), [1] * 13, GREEDY)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "the prompt is empty"), ([3, 31], "token id 31 is outside .* of 31"), ([-1], "token id -1 is outside")],
)
def test_senseless_prompts_are_refused(ids: list[int], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        generate(_model(), ids, GREEDY)


def test_it_ends_after_max_new_tokens() -> None:
    seen: list[int] = []
    generation = generate(_model(), [1, 2], GREEDY, on_token=seen.append)
    assert generation.finish_reason is None
    assert list(generation) == seen == generation.new_ids and len(seen) == 6
    assert generation.finish_reason == "length"
    with pytest.raises(StopIteration):
        next(generation)


@pytest.mark.parametrize("length", [5, 11, 12])
def test_it_ends_where_the_context_is_full(length: int) -> None:
    config = SamplingConfig(temperature=0, max_new_tokens=100)
    generation = generate(_model(), [1] * length, config)
    assert len(list(generation)) == 12 - length
    assert generation.finish_reason == "context"


def test_a_stop_id_ends_it_and_is_not_given() -> None:
    plain = list(generate(_model(), [4], GREEDY))
    stop = plain[3]
    generation = generate(_model(), [4], GREEDY, stop_ids={stop, 30})
    assert list(generation) == plain[: plain.index(stop)]
    assert generation.finish_reason == "stop"


def test_tokens_come_one_by_one() -> None:
    """Only as many passes as tokens asked for: the first token does not wait for the last."""
    model, passes = _model(), []
    hidden = model.hidden
    model.hidden = lambda ids_bt, **named: (passes.append(ids_bt.shape[1]), hidden(ids_bt, **named))[1]  # type: ignore
    generation = generate(model, [1, 2, 3], GREEDY)
    assert passes == []
    next(generation)
    next(generation)
    assert passes == [3, 1]


def test_a_seed_fixes_the_text_and_no_seed_does_not() -> None:
    def draw(seed: int | None) -> list[int]:
        config = SamplingConfig(temperature=5, seed=seed, max_new_tokens=10)
        return list(generate(_model(), [1], config))

    assert draw(1) == draw(1) != draw(2)
    assert len({tuple(draw(None)) for _ in range(5)}) > 1


def test_a_model_in_training_is_read_without_dropout_and_left_in_training() -> None:
    model = _model(dropout=0.5)
    expected = list(generate(model, [7], GREEDY))
    model.train()
    before = torch.get_rng_state()
    assert list(generate(model, [7], GREEDY)) == expected
    assert model.training and model.blocks[0].training and torch.equal(torch.get_rng_state(), before)


def test_between_tokens_the_caller_is_not_in_inference_mode() -> None:
    for _ in generate(_model(), [1], GREEDY):
        assert not torch.is_inference_mode_enabled()
        assert torch.ones(1, requires_grad=True).exp().requires_grad


def test_half_precision_models_generate() -> None:
    assert len(list(generate(_model().to(torch.bfloat16), [1, 2], GREEDY))) == 6
