"""QLoRA: adapters over codes. A step's gradients are those over the codes' weights; nothing whole is kept."""

import copy

import pytest
import torch
from torch import Tensor

from llm_journey.finetuning.config import LoraConfig
from llm_journey.finetuning.lora import inject, remove
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.model.loss import linear_cross_entropy
from llm_journey.quantization.layers import dequantize_model, quantize_model
from llm_journey.quantization.scheme import Scheme

IDS_BT = torch.arange(60).view(2, 30) * 11 % 128


def quantized(format: str) -> Decoder:
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=128, width=64, num_layers=2, num_heads=4, mlp="swiglu", context=32)
    model = Decoder(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    quantize_model(model, Scheme(format=format))  # type: ignore[arg-type]
    return model


def adapted(model: Decoder, **settings: object) -> Decoder:
    inject(model, LoraConfig(**settings))  # type: ignore[arg-type]
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def backward(model: Decoder) -> dict[str, Tensor]:
    linear_cross_entropy(model.hidden(IDS_BT[:, :-1]), model.head_weight, IDS_BT[:, 1:]).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


@pytest.mark.parametrize("settings", [{}, {"dora": True}, {"rslora": True, "targets": ("q", "down")}])
@pytest.mark.parametrize("format", ["nf4", "int4", "int8"])
def test_gradients_are_those_over_the_weights_of_the_codes(format: str, settings: dict[str, object]) -> None:
    model = quantized(format)
    whole = copy.deepcopy(model)
    dequantize_model(whole)
    found, expected = backward(adapted(model, **settings)), backward(adapted(whole, **settings))
    assert found.keys() == expected.keys() and found
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], atol=1e-6, rtol=1e-4), name
    logits_btv = model(IDS_BT)
    remove(model, merged=True)
    assert (model(IDS_BT) - logits_btv).abs().max() < 1e-4


def test_no_matrix_is_kept_for_the_backward_pass() -> None:
    model = adapted(quantized("nf4"), targets=("q", "up"))
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() if tensor.ndim == 2 and min(tensor.shape) >= 64 else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.hidden(IDS_BT).square().mean()
    loss.backward()
    assert max(kept) == 0, "a matrix of the size of a weight is kept"
