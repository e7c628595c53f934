"""Quantized layers compute what their codes say, in place of the plain ones, and the fast products compute the same."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llm_journey.core.errors import BadInputError
from llm_journey.generation.blocks import BlockPool
from llm_journey.generation.decode import generate
from llm_journey.generation.engine import Engine, EngineConfig
from llm_journey.generation.paged_cache import PagedCache
from llm_journey.generation.runner import Runner, Share
from llm_journey.generation.sampling import SamplingConfig
from llm_journey.model.decoder import Decoder
from llm_journey.parity.random_models import GPT2, QWEN3, random_decoder, random_ids
from llm_journey.quantization.formats import DynamicInt8Weight
from llm_journey.quantization.layers import (
    QuantizedEmbedding,
    QuantizedLinear,
    dequantize_model,
    is_quantized,
    quantize_model,
)
from llm_journey.quantization.products import dynamic_product, make_product
from llm_journey.quantization.scheme import Scheme, quantize

SCHEMES = {
    "int8": Scheme(format="int8"),
    "dynamic-int8": Scheme(format="dynamic-int8"),
    "int4": Scheme(),
    "int4 symmetric": Scheme(group_size=64, symmetric=True),
    "int4 shorter last group": Scheme(group_size=128, symmetric=True),
    "3 bits": Scheme(bits=3),
    "nf4": Scheme(format="nf4"),
}
SIZES: dict[str, Any] = {"width": 64, "mlp_width": 128, "num_heads": 2, "vocab_size": 128, "context": 128, "scale": 0.1}


def small_decoder(**choices: Any) -> Decoder:
    return random_decoder(**(SIZES | choices))


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.parametrize(("outputs", "bias"), [(128, True), (20, False)])
def test_a_fast_product_is_the_readable_one(name: str, rows: int, outputs: int, bias: bool) -> None:
    """20 outputs: a shape that the packed kernels do not take. What differs is the inputs' rounding to bf16."""
    draw = torch.Generator().manual_seed(0)
    weight = quantize(torch.randn(outputs, 192, generator=draw) * 0.1, SCHEMES[name])
    bias_m = torch.randn(outputs, generator=draw) if bias else None
    x_nk = torch.randn(rows, 192, generator=draw)
    with torch.no_grad():
        readable = QuantizedLinear(weight, bias_m)(x_nk)
        fast = make_product(weight, bias_m)(x_nk)
    error = float((fast - readable).norm() / readable.norm())
    assert error < (1e-5 if SCHEMES[name].format in ("dynamic-int8", "nf4") else 6e-3)


def test_dynamic_products_round_each_row_alone() -> None:
    """By hand, row by row, in whole numbers; a large row beside a small one must not take its digits."""
    draw = torch.Generator().manual_seed(1)
    x_nk = torch.randn(3, 64, generator=draw) * torch.tensor([[100.0], [1e-3], [0.0]])
    weight = quantize(torch.randn(5, 64, generator=draw), Scheme(format="dynamic-int8"))
    assert isinstance(weight, DynamicInt8Weight)
    expected = torch.zeros(3, 5)
    for n, x_k in enumerate(x_nk.tolist()):
        scale = max(abs(value) for value in x_k) / 127
        codes = [round(value / scale) if scale else 0 for value in x_k]
        for m in range(5):
            total = sum(first * second for first, second in zip(codes, weight.codes_nk[m].tolist(), strict=True))
            expected[n, m] = total * scale * float(weight.scale_n[m])
    torch.testing.assert_close(dynamic_product(x_nk, weight), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(make_product(weight)(x_nk), expected, rtol=1e-5, atol=1e-7)
    exact = x_nk @ weight.dequantize().T
    assert float((expected[:2] - exact[:2]).norm(dim=1).div(exact[:2].norm(dim=1)).max()) < 0.02


@pytest.mark.parametrize(
    "choices", [{}, QWEN3, GPT2, {"tied_embeddings": False}], ids=["llama", "qwen3", "gpt2", "untied"]
)
@pytest.mark.parametrize("name", SCHEMES)
def test_the_walk_and_its_undoing(name: str, choices: dict[str, Any]) -> None:
    """A quantized decoder is the plain decoder with every matrix replaced by what its codes say."""
    plain = small_decoder(**choices)
    decoder = copy.deepcopy(plain)
    scheme = SCHEMES[name]
    quantize_model(decoder, scheme)
    assert is_quantized(decoder)
    assert not is_quantized(plain)
    left = [path for path, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    assert left == []
    expected = copy.deepcopy(plain)
    with torch.no_grad():
        for module in expected.modules():
            if isinstance(module, nn.Linear) and module is not expected.head:
                module.weight.copy_(quantize(module.weight, scheme).dequantize())
        wide = [expected.embed] if expected.head is None else [expected.embed, expected.head]
        for layer in wide:
            layer.weight.copy_(quantize(layer.weight, Scheme(format="int8")).dequantize())
    ids_bt = random_ids(2, 20, 97)
    with torch.inference_mode():
        wanted, found = expected(ids_bt), decoder(ids_bt)
        if scheme.format != "dynamic-int8":
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        else:
            assert 1e-6 < float((found - wanted).norm() / wanted.norm()) < 0.05
        count = dequantize_model(decoder)
        torch.testing.assert_close(decoder(ids_bt), wanted, rtol=1e-4, atol=1e-5)
    assert count == sum(isinstance(module, nn.Linear) for module in plain.modules()) + 1
    assert decoder.state_dict().keys() == plain.state_dict().keys()
    assert decoder.device == plain.device


@pytest.mark.parametrize("choices", [{}, {"tied_embeddings": False, "bias": True}], ids=["tied", "untied"])
@pytest.mark.parametrize("name", SCHEMES)
def test_the_runner_takes_the_codes(name: str, choices: dict[str, Any]) -> None:
    """Whatever it is asked for: requantizing a decoder of other groups would be a second loss."""
    decoder = small_decoder(num_kv_heads=1, **choices)
    quantize_model(decoder, SCHEMES[name])
    ids = random_ids(1, 30, 97)[0].tolist()
    with torch.inference_mode():
        wanted = decoder(torch.tensor([ids]))[0]
    for weights in ("float32", "int4"):
        pool, cache = BlockPool(64, 4), PagedCache(decoder.config, num_blocks=64, block_size=4)
        table: list[int] = []
        assert pool.grow(table, len(ids))
        logits = Runner(decoder, weights)([Share(ids=ids, start=0, table=table, all_logits=True)], cache)
        # Rounding to bf16, and codes of activations that flip by it, add up over three layers.
        assert float((logits - wanted).norm() / wanted.norm()) < 0.03


def test_an_engine_answers_with_a_quantized_decoder_as_plain_decoding_does() -> None:
    decoder = small_decoder()
    quantize_model(decoder, SCHEMES["nf4"])  # whose product is exact, so that greedy tokens are too
    config, ids = SamplingConfig(temperature=0, max_new_tokens=12), random_ids(1, 9, 97)[0].tolist()
    # The head's int8 kernel rounds activations to bf16; a whole head leaves nothing that differs.
    decoder.embed = nn.Embedding.from_pretrained(decoder.embed.weight)
    engine = Engine(Runner(decoder), EngineConfig(block_size=4))
    request = engine.submit(ids, config)
    while engine.busy:
        engine.step()
    assert [token.id for token in request.tokens] == list(generate(decoder, ids, config))


def test_an_embedding_reads_the_rows_that_are_asked_for() -> None:
    weight = quantize(torch.randn(10, 32), Scheme(format="int8"))
    layer = QuantizedEmbedding(weight)
    ids = torch.tensor([[3, 3], [0, 9]])
    assert torch.equal(layer(ids), F.embedding(ids, weight.dequantize()))


def test_gradients_pass_through_to_the_inputs_alone() -> None:
    layer = QuantizedLinear(quantize(torch.randn(6, 32), Scheme()), torch.zeros(6))
    x = torch.randn(4, 32, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(4, -1))
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def test_a_matrix_that_does_not_fit_is_named() -> None:
    with pytest.raises(BadInputError, match=r"blocks\.0\.attention\.q: 48 inputs are no multiple of 32"):
        quantize_model(small_decoder(width=48), Scheme())
