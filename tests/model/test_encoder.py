"""The encoder: each position sees every other, padding and packing change nothing, each part is what it is called."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.model.encoder import Encoder
from llm_journey.model.kinds import make_model

VOCABULARY, CONTEXT = 29, 16
STYLES: dict[str, dict[str, Any]] = {
    "bert": {
        "norm": "layernorm",
        "norm_placement": "post",
        "positions": "learned",
        "mlp": "gelu",
        "bias": True,
        "token_types": 2,
        "embedding_norm": True,
        "pooler": True,
        "head_transform": True,
        "head_bias": True,
    },
    "modern": {"num_kv_heads": 2, "qk_norm": True},
    "plain": {"norm": "layernorm", "positions": "sinusoidal_halves", "mlp": "relu", "tied_embeddings": False},
}


def _config(style: str, **changes: Any) -> TransformerConfig:
    shape = {"vocab_size": VOCABULARY, "width": 16, "num_layers": 2, "num_heads": 4, "context": CONTEXT}
    return TransformerConfig(**(shape | {"kind": "encoder"} | STYLES[style] | changes))


def _encoder(style: str, **changes: Any) -> Encoder:
    torch.manual_seed(0)
    model = Encoder(_config(style, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5 if parameter.ndim == 1 else 0.0, 0.3)
    return model


@pytest.mark.parametrize("style", STYLES)
@torch.no_grad()
def test_every_position_sees_every_other(style: str) -> None:
    """Another token anywhere changes every hidden state: before it, at it and behind it."""
    model = _encoder(style)
    ids = torch.randint(VOCABULARY, (1, CONTEXT), generator=torch.Generator().manual_seed(1))
    before = model.hidden(ids)
    for place in (0, 7, CONTEXT - 1):
        changed = ids.clone()
        changed[0, place] = (changed[0, place] + 1) % VOCABULARY
        assert not (model.hidden(changed) == before).all(-1).any()


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=10, deadline=None)
@given(left=st.integers(0, 5), right=st.integers(0, 5), length=st.integers(1, 6), filler=st.integers(0, VOCABULARY - 1))
@torch.no_grad()
def test_padding_changes_no_logit(style: str, left: int, right: int, length: int, filler: int) -> None:
    """Padding on either side, whatever token fills it; other shapes round differently: 1e-5 of logits of about 1."""
    model = _encoder(style)
    ids = torch.randint(VOCABULARY, (2, length), generator=torch.Generator().manual_seed(length))
    padded = F.pad(ids, (left, right), value=filler)
    mask = F.pad(torch.ones_like(ids, dtype=torch.bool), (left, right), value=False)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    found = model(padded, padding_mask_bs=mask, positions_bt=positions)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found[:, left : left + length], model(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("style", STYLES)
@torch.no_grad()
def test_packed_texts_do_not_see_each_other(style: str) -> None:
    model = _encoder(style)
    first, second = torch.randint(VOCABULARY, (1, 5)), torch.randint(VOCABULARY, (1, 7))
    segments, positions = torch.tensor([[0] * 5 + [1] * 7]), torch.tensor([[*range(5), *range(7)]])
    packed = model.hidden(torch.cat([first, second], 1), segments_bt=segments, positions_bt=positions)
    alone = torch.cat([model.hidden(first), model.hidden(second)], 1)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_token_types_are_added_to_the_embeddings_and_are_zero_unless_given() -> None:
    model = _encoder("bert")
    ids = torch.randint(VOCABULARY, (2, 6))
    types = torch.tensor([[0, 0, 1, 1, 0, 1], [1, 0, 0, 0, 1, 1]])
    assert model.token_type_embed is not None
    assert torch.equal(model.hidden(ids), model.hidden(ids, token_types_bt=torch.zeros_like(ids)))
    assert not torch.isclose(model.hidden(ids), model.hidden(ids, token_types_bt=types)).all()
    with pytest.raises(BadInputError, match=r"no token types \(token_types = 0\)"):
        _encoder("modern").hidden(ids, token_types_bt=types)


@torch.no_grad()
def test_pooled_is_tanh_of_a_map_of_the_first_position() -> None:
    model = _encoder("bert")
    hidden = model.hidden(torch.randint(VOCABULARY, (3, 6)))
    assert model.pooler is not None
    expected = torch.tanh(hidden[:, 0] @ model.pooler.weight.T + model.pooler.bias)
    torch.testing.assert_close(model.pooled(hidden), expected)
    with pytest.raises(BadInputError, match=r"no pooler \(pooler = false\)"):
        _encoder("modern").pooled(hidden)
    with pytest.raises(BadInputError, match=r"no next-sentence head \(next_sentence = false\)"):
        model.next_sentence_logits(hidden)


@torch.no_grad()
def test_logits_of_some_positions_are_those_of_all() -> None:
    """What a masked-language-model loss asks for: the head at the masked positions alone."""
    model = _encoder("bert")
    ids = torch.randint(VOCABULARY, (3, 6))
    chosen = torch.rand(3, 6) < 0.4
    torch.testing.assert_close(model.logits(model.hidden(ids)[chosen]), model(ids)[chosen], atol=1e-6, rtol=1e-6)


def test_a_fresh_untied_encoder_starts_at_ln_v() -> None:
    torch.manual_seed(1)
    model = Encoder(_config("bert", tied_embeddings=False))
    ids = torch.randint(VOCABULARY, (8, CONTEXT))
    loss = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
    assert float(loss.detach()) == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    loss.backward()
    assert model.head_bias is not None and model.head_bias.grad is not None and bool(model.head_bias.grad.any())


def test_kinds_are_built_by_name_and_not_taken_for_one_another() -> None:
    assert isinstance(make_model(_config("modern")), Encoder)
    with pytest.raises(BadInputError, match="of kind 'encoder'; a model of kind 'decoder' was asked for"):
        Decoder(_config("modern"))
    with pytest.raises(BadInputError, match="17 positions are more than the model's context of 16"):
        _encoder("modern").hidden(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize("style", STYLES)
def test_the_whole_pass_is_traced_as_one_graph(style: str) -> None:
    """torch.compile without leave to fall back, as the trainer uses it: the same numbers."""
    model = _encoder(style)
    ids, real = torch.randint(VOCABULARY, (2, 6)), torch.arange(6) < torch.tensor([6, 4])[:, None]
    torch._dynamo.reset()
    compiled = torch.compile(model.hidden, backend="eager", fullgraph=True)
    assert torch.equal(compiled(ids, padding_mask_bs=real), model.hidden(ids, padding_mask_bs=real))
