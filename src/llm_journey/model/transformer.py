"""What the three kinds of transformer share: ids to embeddings, and hidden states to logits. The blocks are theirs.

    x = norm(embed(id) * scale + token_type_embed(type) + position(t))      norm, scale, types and positions by choice
    logits = head(norm(activation(dense(hidden)))) + bias                   dense to norm and bias by choice

Legend: B batch, T positions, S positions so far, D width, V vocabulary. Parameters bear the same names in every kind.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_journey.core.errors import BadInputError
from llm_journey.model.config import KindName, TransformerConfig
from llm_journey.model.initialization import initialize
from llm_journey.model.mlp import ACTIVATIONS
from llm_journey.model.norms import make_norm
from llm_journey.model.positions import SINUSOIDS, rotary_tables

# What a token gets that is never written: no probability in float32 beside any other logit, and still a number.
NEVER = -1e4


def with_prefix_logits(logits: Tensor, config: TransformerConfig) -> Tensor:
    """(..., V) whose last P say that a prefix's tokens are never written. logits: (..., V) or (..., V - P)."""
    if not config.prefix_tokens:
        return logits
    written = logits[..., : config.vocab_size - config.prefix_tokens]
    return F.pad(written, (0, config.prefix_tokens), value=NEVER)


class Transformer(nn.Module):
    """Embeddings and head; a kind adds its blocks, its final norm and `hidden`.

    With tied embeddings the head is the embedding's own matrix (Press and Wolf 2017).
    """

    cos: Tensor
    sin: Tensor
    sinusoids: Tensor

    def __init__(self, config: TransformerConfig, kind: KindName) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise BadInputError("the model's vocab_size is 0; a tokenizer must set it before a model is built")
        if config.kind != kind:
            raise BadInputError(f"the configuration is of kind {config.kind!r}; a model of kind {kind!r} was asked for")
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.position_embed = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.token_type_embed = nn.Embedding(config.token_types, config.width) if config.token_types else None
        self.embed_norm: nn.Module | None = None
        if config.embedding_norm:
            self.embed_norm = make_norm(config.norm, config.width, config.norm_epsilon, config.bias)
        self.scale = math.sqrt(config.width) if config.embedding_scale else 1.0
        if config.positions == "rope":
            cos, sin = rotary_tables(config.context, config.head_width, config.rope_theta)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        if config.positions in SINUSOIDS:
            table = SINUSOIDS[config.positions](config.context, config.width)
            self.register_buffer("sinusoids", table, persistent=False)

    def _finish(self) -> None:
        """Add the head behind the blocks, then draw every parameter."""
        config = self.config
        self.head_dense: nn.Module | None = None
        self.head_norm: nn.Module | None = None
        if config.head_transform:
            self.head_dense = nn.Linear(config.width, config.width, bias=config.bias)
            self.head_norm = make_norm(config.norm, config.width, config.norm_epsilon, config.bias)
        self.head = None if config.tied_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.head_bias else None
        initialize(self, config)

    def logits(self, hidden_btd: Tensor) -> Tensor:
        """(B, T, V) from hidden states, or (N, V) from those of some positions (N, D)."""
        if self.head_dense is not None and self.head_norm is not None:
            hidden_btd = self.head_norm(ACTIVATIONS[self.config.mlp](self.head_dense(hidden_btd)))
        return with_prefix_logits(F.linear(hidden_btd, self.head_weight, self.head_bias), self.config)

    @property
    def head_weight(self) -> Tensor:
        """(V, D) matrix that turns hidden states into logits; a prefix's tokens, the last, have none."""
        weight_vd = self.embed.weight if self.head is None else self.head.weight
        return weight_vd[: len(weight_vd) - self.config.prefix_tokens] if self.config.prefix_tokens else weight_vd

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.parameters()).device  # of any: a quantized embedding has a weight only when it is asked for

    def _check_context(self, stop: int) -> None:
        if stop > self.config.context:
            raise BadInputError(f"{stop} positions are more than the model's context of {self.config.context}")

    def _embedded(
        self, ids_bt: Tensor, start: int, positions_bt: Tensor | None, token_types_bt: Tensor | None = None
    ) -> Tensor:
        """(B, T, D): what the first block reads. `start`: positions before the first of ids_bt."""
        x_btd = self.embed(ids_bt)
        if self.config.embedding_scale:
            x_btd = x_btd * self.scale
        if self.token_type_embed is not None:
            types = self.token_type_embed.weight
            x_btd = x_btd + (types[0] if token_types_bt is None else types[token_types_bt])
        x_btd = self._positioned(x_btd, start, positions_bt)
        x_btd = x_btd if self.embed_norm is None else self.embed_norm(x_btd)
        return F.dropout(x_btd, self.config.dropout, self.training) if self.config.dropout else x_btd

    def _positioned(self, x_btd: Tensor, start: int, positions_bt: Tensor | None) -> Tensor:
        which = slice(start, start + x_btd.shape[1]) if positions_bt is None else positions_bt
        if self.position_embed is not None:
            return x_btd + self.position_embed.weight[which]
        if self.config.positions in SINUSOIDS:
            return x_btd + self.sinusoids[which]
        return x_btd

    def _rotary(self, start: int, stop: int, positions_bt: Tensor | None) -> tuple[Tensor, Tensor] | None:
        if self.config.positions != "rope":
            return None
        which = slice(start, stop) if positions_bt is None else positions_bt
        return self.cos[which], self.sin[which]
