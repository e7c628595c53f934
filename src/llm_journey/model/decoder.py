"""The decoder-only transformer (Radford et al. 2018): causal blocks. (B, T) token ids -> (B, T, V) logits."""

from torch import Tensor, nn

from llm_journey.model.attention import Cache, attention_mask
from llm_journey.model.blocks import Block, final_norm
from llm_journey.model.config import TransformerConfig
from llm_journey.model.prefix import Prefix
from llm_journey.model.transformer import Transformer


class Decoder(Transformer):
    """A causal language model: each position's logits are about the token after it."""

    def __init__(self, config: TransformerConfig, attention: str = "fused") -> None:
        super().__init__(config, "decoder")
        self.blocks = nn.ModuleList(Block(config, index, attention) for index in range(config.num_layers))
        self.norm = final_norm(config)
        self.prefix = Prefix(config) if config.prefix_tokens else None
        self._finish()

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
        return self.logits(hidden_btd)

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
        if self.prefix is not None:
            cache = self.prefix.over(ids_bt, cache)
        start = cache.length if cache is not None else 0
        stop = start + ids_bt.shape[1]
        self._check_context(stop)
        mask = attention_mask(
            ids_bt.shape[1],
            stop,
            ids_bt.device,
            sliding_window=self.config.sliding_window,
            segments_bt=segments_bt,
            padding_mask_bs=padding_mask_bs,
        )
        x_btd = self._embedded(ids_bt, start, positions_bt)
        rotary = self._rotary(start, stop, positions_bt)
        for block in self.blocks:
            x_btd = block(x_btd, rotary, mask, cache)
        result: Tensor = self.norm(x_btd)
        return result
