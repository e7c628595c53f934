"""GPTQ: the fast form is the equations', it loses less of a layer's outputs than rounding, and of a model's answers."""

import copy
from typing import Any

import pytest
import torch

from llm_journey.compression.calibration import quantize_by_gptq
from llm_journey.compression.gptq import DAMPING, gptq, gptq_by_equations
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.evaluation.agreement import compare_logits
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.parity.random_models import random_decoder
from llm_journey.quantization.formats import group_grid, quantize_int4
from llm_journey.quantization.layers import QuantizedLinear, quantize_model
from llm_journey.quantization.scheme import Scheme

SCHEMES = [
    Scheme(),
    Scheme(bits=3, group_size=64),
    Scheme(symmetric=True, group_size=64),
    Scheme(bits=3, symmetric=True),
    Scheme(group_size=128),
]


def layer_and_inputs(columns: int = 192, rows: int = 24, inputs: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix, and inputs that lean on one another, some columns large and one that never comes."""
    draw = torch.Generator().manual_seed(columns)
    mixing = torch.randn(columns, columns, generator=draw) / columns**0.5
    x = torch.randn(inputs, columns, generator=draw) @ mixing + 0.3 * torch.randn(inputs, 1, generator=draw)
    x[:, ::17] *= 5
    x[:, 5] = 0
    return torch.randn(rows, columns, generator=draw) * 0.05, x.double()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES, ids=Scheme.describe)
def test_the_fast_form_chooses_the_codes_of_the_equations(scheme: Scheme, act_order: bool) -> None:
    """192 columns: more than one block of far updates, and groups that begin inside it."""
    weight, x = layer_and_inputs()
    fast = gptq(weight, x.T @ x, scheme, act_order=act_order)
    slow = gptq_by_equations(weight, x.T @ x, scheme, act_order=act_order)
    assert torch.equal(fast.codes_nk, slow.codes_nk)
    assert torch.equal(fast.scale_ng, slow.scale_ng)
    assert torch.equal(fast.minimum_ng, slow.minimum_ng)
    assert not torch.equal(fast.codes_nk, quantize_int4(weight, scheme.group_size, bits=scheme.bits).codes_nk)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES, ids=Scheme.describe)
def test_a_layers_outputs_lose_less_than_by_rounding(scheme: Scheme, act_order: bool) -> None:
    weight, x = layer_and_inputs()
    rounded = quantize_int4(weight, scheme.group_size, bits=scheme.bits, symmetric=scheme.symmetric)
    fitted = gptq(weight, x.T @ x, scheme, act_order=act_order)

    def loss(found: torch.Tensor) -> float:
        return float((x @ (found.double() - weight.double()).T).square().sum())

    assert loss(fitted.dequantize()) < 0.7 * loss(rounded.dequantize())


def test_unrelated_inputs_leave_plain_rounding() -> None:
    """H a multiple of the identity: no column can help another, so GPTQ is round-to-nearest."""
    weight, _ = layer_and_inputs()
    fitted = gptq(weight, 3.0 * torch.eye(192), Scheme())
    assert torch.equal(fitted.dequantize(), quantize_int4(weight).dequantize())


def test_each_group_has_its_own_grid() -> None:
    weight, x = layer_and_inputs()
    weight[:, 64:128] *= 100
    for act_order in (False, True):
        found = gptq(weight, x.T @ x, Scheme(group_size=64), act_order=act_order)
        ratio = found.scale_ng[:, 1] / found.scale_ng[:, 0]
        assert bool(((ratio > 20) & (ratio < 500)).all())


def test_a_groups_grid_is_of_the_columns_as_corrected_by_then() -> None:
    """Least squares in one step: once the first group F is rounded, the best of the rest R is W_R + (W_F - Q_F) H_FR
    H_RR^-1. In another order, groups keep the grid of the original weights."""
    weight, x = layer_and_inputs()
    size = 64
    scheme = Scheme(bits=3, group_size=size)
    found = gptq(weight, x.T @ x, scheme)
    hessian = x.T @ x
    mean = hessian.diagonal().mean()
    hessian.diagonal()[5] = mean
    hessian.diagonal().add_(DAMPING * mean)
    first, rest = slice(0, size), slice(size, None)
    lost = weight[:, first].double() - found.dequantize()[:, first].double()
    corrected = weight[:, rest].double() + lost @ torch.linalg.solve(hessian[rest, rest], hessian[rest, first]).T
    expected, _ = group_grid(corrected[:, None, :size], 3, False)
    torch.testing.assert_close(found.scale_ng[:, 1:2].double(), expected, rtol=2**-10, atol=0)
    original, _ = group_grid(torch.unflatten(weight, 1, (-1, size)), 3, False)
    assert not torch.equal(found.scale_ng[:, 1], original[:, 1])
    assert torch.equal(gptq(weight, x.T @ x, scheme, act_order=True).scale_ng, original)


def test_bad_inputs_are_refused() -> None:
    weight, x = layer_and_inputs()
    with pytest.raises(JourneyError, match="not finite"):
        gptq(weight, (x.T @ x).fill_(torch.nan), Scheme())
    with pytest.raises(BadInputError, match="48 inputs are no multiple of 32"):
        gptq(weight[:, :48], torch.eye(48), Scheme())
    with pytest.raises(BadInputError, match="GPTQ"):
        quantize_by_gptq(random_decoder(), torch.zeros(1, 4, dtype=torch.long), Scheme(format="nf4"))


def test_few_inputs_are_enough_to_invert() -> None:
    """Fewer inputs than columns: H is singular until its diagonal is raised."""
    weight, x = layer_and_inputs(inputs=10)
    assert bool(gptq(weight, x.T @ x, Scheme()).dequantize().isfinite().all())


@pytest.mark.parametrize("choices", [{}, {"sliding_window": 9, "tied_embeddings": False}], ids=["full", "window"])
def test_a_decoder_is_calibrated_block_by_block(choices: dict[str, Any]) -> None:
    """Each layer's H is of the inputs that it gets behind the blocks already rounded: redone here from scratch."""
    decoder = random_decoder(scale=0.1, width=64, mlp_width=128, num_heads=2, **choices)
    plain = copy.deepcopy(decoder)
    windows = torch.randint(0, 97, (6, 40), generator=torch.Generator().manual_seed(0))
    seen: list[tuple[int, int]] = []
    quantize_by_gptq(decoder, windows, Scheme(), on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert not any(isinstance(module, torch.nn.Linear) for module in decoder.modules())
    # The second block's mlp.down, from scratch: block 1 rounded, block 2 whole.
    again = copy.deepcopy(plain)
    again.blocks[0] = decoder.blocks[0]
    again.embed = plain.embed
    inputs: list[torch.Tensor] = []
    again.blocks[1].mlp.down.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, -2)))
    with torch.inference_mode():
        again(windows)
    x = torch.cat(inputs)
    layer = decoder.blocks[1].mlp.down
    assert isinstance(layer, QuantizedLinear)
    expected = gptq(plain.blocks[1].mlp.down.weight, x.T @ x, Scheme())
    same = (layer.quantized.codes_nk == expected.codes_nk).float().mean()
    assert float(same) > 0.999  # sums in another order move a code where two are equally near


@pytest.mark.parametrize("act_order", [False, True])
def test_a_trained_model_keeps_more_of_its_answers_than_by_rounding(
    trained: tuple[Decoder, torch.Tensor], act_order: bool
) -> None:
    """KL to float32 on text that the calibration never saw."""
    plain, ids = trained
    scheme, calibration, held_out = Scheme(bits=3), ids[:64], ids[64:]
    rounded, fitted = copy.deepcopy(plain), copy.deepcopy(plain)
    quantize_model(rounded, scheme)
    quantize_by_gptq(fitted, calibration, scheme, act_order=act_order)
    with torch.inference_mode():
        losses = [
            compare_logits([(plain(held_out).flatten(0, 1), other(held_out).flatten(0, 1))]).mean_kl
            for other in (rounded, fitted)
        ]
    assert losses[1] < 0.8 * losses[0]


@pytest.fixture(scope="module")
def trained() -> tuple[Decoder, torch.Tensor]:
    """A decoder that has learned an order: each token is followed by one of four, by what stood two before. And 96
    windows of such text, none of them trained on."""
    torch.manual_seed(0)
    followers = torch.randint(0, 64, (64, 2, 4))

    def text(count: int) -> torch.Tensor:
        ids = torch.randint(0, 64, (count, 48))
        for t in range(2, 48):
            ids[:, t] = followers[ids[:, t - 1], ids[:, t - 2] % 2, torch.randint(0, 4, (count,))]
        return ids

    decoder = Decoder(TransformerConfig(vocab_size=64, width=64, num_layers=2, num_heads=2, mlp_width=128, context=48))
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=4e-3)
    for _ in range(250):
        ids = text(16)
        loss = torch.nn.functional.cross_entropy(decoder(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 2.2  # ln 64 is 4.16, ln 4 is 1.39: it has learned
    return decoder.eval(), text(96)
