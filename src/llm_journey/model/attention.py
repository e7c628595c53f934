"""Scaled dot-product attention: written out, and as the fused kernel that is proven equal to it.

    softmax(Q K^T / sqrt(E) + mask) V     (Vaswani et al. 2017, eq. 1)

Legend: B batch, T query positions, S key positions, H heads, K key-value heads, E head width, D width.
One contract for masks: a boolean (B or 1, 1, T, S), True where a query may look; None hides nothing but what the kind
of attention hides: where it is causal, equal T and S or one query after all keys; else nothing at all. A query that may
look nowhere (a padding row) yields zeros, not NaN. Dropout of attention probabilities is left out on purpose: the fused
CPU kernel has none, and small models regularise as well on the residual branches.

Cross-attention (Vaswani et al. 2017, section 3.2.3) is the same layer: its queries come from x, its keys and values
from a memory, which is another stack's output (B, S, D), or the keys and values already made of it.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_journey.core.errors import unknown_name
from llm_journey.model.config import TransformerConfig
from llm_journey.model.mlp import joined_linear
from llm_journey.model.norms import RMSNorm
from llm_journey.model.positions import apply_rotary

KeysValues = tuple[Tensor, Tensor]  # each (B, K, S, E)
Memory = Tensor | KeysValues


class Cache(Protocol):
    """Keys and values of earlier positions. `length` counts them; `update` adds new ones and returns all so far."""

    @property
    def length(self) -> int: ...

    def update(self, layer_index: int, k_bkte: Tensor, v_bkte: Tensor) -> tuple[Tensor, Tensor]: ...


def written_out_attention(
    q_bhte: Tensor, k_bkse: Tensor, v_bkse: Tensor, mask: Tensor | None, causal: bool = True
) -> Tensor:
    """The formula, step by step. `causal` says what no mask means. Returns (B, H, T, E)."""
    repeats = q_bhte.shape[1] // k_bkse.shape[1]
    k_bhse, v_bhse = k_bkse.repeat_interleave(repeats, dim=1), v_bkse.repeat_interleave(repeats, dim=1)
    scores_bhts = q_bhte @ k_bhse.transpose(-2, -1) / math.sqrt(q_bhte.shape[-1])
    if mask is None:
        mask = causal_mask(q_bhte.shape[-2], k_bkse.shape[-2], q_bhte.device)
        mask = mask if causal else torch.ones_like(mask)
    scores_bhts = scores_bhts.masked_fill(~mask, float("-inf"))
    weights_bhts = torch.softmax(scores_bhts, dim=-1).masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return weights_bhts @ v_bhse


def fused_attention(q_bhte: Tensor, k_bkse: Tensor, v_bkse: Tensor, mask: Tensor | None, causal: bool = True) -> Tensor:
    """PyTorch's fused kernel, never materialising the scores (Dao et al. 2022). Returns (B, H, T, E).

    On a CPU narrower types are computed in float32: their own backward pass is five times slower there.
    """
    grouped = q_bhte.shape[1] != k_bkse.shape[1]
    causal = causal and mask is None and q_bhte.shape[-2] > 1  # a single query, the newest, sees every key
    if q_bhte.device.type == "cpu" and v_bkse.dtype.itemsize < 4:
        with torch.autocast("cpu", enabled=False):
            return fused_attention(q_bhte.float(), k_bkse.float(), v_bkse.float(), mask, causal).type_as(v_bkse)
    return F.scaled_dot_product_attention(q_bhte, k_bkse, v_bkse, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
ATTENTION: dict[str, Callable[..., Tensor]] = {
    "fused": fused_attention,
    "written_out": written_out_attention,
}


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """(1, 1, T, S): query t, standing at position S - T + t, sees the keys up to its own position."""
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)[None, None]


def attention_mask(
    num_queries: int,
    num_keys: int,
    device: torch.device,
    *,
    causal: bool = True,
    sliding_window: int | None = None,
    segments_bt: Tensor | None = None,
    padding_mask_bs: Tensor | None = None,
) -> Tensor | None:
    """The mask narrowed by a window, by packed documents and by padding; None if nothing narrows it.

    causal: a query sees no later key, narrowed or not. sliding_window w, of causal attention: a query sees itself and
    the w - 1 keys before it. segments_bt: document number of each position; a query sees keys of its own document.
    padding_mask_bs: True at real tokens.
    """
    plain = segments_bt is None and padding_mask_bs is None
    if plain and not causal:
        return None
    if plain and num_queries in (1, num_keys) and (sliding_window is None or sliding_window >= num_keys):
        return None
    mask = causal_mask(num_queries, num_keys, device)
    mask = mask if causal else torch.ones_like(mask)
    if sliding_window is not None:
        mask = mask & ~causal_mask(num_queries, num_keys, device).tril(num_keys - num_queries - sliding_window)
    if segments_bt is not None:
        mask = mask & (segments_bt[:, None, :, None] == segments_bt[:, None, None, :])
    if padding_mask_bs is not None:
        mask = mask & padding_mask_bs[:, None, None, :]
    return mask


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query attention (Ainslie et al. 2023), by the number of key-value heads.

    causal: whether no mask means that a query sees no later key. qk_norm normalises each head's query and key before
    the rotation (Henry et al. 2020; as Qwen3 does), which bounds the scores and allows higher learning rates.
    """

    def __init__(
        self, config: TransformerConfig, layer_index: int, implementation: str = "fused", *, causal: bool = True
    ) -> None:
        super().__init__()
        if implementation not in ATTENTION:
            raise unknown_name("attention implementation", implementation, ATTENTION)
        width, kv_width = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
        self.q = nn.Linear(config.width, width, bias=config.bias)
        self.k = nn.Linear(config.width, kv_width, bias=config.bias)
        self.v = nn.Linear(config.width, kv_width, bias=config.bias)
        self.o = nn.Linear(width, config.width, bias=config.bias)
        self.q_norm = RMSNorm(config.head_width, config.norm_epsilon) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_width, config.norm_epsilon) if config.qk_norm else None
        self.head_width, self.layer_index, self.causal = config.head_width, layer_index, causal
        self.attend: Attend = ATTENTION[implementation]
        if not causal:
            self.attend = partial(ATTENTION[implementation], causal=False)

    def forward(
        self,
        x_btd: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """(B, T, D). With a memory, positions are the memory's own matter: neither rotation nor cache is applied."""
        if memory is not None:
            q_bthe = self._heads(self.q(x_btd))
            q_bhte = (q_bthe if self.q_norm is None else self.q_norm(q_bthe)).transpose(1, 2)
            k_bkse, v_bkse = memory if isinstance(memory, tuple) else self.keys_values(memory)
        else:
            q_bthe, k_bthe, v_bthe = (self._heads(part) for part in joined_linear(x_btd, self.q, self.k, self.v))
            if self.q_norm is not None and self.k_norm is not None:
                q_bthe, k_bthe = self.q_norm(q_bthe), self.k_norm(k_bthe)
            if rotary is not None:
                q_bthe, k_bthe = apply_rotary(q_bthe, *rotary), apply_rotary(k_bthe, *rotary)
            q_bhte, k_bkse, v_bkse = q_bthe.transpose(1, 2), k_bthe.transpose(1, 2), v_bthe.transpose(1, 2)
            if cache is not None:
                k_bkse, v_bkse = cache.update(self.layer_index, k_bkse, v_bkse)
        out_bhte = self.attend(q_bhte, k_bkse, v_bkse, mask)
        result: Tensor = self.o(out_bhte.transpose(1, 2).flatten(2))
        return result

    def keys_values(self, memory_bsd: Tensor) -> KeysValues:
        """Keys and values (B, K, S, E) of a memory: generation makes them once, then hands them in as the memory."""
        k_bske, v_bske = (self._heads(part) for part in joined_linear(memory_bsd, self.k, self.v))
        k_bske = k_bske if self.k_norm is None else self.k_norm(k_bske)
        return k_bske.transpose(1, 2), v_bske.transpose(1, 2)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_width)
