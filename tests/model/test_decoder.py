"""The decoder: causal, untouched by padding, refusing what does not fit, and starting where it should."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError
from llm_journey.model.attention import Attention
from llm_journey.model.blocks import Block, recompute
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.model.mlp import Mlp, joined_linear, make_mlp

VOCABULARY, CONTEXT = 29, 16
STYLES: dict[str, dict[str, Any]] = {
    "llama": {"num_kv_heads": 2},
    "qwen3": {"num_kv_heads": 1, "qk_norm": True, "tied_embeddings": False},
    "gpt2": {"norm": "layernorm", "positions": "learned", "mlp": "gelu_tanh", "bias": True},
    "vaswani": {"norm": "layernorm", "norm_placement": "post", "positions": "sinusoidal", "mlp": "gelu"},
    "window": {"sliding_window": 4, "mlp": "relu2", "positions": "none"},
}


def _config(style: str, **changes: Any) -> TransformerConfig:
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "width": 16, "num_layers": 2, "num_heads": 4, "context": CONTEXT}
    return TransformerConfig(**(shape | STYLES[style] | changes))


def _decoder(style: str, **changes: Any) -> Decoder:
    """Every parameter random: a fresh model writes zeros into its residual stream, which would hide mistakes."""
    torch.manual_seed(0)
    model = Decoder(_config(style, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5 if parameter.ndim == 1 else 0.0, 0.3)
    return model


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=10, deadline=None)
@given(place=st.integers(0, CONTEXT - 1), change=st.integers(1, VOCABULARY - 1), seed=st.integers(0, 99))
@torch.no_grad()
def test_no_token_sees_a_later_one(style: str, place: int, change: int, seed: int) -> None:
    """Another token at position t leaves every logit before t as it was, bit for bit, and changes those at t."""
    model = _decoder(style)
    ids = torch.randint(VOCABULARY, (2, CONTEXT), generator=torch.Generator().manual_seed(seed))
    changed = ids.clone()
    changed[:, place] = (changed[:, place] + change) % VOCABULARY
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :place], after[:, :place])
    assert not torch.isclose(before[:, place], after[:, place]).all()


def test_a_window_forgets_what_lies_before_it() -> None:
    """Two layers of a window of 4 reach 6 positions back, not 7."""
    model = _decoder("window")
    ids = torch.randint(VOCABULARY, (1, CONTEXT))
    for distance, seen in ((6, True), (7, False)):
        changed = ids.clone()
        changed[0, CONTEXT - 1 - distance] = (changed[0, CONTEXT - 1 - distance] + 1) % VOCABULARY
        assert torch.equal(model(ids)[0, -1], model(changed)[0, -1]) != seen


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=10, deadline=None)
@given(left=st.integers(0, 5), right=st.integers(0, 5), length=st.integers(1, 6), filler=st.integers(0, VOCABULARY - 1))
@torch.no_grad()
def test_padding_changes_no_logit(style: str, left: int, right: int, length: int, filler: int) -> None:
    """Padding on either side, whatever token fills it; other shapes round differently: 1e-5 of logits of about 1."""
    model = _decoder(style)
    ids = torch.randint(VOCABULARY, (2, length), generator=torch.Generator().manual_seed(length))
    padded = F.pad(ids, (left, right), value=filler)
    mask = F.pad(torch.ones_like(ids, dtype=torch.bool), (left, right), value=False)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    found = model(padded, padding_mask_bs=mask, positions_bt=positions)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found[:, left : left + length], model(ids), atol=1e-5, rtol=1e-5)


def test_more_positions_than_the_context_are_refused_with_both_numbers() -> None:
    with pytest.raises(BadInputError, match=r"17 positions are more than the model's context of 16"):
        _decoder("llama")(torch.zeros(1, CONTEXT + 1, dtype=torch.long))


def test_no_vocabulary_is_refused() -> None:
    with pytest.raises(BadInputError, match="vocab_size is 0"):
        Decoder(TransformerConfig())


@pytest.mark.parametrize("style", STYLES)
def test_an_untied_fresh_model_starts_at_ln_v(style: str) -> None:
    torch.manual_seed(1)
    model = Decoder(_config(style, tied_embeddings=False))
    ids = torch.randint(VOCABULARY, (8, CONTEXT))
    loss = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
    assert float(loss.detach()) == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    loss.backward()
    assert model.head is not None and model.head.weight.grad is not None and bool(model.head.weight.grad.any())


def test_a_tied_fresh_model_expects_the_token_again() -> None:
    """Its logits are of unit size, save each token's own, which is about sqrt(D): 16 here, within 15%."""
    torch.manual_seed(1)
    ids = torch.arange(CONTEXT)[None]
    logits = Decoder(_config("llama", width=256, vocab_size=500))(ids).detach()[0]
    own = logits[torch.arange(CONTEXT), ids[0]]
    assert float(own.mean()) == pytest.approx(16.0, rel=0.15)
    logits[torch.arange(CONTEXT), ids[0]] = 0.0
    assert float(logits.std()) == pytest.approx(1.0, rel=0.15)


def test_a_fresh_pre_norm_block_is_the_identity() -> None:
    torch.manual_seed(2)
    model = Decoder(_config("llama", bias=True))
    x = torch.randn(2, 5, 16)
    rotary = (model.cos[:5], model.sin[:5])
    for block in model.blocks:
        assert torch.equal(block(x, rotary, None), x)


@pytest.mark.parametrize("width", [32, 256])
def test_linear_layers_keep_the_variance_of_what_comes_in(width: int) -> None:
    """LeCun et al. 1998: N(0, 1/fan_in), so a variance of one stays one, within 15% of some 1e4 numbers."""
    torch.manual_seed(3)
    block = Decoder(_config("llama", width=width)).blocks[0]
    assert isinstance(block, Block) and isinstance(block.attention, Attention)
    x = torch.randn(400, width)
    for layer in (block.attention.q, block.mlp.up, block.mlp.gate):
        assert float(layer(x).detach().var()) == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_begin_at_their_own_scale(tied: bool) -> None:
    torch.manual_seed(4)
    model = Decoder(_config("gpt2", vocab_size=500, width=64, tied_embeddings=tied))
    assert float(model.embed.weight.detach().std()) == pytest.approx(64**-0.5 if tied else 1.0, rel=0.02)
    assert model.position_embed is not None
    assert float(model.position_embed.weight.detach().std()) == pytest.approx(64**-0.5, rel=0.1)
    assert (model.head is None) == tied
    assert (model.head_weight is model.embed.weight) == tied
    assert tied or not model.head_weight.any()


def test_dropout_acts_in_training_only() -> None:
    model = _decoder("llama", dropout=0.5)
    ids = torch.randint(VOCABULARY, (2, 8))
    assert torch.equal(model(ids), model(ids))
    model.train()
    torch.manual_seed(5)
    first = model(ids)
    assert not torch.equal(first, model(ids))
    torch.manual_seed(5)
    assert torch.equal(first, model(ids))


MLP_FORMULAS = {
    "gelu": lambda gate, up: 0.5 * up * (1 + torch.erf(up / math.sqrt(2))),
    "gelu_tanh": lambda gate, up: 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3))),
    "relu": lambda gate, up: torch.where(up > 0, up, 0.0),
    "relu2": lambda gate, up: torch.where(up > 0, up * up, 0.0),
    "silu": lambda gate, up: up / (1 + torch.exp(-up)),
    "swiglu": lambda gate, up: gate / (1 + torch.exp(-gate)) * up,
}


@pytest.mark.parametrize(("name", "bias"), list(itertools.product(MLP_FORMULAS, [True, False])))
def test_each_mlp_is_its_formula(name: str, bias: bool) -> None:
    torch.manual_seed(6)
    mlp = make_mlp(_config("llama", mlp=name, bias=bias)).double()
    x = torch.randn(3, 4, 16, dtype=torch.float64)
    for parameter in mlp.parameters():
        torch.nn.init.normal_(parameter)

    def linear(layer: str) -> torch.Tensor:
        module = getattr(mlp, layer, None)
        if module is None:
            return torch.zeros(())
        return x @ module.weight.T + (module.bias if bias else 0.0)

    expected = MLP_FORMULAS[name](linear("gate"), linear("up")) @ mlp.down.weight.T + (mlp.down.bias if bias else 0.0)
    torch.testing.assert_close(mlp(x), expected, atol=1e-10, rtol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), expected, atol=1e-10, rtol=1e-10)


def test_joined_layers_give_way_to_what_is_no_plain_linear() -> None:
    """After tree surgery (an adapted or quantized layer) each layer is asked itself."""

    class Doubled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    torch.manual_seed(7)
    plain, doubled = torch.nn.Linear(6, 3), Doubled(6, 5)
    x = torch.randn(4, 6)
    first, second = joined_linear(x, plain, doubled)
    assert torch.equal(first, plain(x)) and torch.equal(second, doubled(x))
    joined = joined_linear(x, plain, torch.nn.Linear(6, 5))
    torch.testing.assert_close(joined[0], plain(x))
    assert joined[1].shape == (4, 5)


def test_unknown_choices_list_the_known_ones() -> None:
    config = _config("llama")
    with pytest.raises(BadInputError, match="unknown attention implementation 'flash'; known: fused, written_out"):
        Decoder(config, attention="flash")
    object.__setattr__(config, "mlp", "relu3")
    known = "gelu, gelu_tanh, relu, relu2, silu, swiglu"
    with pytest.raises(BadInputError, match=f"unknown mlp 'relu3'; known: {known}"):
        Mlp(config)


@pytest.mark.parametrize("style", STYLES)
def test_recomputed_blocks_have_the_same_gradients(style: str) -> None:
    """Gradient checkpointing: the second pass through a block is the first one again, its dropout included."""
    found = []
    for again in (False, True):
        torch.manual_seed(3)
        model = Decoder(_config(style, dropout=0.2))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        if again:
            recompute(model)
        torch.manual_seed(4)
        model(torch.arange(12).view(2, 6)).square().mean().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True) if one is not None)
    assert sum(gradient is not None for gradient in found[1]) > 4


def test_recomputed_blocks_keep_less() -> None:
    """Of what a forward pass keeps for the backward one, most lies inside the blocks."""

    def kept(again: bool) -> int:
        model, total = Decoder(_config("llama", num_layers=8)), 0
        if again:
            recompute(model)

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.hidden(torch.arange(16)[None])
        return total

    assert kept(again=True) < kept(again=False) / 4
