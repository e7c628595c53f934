"""Counts against what is there: parameters of built models, FLOPs that PyTorch itself counts, bytes of real tensors."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from llm_journey.generation.kv_cache import KVCache
from llm_journey.model.config import TransformerConfig
from llm_journey.model.cost import activation_bytes, count_parameters, key_value_bytes, training_flops_per_token
from llm_journey.model.kinds import KINDS as KINDS_BY_NAME
from llm_journey.model.kinds import make_model
from llm_journey.model.loss import next_token_loss

ENCODER = {name: st.booleans() for name in ("pooler", "head_transform", "head_bias")}
KINDS = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"kind": st.just("encoder"), "token_types": st.integers(0, 3), **ENCODER}),
    st.just({"kind": "encoder", "pooler": True, "next_sentence": True}),
    st.fixed_dictionaries(
        {"kind": st.just("encoder_decoder"), "num_decoder_layers": st.integers(0, 3), "head_bias": st.booleans()}
    ),
)
configs = st.builds(
    lambda kind, heads, head_width, odd_width, **choices: TransformerConfig(
        **kind,
        vocab_size=choices.pop("vocab_size"),
        width=2 * odd_width,
        num_heads=heads[0] * heads[1],
        num_kv_heads=heads[0],
        head_width=head_width,
        **choices,
    ),
    kind=KINDS,
    embedding_norm=st.booleans(),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    head_width=st.sampled_from([2, 4, 6]),
    odd_width=st.integers(1, 12),
    vocab_size=st.integers(1, 40),
    num_layers=st.integers(1, 3),
    context=st.integers(1, 20),
    norm=st.sampled_from(["layernorm", "rmsnorm"]),
    norm_placement=st.sampled_from(["pre", "post"]),
    positions=st.sampled_from(["sinusoidal", "learned", "rope", "none"]),
    mlp=st.sampled_from(["gelu", "gelu_tanh", "relu", "relu2", "silu", "swiglu"]),
    mlp_width=st.integers(0, 30),
    bias=st.booleans(),
    qk_norm=st.booleans(),
    tied_embeddings=st.booleans(),
)


@settings(max_examples=80, deadline=None)
@given(config=configs)
def test_parameters_are_those_of_the_built_model(config: TransformerConfig) -> None:
    model, counts = make_model(config), count_parameters(config)
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    parts = {"embedding": 0, "head": 0, "norms": 0, "blocks": 0}
    for name, parameter in model.named_parameters():
        part = "embedding" if "embed" in name else "head" if name.startswith(("head", "pooler", "next")) else "blocks"
        parts["norms" if "norm" in name else part] += parameter.numel()
    assert vars(counts) == parts


def _counted_flops(config: TransformerConfig, length: int) -> int:
    """What PyTorch counts for forward and backward of one row: matrix products and nothing else, as we do.

    The written-out attention, because the counter does not know the CPU's fused kernel.
    """
    model = KINDS_BY_NAME[config.kind](config, attention="written_out")
    ids = torch.randint(config.vocab_size, (1, length))
    inputs = (ids, ids) if config.kind == "encoder_decoder" else (ids,)
    with FlopCounterMode(display=False) as counter:
        next_token_loss(model(*inputs), ids).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"num_kv_heads": 1, "qk_norm": True},
        {"mlp": "relu2", "tied_embeddings": False, "head_width": 10},
        {"positions": "learned", "norm": "layernorm", "bias": True, "mlp": "gelu"},
        {"kind": "encoder", "head_transform": True, "head_bias": True, "token_types": 2, "num_kv_heads": 2},
        {"kind": "encoder_decoder", "num_decoder_layers": 2, "head_bias": True, "mlp": "relu", "head_width": 10},
    ],
)
def test_flops_are_those_that_torch_counts(choices: dict[str, Any]) -> None:
    """All but one difference, and that exactly: torch counts the full square of scores, we the half that is not masked.

    A causal row of T tokens sees (T + 1) / 2 keys on average; the counter's square has T. An encoder's square is whole.
    """
    shape: dict[str, Any] = {"vocab_size": 50, "width": 24, "num_layers": 3, "num_heads": 4, "context": 32}
    config = TransformerConfig(**shape, **choices)
    for length in (1, 7, 32):
        ours = training_flops_per_token(config, length) * length
        causal_layers = {"decoder": 3, "encoder": 0, "encoder_decoder": 2}[config.kind]
        masked = 12 * causal_layers * config.num_heads * config.head_width * (length - (length + 1) / 2) * length
        assert ours + masked == pytest.approx(_counted_flops(config, length), rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 40), window=st.integers(1, 50))
def test_keys_seen_through_a_window(length: int, window: int) -> None:
    """The mean number of keys, counted query by query."""
    shape: dict[str, Any] = {"vocab_size": 50, "width": 8, "num_layers": 1, "num_heads": 2, "context": 40}
    config = TransformerConfig(**shape, sliding_window=window)
    without = training_flops_per_token(TransformerConfig(**shape), 1) - 12 * 8
    seen = sum(min(query + 1, window) for query in range(length)) / length
    assert training_flops_per_token(config, length) == pytest.approx(without + 12 * 8 * seen, rel=1e-12)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_key_value_bytes_are_those_of_the_cache(num_kv_heads: int) -> None:
    config = TransformerConfig(vocab_size=9, width=16, num_layers=3, num_heads=4, num_kv_heads=num_kv_heads, context=10)
    cache = KVCache(config, batch=1, capacity=10, dtype=torch.float32, device=torch.device("cpu"))
    held = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in vars(cache).values()
        for value in (value if isinstance(value, list | tuple) else [value])
        if isinstance(value, torch.Tensor)
    }
    assert key_value_bytes(config, 10) == sum(held.values())


def test_an_encoder_keeps_nothing_and_an_encoder_decoder_its_source_too() -> None:
    shape: dict[str, Any] = {"vocab_size": 9, "width": 16, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2}
    assert key_value_bytes(TransformerConfig(**shape, kind="encoder"), 10) == 0
    config = TransformerConfig(**shape, kind="encoder_decoder", num_decoder_layers=2)
    model, cache = make_model(config), KVCache(config, batch=1, capacity=10)
    memory = [tensor for pair in model.keys_values(torch.randn(1, 10, 16)) for tensor in pair]
    held = sum(tensor.nbytes for tensor in (*memory, cache.keys_lbkce, cache.values_lbkce))
    assert key_value_bytes(config, 10) == held


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"mlp": "relu2"},
        {"mlp": "gelu", "norm": "layernorm", "num_kv_heads": 1},
        {"kind": "encoder", "norm": "layernorm", "norm_placement": "post", "mlp": "gelu"},
        {"kind": "encoder_decoder", "norm": "layernorm", "norm_placement": "post", "mlp": "relu"},
    ],
)
def test_activation_bytes_are_near_what_autograd_keeps(choices: dict[str, Any]) -> None:
    """An estimate: within a factor of two of the distinct tensors that autograd saves, weights left out."""
    shape: dict[str, Any] = {"vocab_size": 40, "width": 64, "num_layers": 4, "num_heads": 4, "context": 32}
    config = TransformerConfig(**shape, **choices)
    model = make_model(config)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.is_floating_point() and tensor.ndim > 2:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ids = torch.randint(40, (4, 32))
        hidden = model.hidden(*([ids, ids] if config.kind == "encoder_decoder" else [ids]))
    assert hidden.requires_grad
    estimate = activation_bytes(config, 4, 32)
    assert sum(saved.values()) / 2 <= estimate <= sum(saved.values()) * 2
