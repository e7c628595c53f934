"""Initial weights, each with its reason.

- A linear layer draws from N(0, 1/fan_in): its outputs then have the variance of its inputs (LeCun et al. 1998,
  section 4.6), whatever the width. GPT-2's fixed 0.02 is that value at a width of 2,500; small models want more.
- The layers that write into the residual stream (attention.o, mlp.down) start at zero: each block is the identity at
  first, so depth neither grows nor shrinks the signal (Bachlechner et al. 2021; Radford et al. 2019 scale by
  1/sqrt(2 L) to the same end).
- An untied embedding draws from N(0, 1), since the first norm rescales it anyway, and its head starts at zero: the
  loss starts at ln V. A tied one draws from N(0, 1/D): the first logits are N(0, 1), save the sqrt(D) of a token's
  own, so the loss starts above ln V. A scale of 1/D starts it at ln V, yet it learned slower in each short trial.
"""

import torch
from torch import nn

from llm_journey.model.config import TransformerConfig


def initialize(model: nn.Module, config: TransformerConfig) -> None:
    """Fill every parameter of `model` in place, drawing from torch's global generator."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                if name.endswith(("attention.o", "mlp.down")) or name == "head":
                    module.weight.zero_()
                else:
                    module.weight.normal_(std=module.in_features**-0.5)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                small = config.tied_embeddings or name in ("position_embed", "token_type_embed")
                module.weight.normal_(std=config.width**-0.5 if small else 1.0)
