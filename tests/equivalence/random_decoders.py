"""Decoders of every family with every parameter random: fresh ones start with zeros, which would hide a wrong map."""

from typing import Any

import torch

from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder

GPT2: dict[str, Any] = {"norm": "layernorm", "positions": "learned", "mlp": "gelu_tanh", "bias": True}
LLAMA: dict[str, Any] = {}
QWEN3: dict[str, Any] = {"qk_norm": True}


def random_decoder(seed: int = 0, scale: float = 0.3, **choices: Any) -> Decoder:
    """A Decoder whose every tensor is drawn from a normal distribution, norms around 0.7."""
    sizes = {"vocab_size": 67, "width": 24, "num_layers": 2, "num_heads": 4, "context": 32}
    model = Decoder(TransformerConfig(**(sizes | choices))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.7 if parameter.ndim == 1 else 0.0, scale, generator=generator)
    return model
