"""The block that every transformer here is made of: attention and MLP, each on a residual branch.

pre:  x = x + f(norm(x))     (Radford et al. 2019; trains stably without warmup tricks)
post: x = norm(x + f(x))     (Vaswani et al. 2017, section 3.1)

In the decoder of an encoder-decoder a third branch stands between the two: attention over the encoder's output.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm_journey.model.attention import Attention, Cache, Memory
from llm_journey.model.config import TransformerConfig
from llm_journey.model.mlp import make_mlp
from llm_journey.model.norms import make_norm


class Block(nn.Module):
    """(B, T, D) -> (B, T, D). causal: a position sees no later one. cross: with attention over a memory (B, S, D)."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_index: int,
        attention: str = "fused",
        *,
        causal: bool = True,
        cross: bool = False,
    ) -> None:
        super().__init__()
        self.attention_norm = make_norm(config.norm, config.width, config.norm_epsilon, config.bias)
        self.attention = Attention(config, layer_index, attention, causal=causal)
        self.cross_norm: nn.Module | None = None
        self.cross_attention: Attention | None = None
        if cross:
            self.cross_norm = make_norm(config.norm, config.width, config.norm_epsilon, config.bias)
            self.cross_attention = Attention(config, layer_index, attention, causal=False)
        self.mlp_norm = make_norm(config.norm, config.width, config.norm_epsilon, config.bias)
        self.mlp = make_mlp(config)
        self.pre = config.norm_placement == "pre"
        self.dropout = config.dropout
        self.recomputed = False

    def forward(
        self,
        x_btd: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: Cache | None = None,
        memory: Memory | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """mask: over the block's own positions, (B or 1, 1, T, S). memory_mask: over the memory's."""
        if self.recomputed and self.training and torch.is_grad_enabled() and cache is None:
            whole: Tensor = checkpoint(self._whole, x_btd, rotary, mask, None, memory, memory_mask, use_reentrant=False)
            return whole
        return self._whole(x_btd, rotary, mask, cache, memory, memory_mask)

    def _whole(
        self,
        x_btd: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: Cache | None,
        memory: Memory | None,
        memory_mask: Tensor | None,
    ) -> Tensor:
        if self.pre:
            x_btd = x_btd + self._drop(self.attention(self.attention_norm(x_btd), rotary, mask, cache))
            if self.cross_attention is not None and self.cross_norm is not None:
                looked_up = self.cross_attention(self.cross_norm(x_btd), None, memory_mask, memory=memory)
                x_btd = x_btd + self._drop(looked_up)
            return x_btd + self._drop(self.mlp(self.mlp_norm(x_btd)))
        x_btd = self.attention_norm(x_btd + self._drop(self.attention(x_btd, rotary, mask, cache)))
        if self.cross_attention is not None and self.cross_norm is not None:
            x_btd = self.cross_norm(x_btd + self._drop(self.cross_attention(x_btd, None, memory_mask, memory=memory)))
        result: Tensor = self.mlp_norm(x_btd + self._drop(self.mlp(x_btd)))
        return result

    def _drop(self, branch_btd: Tensor) -> Tensor:
        return F.dropout(branch_btd, self.dropout, self.training) if self.dropout else branch_btd


def recompute(model: nn.Module) -> None:
    """Let the blocks keep nothing but their input in training, and compute the rest a second time for the gradients
    (Chen et al. 2016, section 3): a third more time, and memory that hardly grows with depth."""
    for module in model.modules():
        if isinstance(module, Block):
            module.recomputed = True


def final_norm(config: TransformerConfig) -> nn.Module:
    """The norm after a stack's last block; a post-norm block ends with its own."""
    if config.norm_placement == "post":
        return nn.Identity()
    return make_norm(config.norm, config.width, config.norm_epsilon, config.bias)
