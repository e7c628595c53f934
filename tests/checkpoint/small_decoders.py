"""Small models with random parameters, for tests of files."""

from typing import Any

import torch
from torch import Tensor

from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.model.kinds import Model, make_model

# No family of Hugging Face's has these together, so such a model is saved in our own format.
OWN: dict[str, Any] = {"norm": "layernorm", "mlp": "relu2", "positions": "sinusoidal"}
GPT2: dict[str, Any] = {"norm": "layernorm", "positions": "learned", "mlp": "gelu_tanh", "bias": True}
QWEN3: dict[str, Any] = {"qk_norm": True}
POST_NORM: dict[str, Any] = {"norm": "layernorm", "norm_placement": "post", "bias": True}
BERT: dict[str, Any] = POST_NORM | {
    "kind": "encoder",
    "positions": "learned",
    "mlp": "gelu",
    "token_types": 2,
    "embedding_norm": True,
}
MASKED: dict[str, Any] = BERT | {"head_transform": True, "head_bias": True}
MARIAN: dict[str, Any] = POST_NORM | {
    "kind": "encoder_decoder",
    "norm_epsilon": 1e-5,
    "positions": "sinusoidal_halves",
    "mlp": "relu",
    "head_bias": True,
}
# Of the other kinds, what no family has together.
OWN_KINDS: list[dict[str, Any]] = [
    {"kind": "encoder", "qk_norm": True},
    BERT | {"head_bias": True},
    MASKED | {"pooler": True},
    {"kind": "encoder_decoder", "num_decoder_layers": 1, "num_kv_heads": 1},
]


def small_model(seed: int = 0, **choices: Any) -> Model:
    """Every parameter random, by `seed`."""
    sizes = {"vocab_size": 29, "width": 8, "num_layers": 2, "num_heads": 2, "mlp_width": 12, "context": 16}
    model = make_model(TransformerConfig(**(sizes | choices))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


def small_decoder(seed: int = 0, **choices: Any) -> Decoder:
    """`small_model` of the kind that generates."""
    model = small_model(seed, **choices)
    assert isinstance(model, Decoder)
    return model


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Same names, dtypes and bits."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )
