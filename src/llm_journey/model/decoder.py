"""The decoder-only transformer: embed, blocks, norm, head. (B, T) token ids -> (B, T, V) logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_journey.core.errors import BadInputError
from llm_journey.model.attention import Cache, attention_mask
from llm_journey.model.blocks import Block
from llm_journey.model.config import TransformerConfig
from llm_journey.model.initialization import initialize
from llm_journey.model.norms import make_norm
from llm_journey.model.positions import rotary_tables, sinusoidal_table


class Decoder(nn.Module):
    """A causal language model. With tied embeddings the head is the embedding's own matrix (Press and Wolf 2017)."""

    cos: Tensor
    sin: Tensor
    sinusoids: Tensor

    def __init__(self, config: TransformerConfig, attention: str = "fused") -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise BadInputError("the model's vocab_size is 0; a tokenizer must set it before a model is built")
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.position_embed = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(config, index, attention) for index in range(config.num_layers))
        self.norm: nn.Module = nn.Identity()  # a post-norm block ends with its own norm
        if config.norm_placement == "pre":
            self.norm = make_norm(config.norm, config.width, config.norm_epsilon, config.bias)
        self.head = None if config.tied_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        if config.positions == "rope":
            cos, sin = rotary_tables(config.context, config.head_width, config.rope_theta)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        if config.positions == "sinusoidal":
            self.register_buffer("sinusoids", sinusoidal_table(config.context, config.width), persistent=False)
        initialize(self, config)

    def forward(
        self,
        ids_bt: Tensor,
        *,
        cache: Cache | None = None,
        segments_bt: Tensor | None = None,
        padding_mask_bs: Tensor | None = None,
        positions_bt: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V). See `hidden` for the arguments."""
        hidden_btd = self.hidden(
            ids_bt,
            cache=cache,
            segments_bt=segments_bt,
            padding_mask_bs=padding_mask_bs,
            positions_bt=positions_bt,
        )
        return F.linear(hidden_btd, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """(V, D) matrix that turns hidden states into logits."""
        return self.embed.weight if self.head is None else self.head.weight

    def hidden(
        self,
        ids_bt: Tensor,
        *,
        cache: Cache | None = None,
        segments_bt: Tensor | None = None,
        padding_mask_bs: Tensor | None = None,
        positions_bt: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) before the head.

        cache: keys and values of earlier positions, extended in place. segments_bt: document number of each position
        (packed rows). padding_mask_bs: True at real tokens, over cached and new positions. positions_bt: position of
        each token, default 0.. (after the cached ones). Raises BadInputError for more positions than the context.
        """
        start = cache.length if cache is not None else 0
        stop = start + ids_bt.shape[1]
        if stop > self.config.context:
            raise BadInputError(f"{stop} positions are more than the model's context of {self.config.context}")
        mask = attention_mask(
            ids_bt.shape[1],
            stop,
            ids_bt.device,
            sliding_window=self.config.sliding_window,
            segments_bt=segments_bt,
            padding_mask_bs=padding_mask_bs,
        )
        x_btd = self._positioned(self.embed(ids_bt), start, stop, positions_bt)
        x_btd = F.dropout(x_btd, self.config.dropout, self.training) if self.config.dropout else x_btd
        rotary = self._rotary(start, stop, positions_bt)
        for block in self.blocks:
            x_btd = block(x_btd, rotary, mask, cache)
        result: Tensor = self.norm(x_btd)
        return result

    def _positioned(self, x_btd: Tensor, start: int, stop: int, positions_bt: Tensor | None) -> Tensor:
        which = slice(start, stop) if positions_bt is None else positions_bt
        if self.position_embed is not None:
            return x_btd + self.position_embed.weight[which]
        if self.config.positions == "sinusoidal":
            return x_btd + self.sinusoids[which]
        return x_btd

    def _rotary(self, start: int, stop: int, positions_bt: Tensor | None) -> tuple[Tensor, Tensor] | None:
        if self.config.positions != "rope":
            return None
        which = slice(start, stop) if positions_bt is None else positions_bt
        return self.cos[which], self.sin[which]

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.embed.weight.device
