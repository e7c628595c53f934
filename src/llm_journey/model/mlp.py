"""The position-wise network of a block, (B, T, D) -> (B, T, D).

gelu       down(GELU(up(x)))            (Hendrycks and Gimpel 2016; "gelu_tanh" is GPT-2's approximation of it)
relu       down(relu(up(x)))            (Vaswani et al. 2017, eq. 2)
relu2      down(relu(up(x))^2)          (So et al. 2021, "Primer")
silu       down(silu(up(x)))            (Ramachandran et al. 2017, "swish"; what Marian's models have)
swiglu     down(silu(gate(x)) * up(x))  (Shazeer 2020, eq. 6)
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_journey.core.errors import unknown_name
from llm_journey.model.config import TransformerConfig

# By the name of the MLP; swiglu's is that of its gate.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
    "swiglu": F.silu,
}


class Mlp(nn.Module):
    """up, activation, down."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if config.mlp not in ACTIVATIONS:
            raise unknown_name("mlp", config.mlp, ACTIVATIONS)
        self.up = nn.Linear(config.width, config.mlp_width, bias=config.bias)
        self.down = nn.Linear(config.mlp_width, config.width, bias=config.bias)
        self.activation = ACTIVATIONS[config.mlp]

    def forward(self, x_btd: Tensor) -> Tensor:
        result: Tensor = self.down(self.activation(self.up(x_btd)))
        return result


class GatedMlp(nn.Module):
    """swiglu: a gate decides channel by channel what passes."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.mlp_width, bias=config.bias)
        self.up = nn.Linear(config.width, config.mlp_width, bias=config.bias)
        self.down = nn.Linear(config.mlp_width, config.width, bias=config.bias)

    def forward(self, x_btd: Tensor) -> Tensor:
        gate_btf, up_btf = joined_linear(x_btd, self.gate, self.up)
        result: Tensor = self.down(F.silu(gate_btf) * up_btf)
        return result


def make_mlp(config: TransformerConfig) -> nn.Module:
    """The network that `config.mlp` names."""
    return GatedMlp(config) if config.mlp == "swiglu" else Mlp(config)


def joined_linear(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Several linear layers of one input as a single matrix product: fewer, larger products are faster.

    While training, the weights are joined anew each time (they are small beside the product). Layers that are no plain
    nn.Linear (after tree surgery: quantized, adapted) are called one by one.
    """
    if not all(type(layer) is nn.Linear for layer in layers) or not torch.is_grad_enabled():
        return tuple(layer(x) for layer in layers)
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    weight = torch.cat([layer.weight for layer in linears])
    bias = torch.cat([layer.bias for layer in linears]) if linears[0].bias is not None else None
    return torch.split(F.linear(x, weight, bias), [layer.out_features for layer in linears], dim=-1)
