"""BERT (Devlin et al. 2019) as Hugging Face stores it: post-norm, learned positions, token types, biases everywhere.

Three architectures: BertModel (the encoder alone, with or without its pooler; sentence-transformers' files are such),
BertForMaskedLM (with the head that guesses masked tokens), and BertForPreTraining (with pooler and next-sentence head
too: Google's own files). Which parts there are shows in the file's tensors.

The names kept here begin with "bert."; files of BertModel leave that out. Older files call a norm's weight and bias
gamma and beta, and hold the position numbers as a buffer.
"""

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from torch import Tensor

from llm_journey.checkpoint.families.family import ConfigReader, Derived, Family, State, copy_of
from llm_journey.checkpoint.shapes import parameter_shapes
from llm_journey.checkpoint.tensor_files import Shape
from llm_journey.model.config import MlpName, TransformerConfig

_OUTER = {
    "embed.weight": "bert.embeddings.word_embeddings.weight",
    "position_embed.weight": "bert.embeddings.position_embeddings.weight",
    "token_type_embed.weight": "bert.embeddings.token_type_embeddings.weight",
    "embed_norm.weight": "bert.embeddings.LayerNorm.weight",
    "embed_norm.bias": "bert.embeddings.LayerNorm.bias",
    "pooler.weight": "bert.pooler.dense.weight",
    "pooler.bias": "bert.pooler.dense.bias",
    "next_sentence.weight": "cls.seq_relationship.weight",
    "next_sentence.bias": "cls.seq_relationship.bias",
    "head_dense.weight": "cls.predictions.transform.dense.weight",
    "head_dense.bias": "cls.predictions.transform.dense.bias",
    "head_norm.weight": "cls.predictions.transform.LayerNorm.weight",
    "head_norm.bias": "cls.predictions.transform.LayerNorm.bias",
    "head_bias": "cls.predictions.bias",
}
_INNER = {
    "attention.q": "attention.self.query",
    "attention.k": "attention.self.key",
    "attention.v": "attention.self.value",
    "attention.o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
_OLD_NORM = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_ACTIVATIONS: dict[str, MlpName] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_HIDDEN_ACT = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "silu": "silu"}
_HEADED = ("BertForMaskedLM", "BertForPreTraining")


def _fits(config: TransformerConfig) -> bool:
    return (
        config.kind == "encoder"
        and _architecture(config) is not None
        and config.norm == "layernorm"
        and config.norm_placement == "post"
        and config.positions == "learned"
        and config.token_types > 0
        and config.embedding_norm
        and not config.embedding_scale
        and config.mlp in _HIDDEN_ACT
        and config.bias
        and config.tied_embeddings
        and not config.qk_norm
        and config.num_kv_heads == config.num_heads
        and config.num_heads * config.head_width == config.width
    )


def _architecture(config: TransformerConfig) -> str | None:
    """Hugging Face's name for what stands on top of the blocks, None where it has none."""
    match (config.head_transform, config.head_bias, config.pooler, config.next_sentence):
        case (False, False, _, False):
            return "BertModel"
        case (True, True, False, False):
            return "BertForMaskedLM"
        case (True, True, True, True):
            return "BertForPreTraining"
    return None


def _write_config(config: TransformerConfig) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "architectures": [_architecture(config)],
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": _HIDDEN_ACT[config.mlp],
        "max_position_embeddings": config.context,
        "type_vocab_size": config.token_types,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": 0.0,
        "tie_word_embeddings": True,
    }


def _read_config(reader: ConfigReader) -> TransformerConfig:
    reader.require("hidden_act", tuple(_ACTIVATIONS), "gelu")
    reader.require("position_embedding_type", ("absolute",), "absolute")
    reader.require("is_decoder", (False,), False)
    reader.require("add_cross_attention", (False,), False)
    reader.require("tie_word_embeddings", (True,), True)
    width, num_heads = reader.size("hidden_size"), reader.size("num_attention_heads")
    if width % num_heads:
        raise reader.error("num_attention_heads", f"a divisor of hidden_size = {width}")
    named = reader.values.get("architectures")
    architectures = named if isinstance(named, list) else []
    headed = any(name in _HEADED for name in architectures)
    whole = "BertForPreTraining" in architectures
    return reader.transformer(
        kind="encoder",
        vocab_size=reader.size("vocab_size"),
        width=width,
        num_layers=reader.size("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_width=width // num_heads,
        mlp_width=reader.size("intermediate_size"),
        context=reader.context("max_position_embeddings"),
        norm="layernorm",
        norm_placement="post",
        norm_epsilon=reader.number("layer_norm_eps", 1e-12, low=1e-30, high=1.0),
        positions="learned",
        mlp=_ACTIVATIONS[reader.values.get("hidden_act") or "gelu"],
        bias=True,
        dropout=reader.number("hidden_dropout_prob", 0.1, low=0.0, high=0.999),
        token_types=reader.size("type_vocab_size", 2),
        embedding_norm=True,
        head_transform=headed,
        head_bias=headed,
        pooler=whole,
        next_sentence=whole,
    )


def _complete(config: TransformerConfig, names: Collection[str]) -> TransformerConfig:
    """config.json does not say whether there is a pooler, and tools leave `architectures` as they found it."""
    headed = config.head_transform or any(name.startswith("cls.predictions.") for name in names)
    next_sentence = any(name.startswith("cls.seq_relationship.") for name in names)
    pooler = next_sentence or any(name.startswith("bert.pooler.") for name in names)
    return replace(config, head_transform=headed, head_bias=headed, pooler=pooler, next_sentence=next_sentence)


def _rename(name: str) -> str:
    for old, new in _OLD_NORM.items():
        name = name.replace(old, new) if name.endswith(old) else name
    full = name if name.startswith(("bert.", "cls.")) else f"bert.{name}"
    return "" if full == "bert.embeddings.position_ids" else full


def _target(name: str) -> str:
    """Hugging Face's name for one of our parameters."""
    if match := _BLOCK.fullmatch(name):
        index, module, kind = match.groups()
        return f"bert.encoder.layer.{index}.{_INNER[module]}.{kind}"
    return _OUTER[name]


def _shapes(config: TransformerConfig) -> dict[str, Shape]:
    return {_target(name): shape for name, shape in parameter_shapes(config).items()}


def _write_tensors(config: TransformerConfig, state: State) -> dict[str, Tensor]:
    named = {_target(name): state[name] for name in parameter_shapes(config)}
    return named if config.head_transform else {name.removeprefix("bert."): value for name, value in named.items()}


def _read_tensors(config: TransformerConfig, tensors: State) -> dict[str, Tensor]:
    return {name: tensors[_target(name)] for name in parameter_shapes(config)}


def _derived(config: TransformerConfig) -> dict[str, Derived]:
    if not config.head_transform:
        return {}
    weight, bias = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"
    return {
        weight: copy_of(_OUTER["embed.weight"], weight, (config.vocab_size, config.width)),
        bias: copy_of(_OUTER["head_bias"], bias, (config.vocab_size,)),
    }


FAMILY = Family(
    name="bert",
    fits=_fits,
    write_config=_write_config,
    read_config=_read_config,
    shapes=_shapes,
    rename=_rename,
    write_tensors=_write_tensors,
    read_tensors=_read_tensors,
    derived=_derived,
    complete=_complete,
)
