"""A model's rows for tokens that it has not had: each begins as the mean of the rows that it was spelled with before.

So a new token means to the model about what its pieces did; random rows would be noise in every text that has one.

Legend: V vocabulary before, W after, D width.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from llm_journey.model.decoder import Decoder
from llm_journey.tokenizer import Tokenizer


def enlarge(model: Decoder, before: Tokenizer, after: Tokenizer) -> None:
    """Give the embedding, and a head of its own, rows for the tokens of `after` that `before` lacks."""
    spelled = {token: data for data, token in after.vocabulary.items()}
    first = before.vocab_size
    pieces = {token: before.encode_word(spelled[token]) for token in range(first, after.vocab_size)}
    size = max(model.config.vocab_size, after.vocab_size)
    assert isinstance(model.embed, nn.Embedding)
    embed = nn.Embedding(size, model.config.width, device="meta")
    embed.load_state_dict({"weight": _enlarged(model.embed.weight, pieces, size)}, assign=True)
    model.embed = embed
    if model.head is not None:
        head = nn.Linear(model.config.width, size, bias=False, device="meta")
        head.load_state_dict({"weight": _enlarged(model.head.weight, pieces, size)}, assign=True)
        model.head = head
    if model.head_bias is not None:
        bias_v1 = model.head_bias.detach()[:, None]
        model.head_bias = nn.Parameter(_enlarged(bias_v1, pieces, size)[:, 0])
    model.config = replace(model.config, vocab_size=size)


def _enlarged(table_vd: Tensor, pieces: dict[int, list[int]], size: int) -> Tensor:
    table_wd = table_vd.new_zeros(size, table_vd.shape[1])
    table_wd[: len(table_vd)] = table_vd.detach()
    for token, ids in pieces.items():
        table_wd[token] = table_vd[torch.tensor(ids)].mean(0).detach()
    return table_wd
