"""A small Decoder with random parameters, for tests of files."""

from typing import Any

import torch
from torch import Tensor

from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder

# No family of Hugging Face's has these together, so such a model is saved in our own format.
OWN: dict[str, Any] = {"norm": "layernorm", "mlp": "relu2", "positions": "sinusoidal"}
GPT2: dict[str, Any] = {"norm": "layernorm", "positions": "learned", "mlp": "gelu_tanh", "bias": True}
QWEN3: dict[str, Any] = {"qk_norm": True}


def small_decoder(seed: int = 0, **choices: Any) -> Decoder:
    """Every parameter random, by `seed`."""
    sizes = {"vocab_size": 29, "width": 8, "num_layers": 2, "num_heads": 2, "mlp_width": 12, "context": 16}
    model = Decoder(TransformerConfig(**(sizes | choices))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Same names, dtypes and bits."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )
