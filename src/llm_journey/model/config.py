"""The one configuration of a transformer. Every choice is a field; every default is resolved when it is made."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from llm_journey.core.config import STRICT

NormName = Literal["layernorm", "rmsnorm"]
PlacementName = Literal["pre", "post"]
PositionsName = Literal["sinusoidal", "sinusoidal_halves", "learned", "rope", "none"]
MlpName = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu", "swiglu"]
KindName = Literal["decoder", "encoder", "encoder_decoder"]

# Choices that only some kinds have. A decoder's head is its bare matrix: the chunked loss and generation rely on it.
_ONLY_IN: dict[str, tuple[KindName, ...]] = {
    "sliding_window": ("decoder",),
    "prefix_tokens": ("decoder",),
    "token_types": ("encoder",),
    "pooler": ("encoder",),
    "next_sentence": ("encoder",),
    "head_transform": ("encoder",),
    "head_bias": ("encoder", "encoder_decoder"),
    "num_decoder_layers": ("encoder_decoder",),
}


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape and choices of a transformer: decoder-only (causal), encoder-only (bidirectional), or both of them joined.

    vocab_size V (0 in a recipe: the tokenizer's), width D, num_layers L, num_heads H, num_kv_heads K (K = H is
    multi-head, 1 < K < H grouped-query, K = 1 multi-query attention), head_width (default D / H), mlp_width F (default
    4 D, or 8/3 D rounded up to a multiple of 32 for swiglu, which has three matrices instead of two), context: the
    most positions it accepts.

    What only some kinds have. prefix_tokens: so many of the last ids stand for learned keys and values (model.prefix;
    prefix tuning sets it). token_types: kinds of segment that a token can belong to (BERT's sentence A and B; 0:
    none). num_decoder_layers: of an encoder-decoder, whose encoder has num_layers (default as many). embedding_norm: a
    norm on the embeddings' sum. embedding_scale: token embeddings times sqrt(D) (Vaswani et al. 2017, section 3.4).
    pooler: tanh of a linear map of the first position; next_sentence: two logits of that. head_transform: linear,
    activation and norm before the head. head_bias: one number added to each logit.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    vocab_size: int = 0
    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 0
    head_width: int = 0
    mlp_width: int = 0
    context: int = 256
    norm: NormName = "rmsnorm"
    norm_placement: PlacementName = "pre"
    norm_epsilon: float = 1e-6
    positions: PositionsName = "rope"
    rope_theta: float = 10_000.0
    mlp: MlpName = "swiglu"
    bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    tied_embeddings: bool = True
    dropout: float = 0.0
    kind: KindName = "decoder"
    prefix_tokens: int = 0
    token_types: int = 0
    num_decoder_layers: int = 0
    embedding_norm: bool = False
    embedding_scale: bool = False
    pooler: bool = False
    next_sentence: bool = False
    head_transform: bool = False
    head_bias: bool = False

    def __post_init__(self) -> None:
        _require(self.vocab_size >= 0, f"vocab_size must not be negative, not {self.vocab_size}")
        for name in ("width", "num_layers", "num_heads", "context"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        if self.num_kv_heads == 0:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.head_width == 0:
            divides = self.width % self.num_heads == 0
            _require(divides, f"width {self.width} must be a multiple of num_heads {self.num_heads}")
            object.__setattr__(self, "head_width", self.width // self.num_heads)
        if self.mlp_width == 0:
            object.__setattr__(self, "mlp_width", default_mlp_width(self.width, self.mlp))
        _require(self.head_width > 0 and self.mlp_width > 0, "head_width and mlp_width must be positive")
        _require(
            self.num_kv_heads > 0 and self.num_heads % self.num_kv_heads == 0,
            f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}",
        )
        _require(self.positions != "rope" or self.head_width % 2 == 0, "rope needs an even head_width")
        sinusoidal = self.positions in ("sinusoidal", "sinusoidal_halves")
        _require(not sinusoidal or self.width % 2 == 0, "sinusoidal positions need an even width")
        _require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), not {self.dropout}")
        _require(self.norm_epsilon > 0 and self.rope_theta > 0, "norm_epsilon and rope_theta must be positive")
        window = self.sliding_window
        _require(window is None or window >= 1, f"sliding_window must be at least 1 or null, not {window}")
        self._check_kind()

    def _check_kind(self) -> None:
        for name in ("prefix_tokens", "token_types", "num_decoder_layers"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        for name, kinds in _ONLY_IN.items():
            chosen = getattr(self, name) not in (0, False, None)
            _require(not chosen or self.kind in kinds, f"{name} belongs to kind {' or '.join(kinds)}, not {self.kind}")
        _require(self.pooler or not self.next_sentence, "next_sentence needs a pooler (pooler = true)")
        if self.kind == "encoder_decoder" and self.num_decoder_layers == 0:
            object.__setattr__(self, "num_decoder_layers", self.num_layers)


def default_mlp_width(width: int, mlp: MlpName) -> int:
    """4 D for two matrices; for swiglu's three, 8/3 D rounded up to a multiple of 32 (Shazeer 2020, section 3)."""
    return -(-width * 8 // 3 // 32) * 32 if mlp == "swiglu" else 4 * width


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
