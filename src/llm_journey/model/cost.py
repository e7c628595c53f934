"""What a transformer costs: parameters, FLOPs, activation bytes, key-value bytes. Counted from its configuration.

A multiply and an add are two FLOPs. The backward pass costs twice the forward pass. Norms, activations and the softmax
are left out (under 1% at usual widths). Causal attention is counted at half of the full square, since the fused kernel
skips what is masked.
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
    """Parameters of a Decoder of this configuration (tested against the built module)."""
    width, bias = config.width, int(config.bias)
    norm = width * (1 + (bias if config.norm == "layernorm" else 0))
    positions = config.context * width if config.positions == "learned" else 0
    query, key_value = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
    attention = width * query * 2 + 2 * width * key_value + bias * (query + 2 * key_value + width)
    matrices = 3 if config.mlp == "swiglu" else 2
    mlp = matrices * width * config.mlp_width + bias * ((matrices - 1) * config.mlp_width + width)
    qk_norm = 2 * config.head_width if config.qk_norm else 0
    final_norm = norm if config.norm_placement == "pre" else 0
    return ParameterCount(
        embedding=config.vocab_size * width + positions,
        blocks=config.num_layers * (attention + mlp),
        head=0 if config.tied_embeddings else config.vocab_size * width,
        norms=config.num_layers * (2 * norm + qk_norm) + final_norm,
    )


def training_flops_per_token(config: TransformerConfig, length: int) -> float:
    """FLOPs of forward and backward for one token of a row of `length` tokens (Kaplan et al. 2020, table 1).

    6 FLOPs for each weight of a matrix product (the embedding look-up is none, the head is one), and
    12 * layers * heads * head_width * (mean number of keys seen) for attention. Biases are added, not multiplied.
    """
    matrix_weights = count_parameters(replace(config, bias=False)).blocks + config.vocab_size * config.width
    window = min(config.sliding_window or length, length)
    mean_keys = window - window * (window - 1) / (2 * length)
    attention = 12 * config.num_layers * config.num_heads * config.head_width * mean_keys
    return 6 * matrix_weights + attention


def key_value_bytes(config: TransformerConfig, length: int, bytes_per_value: int = 4) -> int:
    """Bytes of keys and values kept for one sequence of `length` tokens while generating."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_width * length * bytes_per_value


def activation_bytes(config: TransformerConfig, batch_size: int, length: int, bytes_per_value: int = 4) -> int:
    """Estimate of the bytes that the backward pass keeps for a batch, attention scores not stored.

    Per layer and token: two norm inputs and outputs (4 D), queries, keys, values and the attention's result, and the
    MLP's hidden values (3 F for swiglu and 2 F else, one of them the activation's result); after Korthikanti et al.
    2022, section 4, without its dropout masks.
    """
    query, key_value = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
    hidden = (3 if config.mlp == "swiglu" else 2) * config.mlp_width
    per_token = config.num_layers * (4 * config.width + 2 * query + 2 * key_value + hidden) + 2 * config.width
    return batch_size * length * per_token * bytes_per_value
