"""Each filter of ours against its class in transformers, ties and extreme values included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process as theirs

from llm_journey.generation import sampling
from llm_journey.generation.sampling import SamplingConfig


@st.composite
def logits(draw: st.DrawFn, vocabulary: int = 12) -> Tensor:
    """(2, V) logits; drawn from few values half of the time, so that ties are common."""
    few = st.sampled_from([-3.0, 0.0, 0.5, 2.0])
    many = st.floats(-30, 30, width=32)
    numbers = draw(st.lists(draw(st.sampled_from([few, many])), min_size=2 * vocabulary, max_size=2 * vocabulary))
    return torch.tensor(numbers).view(2, vocabulary)


ids_before = st.lists(st.integers(0, 11), min_size=1, max_size=6).map(lambda row: torch.tensor([row, row[::-1]]))


@settings(deadline=None)
@given(logits(), ids_before, st.floats(0.1, 10))
def test_repetition_penalty(logits_bv: Tensor, ids_bt: Tensor, penalty: float) -> None:
    expected_bv = theirs.RepetitionPenaltyLogitsProcessor(penalty)(ids_bt, logits_bv.clone())
    assert torch.equal(sampling.penalise_repetition(logits_bv, ids_bt, penalty), expected_bv)


@settings(deadline=None)
@given(logits(), ids_before, st.integers(1, 20))
def test_top_k(logits_bv: Tensor, ids_bt: Tensor, k: int) -> None:
    assert torch.equal(sampling.keep_top_k(logits_bv, k), theirs.TopKLogitsWarper(k)(ids_bt, logits_bv))


few = st.integers(1, 12)  # candidates: from one to the whole vocabulary


@settings(deadline=None, max_examples=300)
@given(logits(), ids_before, st.floats(0.01, 0.99) | st.sampled_from([0.25, 0.5, 0.75]), few)
def test_top_p(logits_bv: Tensor, ids_bt: Tensor, p: float, candidates: int) -> None:
    assert torch.equal(sampling.keep_top_p(logits_bv, p, candidates), theirs.TopPLogitsWarper(p)(ids_bt, logits_bv))


@settings(deadline=None, max_examples=300)
@given(logits(), ids_before, st.floats(0.01, 0.99) | st.sampled_from([0.25, 0.5, 0.75]), few)
def test_typical_p(logits_bv: Tensor, ids_bt: Tensor, p: float, candidates: int) -> None:
    expected_bv = theirs.TypicalLogitsWarper(p)(ids_bt, logits_bv)
    assert torch.equal(sampling.keep_typical_p(logits_bv, p, candidates), expected_bv)


@pytest.mark.parametrize("scale", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("p", [0.1, 0.9, 0.95])
def test_the_largest_few_decide_as_the_sort_does(scale: float, p: float) -> None:
    """At the size of a real vocabulary; flat logits, where the few cannot decide, among them."""
    logits_bv = scale * torch.randn(4, 49_152, generator=torch.Generator().manual_seed(int(10 * scale)))
    ids_bt = torch.zeros(4, 1, dtype=torch.long)
    for row_1v in logits_bv.split(1):
        assert torch.equal(sampling.keep_top_p(row_1v, p), theirs.TopPLogitsWarper(p)(ids_bt, row_1v))
        assert torch.equal(sampling.keep_typical_p(row_1v, p), theirs.TypicalLogitsWarper(p)(ids_bt, row_1v))


@settings(deadline=None)
@given(logits(), ids_before, st.floats(0.0, 1.0))
def test_min_p(logits_bv: Tensor, ids_bt: Tensor, p: float) -> None:
    assert torch.equal(sampling.keep_min_p(logits_bv, p), theirs.MinPLogitsWarper(p)(ids_bt, logits_bv))


@settings(deadline=None, max_examples=200)
@given(
    logits_bv=logits(),
    ids_bt=ids_before,
    penalty=st.sampled_from([1.0, 1.3]),
    temperature=st.sampled_from([0.25, 1.0, 2.0]),
    k=st.sampled_from([None, 1, 5]),
    p=st.sampled_from([0.3, 0.83, 1.0]),
    share=st.sampled_from([0.0, 0.07, 1.0]),
    typical=st.sampled_from([0.4, 1.0]),
)
def test_whole_chain(
    logits_bv: Tensor,
    ids_bt: Tensor,
    penalty: float,
    temperature: float,
    k: int | None,
    p: float,
    share: float,
    typical: float,
) -> None:
    """Equal as distributions: ours measures logits from the largest. Powers of two as temperatures keep ties exact."""
    # Steps of 2^-10: else subtracting the largest can make two logits equal, and a tie may fall either way.
    logits_bv = (logits_bv.double() * 1024).round() / 1024
    config = SamplingConfig(
        temperature=temperature, top_k=k, top_p=p, min_p=share, typical_p=typical, repetition_penalty=penalty
    )
    chain = theirs.LogitsProcessorList([theirs.RepetitionPenaltyLogitsProcessor(penalty)])
    chain.append(theirs.TemperatureLogitsWarper(temperature))
    chain.extend([theirs.TopKLogitsWarper(k)] if k is not None else [])
    chain.extend([theirs.TopPLogitsWarper(p)] if p < 1 else [])
    chain.extend([theirs.MinPLogitsWarper(share)] if share > 0 else [])
    chain.extend([theirs.TypicalLogitsWarper(typical)] if typical < 1 else [])
    expected_bv = chain(ids_bt, logits_bv.double().clone()).softmax(-1)
    found_bv = sampling.adjust(logits_bv.double(), ids_bt, config).softmax(-1)
    torch.testing.assert_close(found_bv, expected_bv, atol=1e-12, rtol=0)


@pytest.mark.parametrize("temperature", [0.7, 1.6])
def test_temperature(temperature: float) -> None:
    logits_bv = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    expected_bv = theirs.TemperatureLogitsWarper(temperature)(torch.zeros(3, 1), logits_bv).softmax(-1)
    found_bv = sampling.adjust(logits_bv, torch.zeros(3, 1, dtype=torch.long), SamplingConfig(temperature=temperature))
    torch.testing.assert_close(found_bv.softmax(-1), expected_bv, atol=1e-6, rtol=0)
