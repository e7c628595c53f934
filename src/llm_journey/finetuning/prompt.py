"""Prompt tuning: a few learned embeddings stand before every text, the model stays as it is (Lester et al. 2021).

Here they are tokens: P special ones behind the vocabulary, which the chat template writes first. So chats, masks,
packing and answers need know nothing of them, and a tuned model ends as a plain one, whose table has P rows more. Files
are PEFT's (PROMPT_TUNING), whose models put the same rows before a text that is rendered by the model's own template.

Legend: B batch, T positions, P tokens of the prompt, V vocabulary, D width.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from llm_journey.checkpoint import tensor_files
from llm_journey.core.errors import BadInputError
from llm_journey.core.files import write_json
from llm_journey.finetuning.config import PromptConfig
from llm_journey.finetuning.lora import freeze
from llm_journey.model.decoder import Decoder
from llm_journey.tokenizer import Tokenizer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = "<|prompt_{}|>"
_COMMON = 5000  # the tokens that initial rows are drawn from: in a BPE vocabulary, early merges are the frequent ones


class PromptedEmbedding(nn.Module):
    """A table (V, D) that stays as it is, and the rows (P, D) of the ids from `first` on."""

    def __init__(self, base: nn.Embedding, prompt_pd: Tensor, first: int) -> None:
        super().__init__()
        self.base, self.first = base, first
        self.prompt_pd = nn.Parameter(prompt_pd)

    @property
    def weight(self) -> Tensor:
        """(V, D) as it was: the matrix of a tied head, which writes no token of the prompt."""
        return self.base.weight

    def forward(self, ids_bt: Tensor) -> Tensor:
        place_bt = ids_bt - self.first
        is_prompt_bt = (place_bt >= 0) & (place_bt < len(self.prompt_pd))
        rows: Tensor = self.base(torch.where(is_prompt_bt, 0, ids_bt))
        prompt: Tensor = self.prompt_pd[place_bt.clamp(0, len(self.prompt_pd) - 1)]
        return torch.where(is_prompt_bt[..., None], prompt, rows)


def prompt_tokenizer(tokenizer: Tokenizer, config: PromptConfig) -> Tokenizer:
    """The tokenizer with the prompt's tokens, which its chat template writes before everything else.

    Raises BadInputError where it has no template, or such tokens already.
    """
    return virtual_tokens(tokenizer, _NAME, config.tokens, tokenizer.vocab_size)


def virtual_tokens(tokenizer: Tokenizer, name: str, count: int, first: int) -> Tokenizer:
    """The tokenizer with `count` special tokens more, from id `first` on, which its chat template writes first.

    name: of each, with its number at {}. Raises BadInputError where it has no template, or such tokens already.
    """
    if tokenizer.chat_template is None:
        raise BadInputError("the model has no chat template, in front of which learned tokens could stand")
    names = [name.format(number) for number in range(count)]
    if not set(names).isdisjoint(tokenizer.special_tokens):
        raise BadInputError("the model has such tokens already; go on from the model that it was made from")
    return tokenizer.changed(
        special_tokens=tokenizer.special_tokens | {name: first + number for number, name in enumerate(names)},
        chat_template="".join(names) + tokenizer.chat_template,
    )


def inject_prompt(model: Decoder, config: PromptConfig, first: int) -> None:
    """Freeze a model and give it a prompt whose ids begin at `first`; its rows begin as those of common tokens.

    Raises BadInputError for a model whose embedding is no plain table.
    """
    if not isinstance(model.embed, nn.Embedding):
        raise BadInputError("prompt tuning needs a model whose embedding is neither adapted nor quantized")
    freeze(model)
    drawn_p = common_tokens(model, config.tokens)
    embedding = PromptedEmbedding(model.embed, model.embed.weight.detach()[drawn_p].clone(), first)
    model.embed = embedding  # type: ignore[assignment]
    model.config = replace(model.config, vocab_size=max(model.config.vocab_size, first + config.tokens))


def common_tokens(model: Decoder, count: int) -> Tensor:
    """(P,) ids of common tokens, drawn from torch's global generator."""
    return torch.randint(min(_COMMON, model.config.vocab_size), (count,), device=model.device)


def merge_prompt(model: Decoder) -> None:
    """Make a model with a prompt a plain one, of a larger table, whose head all but never writes the prompt's tokens.

    A plain head has no mask. Their row is the mean of all rows V: their logit is then the mean logit, and by Jensen's
    inequality, exp(mean) <= mean of exp, none of them has a larger probability than 1 / V after any text.
    """
    embedding = model.embed
    assert isinstance(embedding, PromptedEmbedding)
    size, first, count = model.config.vocab_size, embedding.first, len(embedding.prompt_pd)
    head_vd = model.head_weight.detach()
    model.head = _linear(_with_rows(head_vd, size, first, head_vd.mean(0).expand(count, -1)))
    table = _with_rows(embedding.base.weight.detach(), size, first, embedding.prompt_pd.detach())
    plain = nn.Embedding(table.shape[0], table.shape[1], device="meta")
    plain.load_state_dict({"weight": table}, assign=True)
    model.embed = plain
    model.config = replace(model.config, tied_embeddings=False)


def _with_rows(table_vd: Tensor, size: int, first: int, rows_pd: Tensor) -> Tensor:
    result = table_vd.new_zeros(size, table_vd.shape[1])
    result[: len(table_vd)] = table_vd
    result[first : first + len(rows_pd)] = rows_pd
    return result


def _linear(weight_nk: Tensor) -> nn.Linear:
    layer = nn.Linear(weight_nk.shape[1], weight_nk.shape[0], bias=False, device="meta")
    layer.load_state_dict({"weight": weight_nk}, assign=True)
    return layer


def write_prompt_files(model: Decoder, directory: Path, *, base: str) -> None:
    """The prompt in PEFT's layout, into a directory that exists."""
    embedding = model.embed
    assert isinstance(embedding, PromptedEmbedding)
    values = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "num_virtual_tokens": len(embedding.prompt_pd),
        "token_dim": model.config.width,
        "num_attention_heads": model.config.num_heads,
        "num_layers": model.config.num_layers,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
        "inference_mode": True,
    }
    write_json(directory / CONFIG, values)
    tensor_files.write_tensors(directory / WEIGHTS, {"prompt_embeddings": embedding.prompt_pd.detach()})
