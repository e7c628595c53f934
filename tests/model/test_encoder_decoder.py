"""The encoder-decoder: a causal target that sees the whole source, cached or not, padded or not."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError
from llm_journey.generation.kv_cache import KVCache
from llm_journey.model.config import TransformerConfig
from llm_journey.model.encoder_decoder import EncoderDecoder

VOCABULARY, CONTEXT = 29, 16
STYLES: dict[str, dict[str, Any]] = {
    "vaswani": {
        "norm": "layernorm",
        "norm_placement": "post",
        "positions": "sinusoidal",
        "mlp": "relu",
        "bias": True,
        "embedding_scale": True,
        "head_bias": True,
    },
    "modern": {"num_kv_heads": 2, "qk_norm": True, "num_decoder_layers": 3},
    "learned": {"norm": "layernorm", "positions": "learned", "mlp": "silu", "tied_embeddings": False},
}


def _model(style: str, **changes: Any) -> EncoderDecoder:
    shape = {"vocab_size": VOCABULARY, "width": 16, "num_layers": 2, "num_heads": 4, "context": CONTEXT}
    torch.manual_seed(0)
    config = TransformerConfig(**(shape | {"kind": "encoder_decoder"} | STYLES[style] | changes))
    model = EncoderDecoder(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5 if parameter.ndim == 1 else 0.0, 0.3)
    return model


def _ids(length: int, seed: int = 1, rows: int = 2) -> torch.Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=10, deadline=None)
@given(place=st.integers(0, 8), change=st.integers(1, VOCABULARY - 1))
@torch.no_grad()
def test_no_target_position_sees_a_later_one_and_all_see_the_whole_source(style: str, place: int, change: int) -> None:
    model = _model(style)
    source, target = _ids(9), _ids(9, seed=2)
    changed = target.clone()
    changed[:, place] = (changed[:, place] + change) % VOCABULARY
    before, after = model(source, target), model(source, changed)
    assert torch.equal(before[:, :place], after[:, :place])
    assert not torch.isclose(before[:, place], after[:, place]).all()
    changed = source.clone()
    changed[:, place] = (changed[:, place] + change) % VOCABULARY
    assert not (model(changed, target) == before).all(-1).any()


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=10, deadline=None)
@given(left=st.integers(0, 5), right=st.integers(0, 5), length=st.integers(1, 6), filler=st.integers(0, VOCABULARY - 1))
@torch.no_grad()
def test_padding_changes_no_logit(style: str, left: int, right: int, length: int, filler: int) -> None:
    """On either side of source and target; other shapes round differently: 1e-5 of logits of about 1."""
    model = _model(style)
    source, target = _ids(length), _ids(6, seed=2)

    def pad(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mask = F.pad(torch.ones_like(ids, dtype=torch.bool), (left, right), value=False)
        return F.pad(ids, (left, right), value=filler), mask, (mask.cumsum(-1) - 1).clamp(min=0)

    padded, mask, positions = pad(source)
    memory = model.encode(padded, mask, positions_bs=positions)
    targets, target_mask, target_positions = pad(target)
    hidden = model.decode(
        targets, memory, source_padding_mask_bs=mask, padding_mask_bt=target_mask, positions_bt=target_positions
    )
    found = model.logits(hidden)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found[:, left : left + 6], model(source, target), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("style", STYLES)
@torch.no_grad()
def test_cached_is_uncached(style: str) -> None:
    """Token by token with a cache and the memory's keys and values made once; then three tokens at a time."""
    model = _model(style)
    source, target = _ids(7), _ids(9, seed=2)
    real = torch.arange(7) < torch.tensor([7, 4])[:, None]
    expected = model(source, target, source_padding_mask_bs=real)
    memory = model.encode(source, real)
    keys_values = model.keys_values(memory)
    assert len(keys_values) == model.config.num_decoder_layers
    for step in (1, 3):
        cache = KVCache(model.config, batch=2, capacity=9)
        pieces = [
            model.decode(target[:, start : start + step], keys_values, source_padding_mask_bs=real, cache=cache)
            for start in range(0, 9, step)
        ]
        assert cache.length == 9
        torch.testing.assert_close(model.logits(torch.cat(pieces, 1)), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_source_serves_several_targets() -> None:
    """As beam search has it: the rows of a memory's keys and values repeated for each beam."""
    model = _model("modern")
    source, targets = _ids(7, rows=1), _ids(5, seed=2, rows=3)
    keys_values = [
        (k.expand(3, -1, -1, -1), v.expand(3, -1, -1, -1)) for k, v in model.keys_values(model.encode(source))
    ]
    found = model.logits(model.decode(targets, keys_values))
    torch.testing.assert_close(found, model(source.expand(3, -1), targets), atol=1e-5, rtol=1e-5)


def test_more_positions_than_the_context_are_refused_on_either_side() -> None:
    model = _model("vaswani")
    for source, target in ((17, 3), (3, 17)):
        with pytest.raises(BadInputError, match=r"17 positions are more than the model's context of 16"):
            model(_ids(source), _ids(target))


def test_every_parameter_has_a_part_in_the_loss() -> None:
    model = _model("vaswani").train()
    model(_ids(7), _ids(9, seed=2)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name


@pytest.mark.parametrize("style", STYLES)
def test_the_whole_pass_is_traced_as_one_graph(style: str) -> None:
    """torch.compile without leave to fall back, as the trainer uses it: the same numbers."""
    model = _model(style)
    real = torch.arange(7) < torch.tensor([7, 4])[:, None]
    torch._dynamo.reset()
    compiled = torch.compile(model.hidden, backend="eager", fullgraph=True)
    expected = model.hidden(_ids(7), _ids(9, seed=2), source_padding_mask_bs=real)
    assert torch.equal(compiled(_ids(7), _ids(9, seed=2), source_padding_mask_bs=real), expected)
