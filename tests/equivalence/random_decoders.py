"""Models of every family with every parameter random: fresh ones start with zeros, which would hide a wrong map."""

from typing import Any

import torch

from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.model.kinds import Model, make_model

GPT2: dict[str, Any] = {"norm": "layernorm", "positions": "learned", "mlp": "gelu_tanh", "bias": True}
LLAMA: dict[str, Any] = {}
QWEN3: dict[str, Any] = {"qk_norm": True}
POST_NORM: dict[str, Any] = {"norm": "layernorm", "norm_placement": "post", "bias": True}
BERT: dict[str, Any] = POST_NORM | {
    "kind": "encoder",
    "norm_epsilon": 1e-12,
    "positions": "learned",
    "mlp": "gelu",
    "token_types": 2,
    "embedding_norm": True,
}
BERT_MASKED: dict[str, Any] = BERT | {"head_transform": True, "head_bias": True}
MARIAN: dict[str, Any] = POST_NORM | {
    "kind": "encoder_decoder",
    "norm_epsilon": 1e-5,
    "positions": "sinusoidal_halves",
    "mlp": "silu",
    "embedding_scale": True,
    "head_bias": True,
}


def random_model(seed: int = 0, scale: float = 0.3, **choices: Any) -> Model:
    """A model whose every tensor is drawn from a normal distribution, norms around 0.7."""
    sizes = {"vocab_size": 67, "width": 24, "num_layers": 2, "num_heads": 4, "context": 32}
    model = make_model(TransformerConfig(**(sizes | choices))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.7 if parameter.ndim == 1 else 0.0, scale, generator=generator)
    return model


def random_decoder(seed: int = 0, scale: float = 0.3, **choices: Any) -> Decoder:
    """`random_model` of the kind that generates."""
    model = random_model(seed, scale, **choices)
    assert isinstance(model, Decoder)
    return model
