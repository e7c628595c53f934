"""The encoder-decoder (Vaswani et al. 2017): one stack reads a source, the other writes a target and looks at it.

    memory = encode(source)                       (B, S) -> (B, S, D)
    logits = head(decode(target, memory))         (B, T) -> (B, T, V)

Both stacks share the embeddings and the positions. Teacher forcing is `forward`: the target is the text to be written,
shifted right by a start token, and each position's logits are about the token after it. Generation calls `encode` once,
then `decode` with a cache for what was written so far and `keys_values` for the source.

Legend: B batch, S source positions, T target positions, D width, V vocabulary.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from llm_journey.model.attention import Attention, Cache, KeysValues, attention_mask
from llm_journey.model.blocks import Block, final_norm
from llm_journey.model.config import TransformerConfig
from llm_journey.model.transformer import Transformer


class EncoderDecoder(Transformer):
    """A sequence-to-sequence model: config.num_layers blocks read, config.num_decoder_layers write."""

    def __init__(self, config: TransformerConfig, attention: str = "fused") -> None:
        super().__init__(config, "encoder_decoder")
        self.encoder_blocks = nn.ModuleList(
            Block(config, index, attention, causal=False) for index in range(config.num_layers)
        )
        self.encoder_norm = final_norm(config)
        self.blocks = nn.ModuleList(
            Block(config, index, attention, cross=True) for index in range(config.num_decoder_layers)
        )
        self.norm = final_norm(config)
        self._finish()

    def forward(
        self,
        source_bs: Tensor,
        target_bt: Tensor,
        *,
        source_padding_mask_bs: Tensor | None = None,
        padding_mask_bt: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V). See `hidden` for the arguments."""
        hidden_btd = self.hidden(
            source_bs, target_bt, source_padding_mask_bs=source_padding_mask_bs, padding_mask_bt=padding_mask_bt
        )
        return self.logits(hidden_btd)

    def hidden(
        self,
        source_bs: Tensor,
        target_bt: Tensor,
        *,
        source_padding_mask_bs: Tensor | None = None,
        padding_mask_bt: Tensor | None = None,
    ) -> Tensor:
        """The target's hidden states (B, T, D). Masks: True at real tokens of source_bs and of target_bt."""
        memory_bsd = self.encode(source_bs, source_padding_mask_bs)
        return self.decode(
            target_bt, memory_bsd, source_padding_mask_bs=source_padding_mask_bs, padding_mask_bt=padding_mask_bt
        )

    def encode(
        self, source_bs: Tensor, padding_mask_bs: Tensor | None = None, *, positions_bs: Tensor | None = None
    ) -> Tensor:
        """The memory (B, S, D): what the decoder may look at.

        padding_mask_bs: True at real tokens. positions_bs: position of each token, default 0.., padding counted.
        Raises BadInputError for more positions than the context, as `decode` does.
        """
        length = source_bs.shape[1]
        self._check_context(length)
        mask = attention_mask(length, length, source_bs.device, causal=False, padding_mask_bs=padding_mask_bs)
        x_bsd = self._embedded(source_bs, 0, positions_bs)
        rotary = self._rotary(0, length, positions_bs)
        for block in self.encoder_blocks:
            x_bsd = block(x_bsd, rotary, mask)
        result: Tensor = self.encoder_norm(x_bsd)
        return result

    def decode(
        self,
        target_bt: Tensor,
        memory: Tensor | Sequence[KeysValues],
        *,
        source_padding_mask_bs: Tensor | None = None,
        padding_mask_bt: Tensor | None = None,
        positions_bt: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of the target; `logits` turns them into logits.

        memory: what `encode` gave, or what `keys_values` made of it. source_padding_mask_bs: True at the source's real
        tokens. padding_mask_bt: True at the target's real tokens, cached and new. positions_bt: position of each token,
        default 0.. (after the cached ones). cache: keys and values of earlier target positions, extended in place.
        """
        start = cache.length if cache is not None else 0
        stop = start + target_bt.shape[1]
        self._check_context(stop)
        mask = attention_mask(target_bt.shape[1], stop, target_bt.device, padding_mask_bs=padding_mask_bt)
        memory_mask = None
        if source_padding_mask_bs is not None:
            memory_mask = source_padding_mask_bs[:, None, None, :].expand(-1, 1, target_bt.shape[1], -1)
        x_btd = self._embedded(target_bt, start, positions_bt)
        rotary = self._rotary(start, stop, positions_bt)
        for index, block in enumerate(self.blocks):
            block_memory = memory if isinstance(memory, Tensor) else memory[index]
            x_btd = block(x_btd, rotary, mask, cache, block_memory, memory_mask)
        result: Tensor = self.norm(x_btd)
        return result

    def keys_values(self, memory_bsd: Tensor) -> list[KeysValues]:
        """Each decoder block's keys and values of the memory, made once for a whole generation."""
        layers = (block.cross_attention for block in self.blocks)
        return [layer.keys_values(memory_bsd) for layer in layers if isinstance(layer, Attention)]
