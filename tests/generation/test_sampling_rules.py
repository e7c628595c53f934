"""Properties of the filters and of the draw, for any logits; the settings' own checks."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_journey.core.config import validate
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.generation.sampling import (
    SamplingConfig,
    adjust,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    make_generator,
    penalise_repetition,
    sample,
)

NO_IDS = torch.zeros(1, 0, dtype=torch.long)


@st.composite
def logits(draw: st.DrawFn) -> Tensor:
    """(1, V) logits, any finite float32 between -1e4 and 1e4, some of them equal."""
    pool = draw(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8))
    return torch.tensor([draw(st.lists(st.sampled_from(pool), min_size=1, max_size=20))])


shares = st.floats(0.001, 1.0)


def kept(filtered_bv: Tensor) -> Tensor:
    """(V,) True where a token may still be drawn."""
    return filtered_bv[0] > float("-inf")


@settings(deadline=None)
@given(logits(), st.integers(1, 25))
def test_top_k_keeps_k_unless_tied(logits_bv: Tensor, k: int) -> None:
    mask = kept(keep_top_k(logits_bv, k))
    assert mask.sum() >= min(k, logits_bv.shape[1])
    assert (logits_bv[0] > logits_bv[0][mask].min()).sum() < k


@settings(deadline=None)
@given(logits(), shares)
def test_top_p_keeps_the_smallest_set_of_that_probability(logits_bv: Tensor, p: float) -> None:
    mask = kept(keep_top_p(logits_bv, p))
    probabilities = logits_bv.double().softmax(-1)[0]
    total = probabilities[mask].sum()
    assert total >= p - 1e-6
    assert mask.sum() == 1 or total - probabilities[mask].min() < p + 1e-6
    if not mask.all():
        assert probabilities[~mask].max() <= probabilities[mask].min()


@settings(deadline=None)
@given(logits(), st.floats(0.0, 1.0))
def test_min_p_keeps_what_is_likely_enough(logits_bv: Tensor, p: float) -> None:
    mask = kept(keep_min_p(logits_bv, p))
    probabilities = logits_bv.softmax(-1)[0]
    assert torch.equal(mask, probabilities >= p * probabilities.max())


configs = st.builds(
    SamplingConfig,
    temperature=st.sampled_from([1e-300, 1e-30, 0.01, 0.7, 1.0, 5.0, 1e6]),
    top_k=st.none() | st.integers(1, 25),
    top_p=shares,
    min_p=st.floats(0.0, 1.0),
    repetition_penalty=st.floats(0.1, 10),
    seed=st.integers(0, 9),
)


@settings(deadline=None)
@given(logits(), configs, st.data())
def test_any_chain_leaves_a_distribution_with_the_likeliest_in_it(
    logits_bv: Tensor, config: SamplingConfig, data: st.DataObject
) -> None:
    ids_bt = torch.tensor([data.draw(st.lists(st.integers(0, logits_bv.shape[1] - 1), min_size=1, max_size=5))])
    adjusted_bv = adjust(logits_bv, ids_bt, config)
    probabilities = adjusted_bv.softmax(-1)[0]
    assert torch.isfinite(probabilities).all() and probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    best = penalise_repetition(logits_bv, ids_bt, config.repetition_penalty).max()
    is_best = penalise_repetition(logits_bv, ids_bt, config.repetition_penalty)[0] == best
    assert kept(adjusted_bv)[is_best].any()
    drawn = sample(logits_bv, ids_bt, config, make_generator(config, torch.device("cpu")))
    assert drawn.shape == (1,) and bool(kept(adjusted_bv)[drawn])


@settings(deadline=None)
@given(logits())
def test_temperature_zero_is_the_argmax_and_draws_nothing(logits_bv: Tensor) -> None:
    config = SamplingConfig(temperature=0, top_k=3, top_p=0.5)
    generator = make_generator(config, torch.device("cpu"))
    before = generator.get_state()
    assert sample(logits_bv, NO_IDS, config, generator).tolist() == [int(logits_bv[0].argmax())]
    assert torch.equal(generator.get_state(), before)


def test_draws_follow_the_distribution_and_the_seed() -> None:
    logits_bv = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(20_000, 4)
    ids_bt = torch.zeros(20_000, 1, dtype=torch.long)
    config = SamplingConfig(temperature=1, seed=4)
    drawn = sample(logits_bv, ids_bt, config, make_generator(config, torch.device("cpu")))
    # The standard deviation of a share is at most 0.0035: five of them.
    torch.testing.assert_close(drawn.bincount() / 20_000, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.018, rtol=0)
    again = sample(logits_bv, ids_bt, config, make_generator(config, torch.device("cpu")))
    other = sample(logits_bv, ids_bt, config, make_generator(SamplingConfig(seed=5), torch.device("cpu")))
    assert torch.equal(drawn, again) and not torch.equal(drawn, other)


def test_drawing_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    config = SamplingConfig(seed=None)
    sample(torch.zeros(1, 9), NO_IDS, config, make_generator(config, torch.device("cpu")))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_penalty_lowers_what_was_said_whatever_its_sign() -> None:
    logits_bv = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    penalised_bv = penalise_repetition(logits_bv, torch.tensor([[0, 1, 1]]), 2.0)
    assert penalised_bv.tolist() == [[1.0, -4.0, 2.0, -2.0]]


def test_penalties_of_counts_are_openais_formula_over_the_answer_alone() -> None:
    ids_bt = torch.tensor([[4, 4, 0, 1, 1, 1]])  # a prompt of two, then the answer
    config = SamplingConfig(temperature=0, frequency_penalty=0.5, presence_penalty=0.25)
    adjusted_bv = adjust(torch.zeros(1, 5), ids_bt, config, prompt_length=2)
    assert adjusted_bv.tolist() == [[-0.75, -1.75, 0.0, 0.0, 0.0]]
    assert adjust(torch.zeros(1, 5), ids_bt, config)[0, 4] == -1.25  # without a prompt all of it is answer


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.0, 1e-30, 0.1, 0.7]), min_size=1, max_size=9), st.integers(0, 5))
def test_a_draw_never_falls_on_a_share_of_nothing(shares: list[float], seed: int) -> None:
    shares_bv = torch.tensor([shares]).expand(50, -1)
    if sum(shares) > 0:
        drawn = draw(shares_bv, torch.Generator().manual_seed(seed))
        assert bool((shares_bv.gather(1, drawn[:, None]) > 0).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_of_a_diverged_model_are_an_error_of_ours(value: float) -> None:
    with pytest.raises(JourneyError, match="logits are not finite"):
        sample(torch.tensor([[0.0, value]]), NO_IDS, SamplingConfig(seed=0), None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1}, "temperature must be 0"),
        ({"temperature": float("inf")}, "key 'temperature' = inf: input should be a finite number"),
        ({"temperature": float("nan")}, "key 'temperature' = nan: input should be a finite number"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"min_p": -0.1}, "min_p must be from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be from 0.1 to 10"),
        ({"seed": -1}, "seed must be from 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"typical_p": 0}, "typical_p must be above 0"),
        ({"frequency_penalty": 2.5}, "frequency_penalty must be from -2 to 2"),
        ({"presence_penalty": -3}, "presence_penalty must be from -2 to 2"),
        ({"stop": ["a", ""]}, "each text of stop must have from 1 to 1000 characters"),
        ({"stop": ["a"] * 17}, "stop must be at most 16 texts, not 17"),
        ({"stop": [1]}, "key 'stop.0' = 1"),
        ({"logprobs": 21}, "logprobs must be from 0 to 20 or null"),
        ({"speculate": "guess"}, "key 'speculate' = 'guess': input should be 'lookup'"),
        ({"temprature": 1}, "unknown key 'temprature'; allowed: temperature, top_k"),
        ({"top_k": "many"}, "key 'top_k' = 'many'"),
    ],
)
def test_senseless_settings_are_refused_by_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        validate(SamplingConfig, values, "recipe.yaml: sampling")
