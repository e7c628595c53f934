"""Every choice of the configuration: defaults resolved, what cannot be built refused with the reason."""

import pytest

from llm_journey.core.config import dump, validate
from llm_journey.core.errors import BadInputError
from llm_journey.model.config import TransformerConfig, default_mlp_width


def test_defaults_are_resolved_when_it_is_made() -> None:
    config = TransformerConfig(width=96, num_heads=6)
    assert (config.num_kv_heads, config.head_width, config.mlp_width) == (6, 16, 256)
    assert TransformerConfig(width=96, num_heads=6, mlp="gelu").mlp_width == 384
    assert TransformerConfig(width=96, num_heads=5, head_width=20).head_width == 20
    assert TransformerConfig(num_layers=3).num_decoder_layers == 0
    assert TransformerConfig(kind="encoder_decoder", num_layers=3).num_decoder_layers == 3
    assert TransformerConfig(kind="encoder_decoder", num_layers=3, num_decoder_layers=1).num_decoder_layers == 1


@pytest.mark.parametrize("width", [1, 12, 96, 128, 576, 4096])
def test_swiglu_has_about_as_many_weights_as_two_matrices(width: int) -> None:
    found = default_mlp_width(width, "swiglu")
    assert found % 32 == 0 and 0 <= 3 * found - 8 * width < 3 * 32


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"width": 0}, "width must be at least 1, not 0"),
        ({"context": -1}, "context must be at least 1, not -1"),
        ({"num_layers": 0}, "num_layers must be at least 1, not 0"),
        ({"vocab_size": -5}, "vocab_size must not be negative, not -5"),
        ({"width": 10, "num_heads": 3}, "width 10 must be a multiple of num_heads 3"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads 4 must be a multiple of num_kv_heads 3"),
        ({"num_heads": 4, "num_kv_heads": -1}, "num_heads 4 must be a multiple of num_kv_heads -1"),
        ({"head_width": 7}, "rope needs an even head_width"),
        ({"head_width": -2}, "head_width and mlp_width must be positive"),
        ({"width": 9, "num_heads": 3, "positions": "sinusoidal"}, "sinusoidal positions need an even width"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"norm_epsilon": 0.0}, "norm_epsilon and rope_theta must be positive"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"sliding_window": 0}, "sliding_window must be at least 1 or null, not 0"),
        ({"mlp": "relu3"}, "key 'mlp' = 'relu3'"),
        ({"positions": "alibi"}, "'sinusoidal', 'sinusoidal_halves', 'learned', 'rope' or 'none'"),
        ({"kind": "decoders"}, "'decoder', 'encoder' or 'encoder_decoder'"),
        ({"token_types": 2}, "token_types belongs to kind encoder, not decoder"),
        ({"token_types": -1, "kind": "encoder"}, "token_types must not be negative, not -1"),
        ({"num_decoder_layers": 2, "kind": "encoder"}, "num_decoder_layers belongs to kind encoder_decoder, not encod"),
        ({"head_bias": True}, "head_bias belongs to kind encoder or encoder_decoder, not decoder"),
        ({"pooler": True, "kind": "encoder_decoder"}, "pooler belongs to kind encoder, not encoder_decoder"),
        ({"next_sentence": True, "kind": "encoder"}, "next_sentence needs a pooler"),
        ({"head_transform": True}, "head_transform belongs to kind encoder, not decoder"),
        ({"sliding_window": 4, "kind": "encoder"}, "sliding_window belongs to kind decoder, not encoder"),
        ({"widht": 64}, "unknown key 'widht'; allowed: vocab_size, width"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(values: dict[str, object], reason: str) -> None:
    with pytest.raises(BadInputError, match=reason) as raised:
        validate(TransformerConfig, values, "recipe.yaml")
    assert str(raised.value).startswith("recipe.yaml: ") and "\n" not in str(raised.value)


def test_it_survives_being_written_down() -> None:
    config = TransformerConfig(
        width=48, num_heads=4, num_kv_heads=2, sliding_window=9, positions="learned", mlp="relu2"
    )
    assert validate(TransformerConfig, dump(config), "saved") == config
