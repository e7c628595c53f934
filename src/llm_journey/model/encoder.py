"""The encoder-only transformer (Devlin et al. 2019, "BERT"): every position sees every other. (B, T) -> (B, T, D).

Its head, where it is used, guesses the tokens that were masked; its hidden states are what embedders pool.
"""

import torch
from torch import Tensor, nn

from llm_journey.core.errors import BadInputError
from llm_journey.model.attention import attention_mask
from llm_journey.model.blocks import Block, final_norm
from llm_journey.model.config import TransformerConfig
from llm_journey.model.transformer import Transformer


class Encoder(Transformer):
    """A bidirectional model: each position's logits are about the token at that place."""

    def __init__(self, config: TransformerConfig, attention: str = "fused") -> None:
        super().__init__(config, "encoder")
        self.blocks = nn.ModuleList(Block(config, index, attention, causal=False) for index in range(config.num_layers))
        self.norm = final_norm(config)
        self.pooler = nn.Linear(config.width, config.width, bias=config.bias) if config.pooler else None
        self.next_sentence = nn.Linear(config.width, 2, bias=config.bias) if config.next_sentence else None
        self._finish()

    def forward(
        self,
        ids_bt: Tensor,
        *,
        segments_bt: Tensor | None = None,
        padding_mask_bs: Tensor | None = None,
        positions_bt: Tensor | None = None,
        token_types_bt: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V). See `hidden` for the arguments."""
        hidden_btd = self.hidden(
            ids_bt,
            segments_bt=segments_bt,
            padding_mask_bs=padding_mask_bs,
            positions_bt=positions_bt,
            token_types_bt=token_types_bt,
        )
        return self.logits(hidden_btd)

    def hidden(
        self,
        ids_bt: Tensor,
        *,
        segments_bt: Tensor | None = None,
        padding_mask_bs: Tensor | None = None,
        positions_bt: Tensor | None = None,
        token_types_bt: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D).

        segments_bt: document number of each position (packed rows). padding_mask_bs: True at real tokens. positions_bt:
        position of each token, default 0.., padding counted. token_types_bt: below config.token_types, default 0.
        Raises BadInputError for more positions than the context, and for token types where the model has none.
        """
        length = ids_bt.shape[1]
        self._check_context(length)
        if token_types_bt is not None and self.token_type_embed is None:
            raise BadInputError("the model has no token types (token_types = 0); leave token_types_bt out")
        mask = attention_mask(
            length, length, ids_bt.device, causal=False, segments_bt=segments_bt, padding_mask_bs=padding_mask_bs
        )
        x_btd = self._embedded(ids_bt, 0, positions_bt, token_types_bt)
        rotary = self._rotary(0, length, positions_bt)
        for block in self.blocks:
            x_btd = block(x_btd, rotary, mask)
        result: Tensor = self.norm(x_btd)
        return result

    def pooled(self, hidden_btd: Tensor) -> Tensor:
        """(B, D): tanh(linear(the first position's state)), as BERT pools a text. BadInputError without a pooler."""
        if self.pooler is None:
            raise BadInputError("the model has no pooler (pooler = false); take the mean of its hidden states instead")
        return torch.tanh(self.pooler(hidden_btd[:, 0]))

    def next_sentence_logits(self, hidden_btd: Tensor) -> Tensor:
        """(B, 2): that the second text follows the first, and that it does not (Devlin et al. 2019, section 3.1).

        Raises BadInputError where the model has no such head.
        """
        if self.next_sentence is None:
            raise BadInputError("the model has no next-sentence head (next_sentence = false)")
        result: Tensor = self.next_sentence(self.pooled(hidden_btd))
        return result
