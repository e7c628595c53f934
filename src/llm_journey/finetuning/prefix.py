"""Prefix tuning of a model: frozen but for the keys and values of a few tokens before each chat (model.prefix).

They begin as those of common tokens, read by the model itself: of all beginnings that Li and Liang 2021 (section 6.4)
compare, the activations of real words learn best from little data. Files are PEFT's (PREFIX_TUNING, no projection):
prompt_embeddings (P, L 2 K E), of each layer its keys and then its values.

Legend: see model.prefix; V vocabulary before, D width.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from llm_journey.checkpoint import tensor_files
from llm_journey.core.errors import BadInputError
from llm_journey.core.files import write_json
from llm_journey.finetuning.config import PromptConfig
from llm_journey.finetuning.lora import freeze
from llm_journey.finetuning.prompt import CONFIG, WEIGHTS, common_tokens, virtual_tokens
from llm_journey.model.decoder import Decoder
from llm_journey.model.prefix import Prefix, Recorder
from llm_journey.tokenizer import Tokenizer

_NAME = "<|prefix_{}|>"


def prefix_tokenizer(tokenizer: Tokenizer, config: PromptConfig, vocab_size: int) -> Tokenizer:
    """The tokenizer with the prefix's tokens behind the model's `vocab_size` rows; its chat template writes them first.

    Raises BadInputError where it has no template, or such tokens already.
    """
    return virtual_tokens(tokenizer, _NAME, config.tokens, vocab_size)


def inject_prefix(model: Decoder, config: PromptConfig) -> None:
    """Freeze a model and give it a prefix, whose tokens are the last of its vocabulary, which grows by them.

    Raises BadInputError for a model whose embedding is no plain table, and for one with a prefix.
    """
    if model.prefix is not None:
        raise BadInputError("the model has a tuned prefix already; go on from the model that it was made from")
    if not isinstance(model.embed, nn.Embedding) or not isinstance(model.head, nn.Linear | None):
        raise BadInputError("prefix tuning needs a model whose embedding is neither adapted nor quantized")
    drawn_1p = common_tokens(model, config.tokens)[None]
    recorder = Recorder()
    with torch.no_grad():
        model.hidden(drawn_1p, cache=recorder)
        # Rows that nobody reads: attention sees the prefix's own keys and values, and the head ends before them.
        model.embed = _with_rows(model.embed, config.tokens)
        if model.head is not None:
            grown = _with_rows(model.head, config.tokens)
            model.head = nn.Linear(grown.weight.shape[1], grown.weight.shape[0], bias=False, device="meta")
            model.head.load_state_dict({"weight": grown.weight}, assign=True)
    rows = model.config.vocab_size + config.tokens
    model.config = replace(model.config, vocab_size=rows, prefix_tokens=config.tokens)
    model.prefix = Prefix(model.config).to(model.device)
    keys_values_ljpe = torch.stack([torch.cat(pair, dim=1)[0] for pair in recorder.layers])
    model.prefix.keys_values_lpje.data = keys_values_ljpe.transpose(1, 2).contiguous()
    freeze(model)
    model.prefix.keys_values_lpje.requires_grad = True


def _with_rows(table: nn.Embedding | nn.Linear, count: int) -> nn.Embedding:
    weight_vd = table.weight.detach()
    grown = nn.Embedding(len(weight_vd) + count, weight_vd.shape[1], device="meta")
    grown.load_state_dict(
        {"weight": torch.cat([weight_vd, weight_vd.new_zeros(count, weight_vd.shape[1])])}, assign=True
    )
    return grown


def write_prefix_files(model: Decoder, directory: Path, *, base: str) -> None:
    """The prefix in PEFT's layout, into a directory that exists."""
    assert model.prefix is not None
    config = model.config
    values = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "num_virtual_tokens": config.prefix_tokens,
        "token_dim": config.num_kv_heads * config.head_width,
        "num_attention_heads": config.num_kv_heads,
        "num_layers": config.num_layers,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": None,
        "prefix_projection": False,
        "inference_mode": True,
    }
    write_json(directory / CONFIG, values)
    stored_pn = model.prefix.keys_values_lpje.detach().transpose(0, 1).flatten(1).contiguous()
    tensor_files.write_tensors(directory / WEIGHTS, {"prompt_embeddings": stored_pn})
