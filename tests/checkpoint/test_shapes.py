"""The arithmetic of parameter shapes against the models themselves, of all three kinds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.checkpoint.shapes import check_shapes, parameter_shapes
from llm_journey.core.errors import BadInputError
from llm_journey.model.config import TransformerConfig
from llm_journey.model.kinds import make_model

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
    lambda kind, **choices: TransformerConfig(**choices, **kind),
    kind=KINDS,
    embedding_norm=st.booleans(),
    vocab_size=st.integers(1, 9),
    width=st.sampled_from([4, 12]),
    num_layers=st.integers(1, 3),
    num_heads=st.sampled_from([2, 4]),
    num_kv_heads=st.sampled_from([0, 1, 2]),
    head_width=st.sampled_from([2, 6]),
    mlp_width=st.integers(1, 9),
    context=st.integers(1, 8),
    norm=st.sampled_from(["layernorm", "rmsnorm"]),
    norm_placement=st.sampled_from(["pre", "post"]),
    positions=st.sampled_from(["sinusoidal", "sinusoidal_halves", "learned", "rope", "none"]),
    mlp=st.sampled_from(["gelu", "gelu_tanh", "relu", "relu2", "silu", "swiglu"]),
    bias=st.booleans(),
    qk_norm=st.booleans(),
    tied_embeddings=st.booleans(),
)


@settings(deadline=None)
@given(configs)
def test_every_shape_is_the_models(config: TransformerConfig) -> None:
    with torch.device("meta"):
        state = make_model(config).state_dict()
    assert parameter_shapes(config) == {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_names_what_is_missing_left_over_or_misshapen() -> None:
    expected = {"a": (2, 3), "b": (4,)}
    check_shapes(expected, dict(expected), "x")
    with pytest.raises(BadInputError, match="missing: b"):
        check_shapes(expected, {"a": (2, 3)}, "x")
    with pytest.raises(BadInputError, match="no place for: c"):
        check_shapes(expected, {"a": (2, 3), "b": (4,), "c": ()}, "x")
    with pytest.raises(BadInputError, match=r"tensor b has shape \[5\], its config asks for \[4\]"):
        check_shapes(expected, {"a": (2, 3), "b": (5,)}, "x")


def test_a_long_list_is_shortened() -> None:
    with pytest.raises(BadInputError, match="t07 and 4 more"):
        check_shapes({}, {f"t{number:02}": () for number in range(12)}, "x")
