"""Batches by length, poolings, packed layers: each equal to its plain form."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llm_journey.core.errors import BadInputError
from llm_journey.generation.embed import POOLING, embed_ids, plan_batches
from llm_journey.generation.packed_linear import PackedLinear, pack_linears, unpack_linears
from llm_journey.model.config import TransformerConfig
from llm_journey.model.encoder import Encoder

SIZES = {"vocab_size": 50, "width": 24, "num_layers": 2, "num_heads": 4, "context": 32, "bias": True, "mlp": "gelu"}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    model = Encoder(TransformerConfig(kind="encoder", norm="layernorm", norm_placement="post", **SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.7 if parameter.ndim == 1 else 0.0, 0.3)
    return model


@given(lengths=st.lists(st.integers(1, 300), max_size=80), budget=st.integers(1, 2000))
def test_a_plan_holds_each_text_once_and_stays_within_its_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= budget
    longest = [[lengths[index] for index in batch] for batch in batches]
    assert all(max(left) <= min(right) for left, right in itertools.pairwise(longest))


def test_much_text_of_like_length_is_hardly_padded() -> None:
    lengths = [10 + index % 90 for index in range(5000)]
    batches = plan_batches(lengths, 1024)
    padded = sum(max(lengths[index] for index in batch) * len(batch) for batch in batches)
    assert padded < 1.005 * sum(lengths)
    assert len(batches) < 1.3 * sum(lengths) / 1024


@pytest.mark.parametrize("pooling", sorted(POOLING))
def test_a_batch_equals_text_by_text(encoder: Encoder, pooling: str) -> None:
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(1, 50, (length,), generator=generator).tolist() for length in (7, 1, 32, 7, 3, 12, 31)]
    told: list[int] = []
    together = embed_ids(encoder, texts, pooling=pooling, normalize=False, max_batch_tokens=500, on_batch=told.append)
    assert sum(told) == 7 and len(told) < 4
    for text, vector in zip(texts, together, strict=True):
        with torch.no_grad():
            hidden_td = encoder.hidden(torch.tensor([text]))[0]
        expected = {"mean": hidden_td.mean(0), "max": hidden_td.max(0).values, "cls": hidden_td[0]}[pooling]
        np.testing.assert_allclose(vector, expected.numpy(), rtol=1e-4, atol=1e-5)
    of_length_one = embed_ids(encoder, texts, pooling=pooling)
    np.testing.assert_allclose(np.linalg.norm(of_length_one, axis=1), 1.0, atol=1e-6)


def test_no_text_gives_no_vectors_and_wrong_input_is_refused(encoder: Encoder) -> None:
    assert embed_ids(encoder, []).shape == (0, 24)
    with pytest.raises(BadInputError, match="unknown pooling 'median'"):
        embed_ids(encoder, [[1]], pooling="median")
    with pytest.raises(BadInputError, match="33 positions are more than the model's context of 32"):
        embed_ids(encoder, [[1] * 33])


def test_packed_layers_compute_the_same_and_come_off_again(encoder: Encoder) -> None:
    ids = torch.randint(1, 50, (3, 11), generator=torch.Generator().manual_seed(2))
    plain = copy.deepcopy(encoder)
    assert pack_linears(encoder) == 12 and pack_linears(encoder) == 0
    assert isinstance(encoder.blocks[0].attention.q, PackedLinear)
    assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in plain.parameters())
    with torch.inference_mode():
        torch.testing.assert_close(encoder.hidden(ids), plain.hidden(ids), rtol=1e-5, atol=1e-5)
        before = encoder.hidden(ids)
        encoder.blocks[0].attention.q.source.weight.zero_()
        assert torch.equal(encoder.hidden(ids), before), "the packed copy computes, not the source"
        encoder.blocks[0].attention.q.source.weight.copy_(plain.blocks[0].attention.q.weight)
    assert unpack_linears(encoder) == 12
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), plain.parameters(), strict=True))
    assert type(encoder.blocks[0].attention.q) is nn.Linear


def test_a_packed_layer_has_gradients_and_knows_other_types() -> None:
    layer = nn.Linear(8, 5)
    packed = PackedLinear(layer)
    packed(torch.ones(2, 8)).sum().backward()
    assert layer.weight.grad is not None and torch.equal(layer.weight.grad, torch.full((5, 8), 2.0))
    double = PackedLinear(nn.Linear(8, 5)).double()
    with torch.inference_mode():
        assert double(torch.ones(2, 8, dtype=torch.float64)).dtype == torch.float64
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert packed(torch.ones(2, 8)).dtype == torch.bfloat16


def test_two_threads_give_what_one_gives_and_leave_the_setting(encoder: Encoder) -> None:
    texts = [[1 + (index * 7 + place) % 49 for place in range(1 + index % 30)] for index in range(60)]
    alone = embed_ids(encoder, texts, max_batch_tokens=64)
    torch.set_num_threads(2)
    told: list[int] = []
    together = embed_ids(encoder, texts, max_batch_tokens=64, on_batch=told.append)
    assert torch.get_num_threads() == 2 and sum(told) == 60
    np.testing.assert_allclose(together, alone, atol=1e-6)
    with pytest.raises(BadInputError, match="33 positions"):
        embed_ids(encoder, [*texts, [1] * 33], max_batch_tokens=64)
    assert torch.get_num_threads() == 2
