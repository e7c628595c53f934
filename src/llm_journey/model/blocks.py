"""The block that every transformer here is made of: attention and MLP, each on a residual branch.

pre:  x = x + f(norm(x))     (Radford et al. 2019; trains stably without warmup tricks)
post: x = norm(x + f(x))     (Vaswani et al. 2017, section 3.1)
"""

import torch.nn.functional as F
from torch import Tensor, nn

from llm_journey.model.attention import Attention, Cache
from llm_journey.model.config import TransformerConfig
from llm_journey.model.mlp import make_mlp
from llm_journey.model.norms import make_norm


class Block(nn.Module):
    """(B, T, D) -> (B, T, D)."""

    def __init__(self, config: TransformerConfig, layer_index: int, attention: str = "fused") -> None:
        super().__init__()
        self.attention_norm = make_norm(config.norm, config.width, config.norm_epsilon, config.bias)
        self.attention = Attention(config, layer_index, attention)
        self.mlp_norm = make_norm(config.norm, config.width, config.norm_epsilon, config.bias)
        self.mlp = make_mlp(config)
        self.pre = config.norm_placement == "pre"
        self.dropout = config.dropout

    def forward(
        self, x_btd: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: Cache | None = None
    ) -> Tensor:
        if self.pre:
            x_btd = x_btd + self._drop(self.attention(self.attention_norm(x_btd), rotary, mask, cache))
            return x_btd + self._drop(self.mlp(self.mlp_norm(x_btd)))
        x_btd = self.attention_norm(x_btd + self._drop(self.attention(x_btd, rotary, mask, cache)))
        result: Tensor = self.mlp_norm(x_btd + self._drop(self.mlp(x_btd)))
        return result

    def _drop(self, branch_btd: Tensor) -> Tensor:
        return F.dropout(branch_btd, self.dropout, self.training) if self.dropout else branch_btd
