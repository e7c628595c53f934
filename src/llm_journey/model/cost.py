"""What a transformer costs: parameters, FLOPs, activation bytes, key-value bytes. Counted from its configuration.

A multiply and an add are two FLOPs. The backward pass costs twice the forward pass. Norms, activations and the softmax
are left out (under 1% at usual widths). Causal attention is counted at half of the full square, since the fused kernel
skips what is masked; an encoder's and cross-attention at the whole. An encoder-decoder's figures are for a target token
with as many source tokens as target ones: for its own source token too.
"""

from dataclasses import dataclass, replace

from llm_journey.model.config import TransformerConfig


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters by part; `total` is what a saved model holds."""

    embedding: int
    blocks: int
    head: int
    norms: int

    @property
    def total(self) -> int:
        """All parameters; a tied head counts once, in the embedding."""
        return self.embedding + self.blocks + self.head + self.norms


def count_parameters(config: TransformerConfig) -> ParameterCount:
    """Parameters of a model of this configuration, of whichever kind (tested against the built modules)."""
    width, bias, depth, crossings = config.width, int(config.bias), _depth(config), config.num_decoder_layers
    norm = width * (1 + (bias if config.norm == "layernorm" else 0))
    positions = config.context * width if config.positions == "learned" else 0
    query, key_value = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
    attention = width * query * 2 + 2 * width * key_value + bias * (query + 2 * key_value + width)
    matrices = 3 if config.mlp == "swiglu" else 2
    mlp = matrices * width * config.mlp_width + bias * ((matrices - 1) * config.mlp_width + width)
    qk_norm = 2 * config.head_width if config.qk_norm else 0
    square = width * width + bias * width
    final_norms = 0 if config.norm_placement == "post" else 2 if config.kind == "encoder_decoder" else 1
    outer_norms = final_norms + int(config.embedding_norm) + int(config.head_transform)
    return ParameterCount(
        embedding=(config.vocab_size + config.token_types) * width
        + positions
        + config.prefix_tokens * config.num_layers * 2 * key_value,
        blocks=depth * (attention + mlp) + crossings * attention,
        head=(0 if config.tied_embeddings else config.vocab_size * width)
        + (config.vocab_size if config.head_bias else 0)
        + (int(config.head_transform) + int(config.pooler)) * square
        + int(config.next_sentence) * 2 * (width + bias),
        norms=depth * (2 * norm + qk_norm) + crossings * (norm + qk_norm) + outer_norms * norm,
    )


def _depth(config: TransformerConfig) -> int:
    """Blocks in all; the last num_decoder_layers of them have cross-attention."""
    return config.num_layers + config.num_decoder_layers


def training_flops_per_token(config: TransformerConfig, length: int) -> float:
    """FLOPs of forward and backward for one token of a row of `length` tokens (Kaplan et al. 2020, table 1).

    6 FLOPs for each weight of a matrix product (the embedding look-up is none, the head is one), and
    12 * heads * head_width * (number of keys seen, on average) for each attention. Biases are added, not multiplied.
    A pooler is no part of training here.
    """
    counts = count_parameters(replace(config, bias=False))
    matrix_weights = counts.blocks + config.vocab_size * config.width + config.head_transform * config.width**2
    window = min(config.sliding_window or length, length)
    causal_keys = window - window * (window - 1) / (2 * length)
    keys = {
        "decoder": config.num_layers * causal_keys,
        "encoder": config.num_layers * float(length),
        "encoder_decoder": config.num_layers * length + config.num_decoder_layers * (causal_keys + length),
    }[config.kind]
    return 6 * matrix_weights + 12 * config.num_heads * config.head_width * keys


def key_value_bytes(config: TransformerConfig, length: int, bytes_per_value: int = 4) -> int:
    """Bytes of keys and values kept for one sequence of `length` tokens while generating.

    An encoder keeps none; the decoder of an encoder-decoder keeps those of a source of as many tokens too.
    """
    layers = {"decoder": config.num_layers, "encoder": 0, "encoder_decoder": 2 * config.num_decoder_layers}[config.kind]
    return 2 * layers * config.num_kv_heads * config.head_width * length * bytes_per_value


def activation_bytes(config: TransformerConfig, batch_size: int, length: int, bytes_per_value: int = 4) -> int:
    """Estimate of the bytes that the backward pass keeps for a batch, attention scores not stored.

    Per layer and token: two norm inputs and outputs (4 D), queries, keys, values and the attention's result, and the
    MLP's hidden values (3 F for swiglu and 2 F else, one of them the activation's result); after Korthikanti et al.
    2022, section 4, without its dropout masks.
    """
    query, key_value = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
    hidden = (3 if config.mlp == "swiglu" else 2) * config.mlp_width
    attention = 2 * query + 2 * key_value
    per_token = _depth(config) * (4 * config.width + attention + hidden) + 2 * config.width
    per_token += config.num_decoder_layers * (2 * config.width + attention)  # cross-attention, a third branch
    return batch_size * length * per_token * bytes_per_value
