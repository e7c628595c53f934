"""A small Decoder with random parameters, for looking into."""

from typing import Any

import torch

from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder


def random_decoder(seed: int = 0, **choices: Any) -> Decoder:
    """Every parameter random, so that no map is uniform."""
    sizes = {"vocab_size": 61, "width": 24, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "context": 64}
    model = Decoder(TransformerConfig(**(sizes | choices))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.7 if parameter.ndim == 1 else 0.0, 0.2, generator=generator)
    return model
