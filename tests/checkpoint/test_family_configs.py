"""config.json from outside: each unsupported or senseless value is refused by its key, the others are understood."""

from typing import Any

import pytest

from llm_journey.checkpoint.families import FAMILIES, from_huggingface, read_config, to_huggingface
from llm_journey.core.errors import BadInputError
from llm_journey.model.config import TransformerConfig

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 29,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 4}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 29,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 16,
}

BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 29,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}
MARIAN: dict[str, Any] = {
    "model_type": "marian",
    "vocab_size": 29,
    "d_model": 8,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "max_position_embeddings": 16,
}


def _config(values: dict[str, Any]) -> TransformerConfig:
    return read_config(values)[1]


def test_defaults_are_transformers_own() -> None:
    llama, qwen3, gpt2 = _config(LLAMA), _config(LLAMA | {"model_type": "qwen3"}), _config(GPT2)
    assert (llama.head_width, llama.num_kv_heads, llama.norm_epsilon, llama.rope_theta) == (4, 2, 1e-6, 10_000)
    assert not llama.tied_embeddings and not llama.bias
    assert qwen3.head_width == 128 and qwen3.qk_norm
    bert, marian = _config(BERT), _config(MARIAN)
    assert (bert.kind, bert.token_types, bert.norm_epsilon, bert.dropout, bert.mlp) == (
        "encoder",
        2,
        1e-12,
        0.1,
        "gelu",
    )
    assert not bert.head_transform and not bert.head_bias and not bert.pooler
    assert (marian.kind, marian.num_decoder_layers, marian.embedding_scale) == ("encoder_decoder", 1, False)
    assert (marian.norm_epsilon, marian.dropout, marian.mlp) == (1e-5, 0.1, "gelu")
    assert gpt2.tied_embeddings and gpt2.bias and (gpt2.mlp_width, gpt2.norm_epsilon, gpt2.dropout) == (32, 1e-5, 0.1)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 5e5},
        {"rope_scaling": None, "rope_theta": 5e5},
    ],
)
def test_the_rotation_base_is_found_where_old_and_new_files_keep_it(change: dict[str, Any]) -> None:
    assert _config(LLAMA | change).rope_theta == 5e5


@pytest.mark.parametrize(
    ("change", "window"),
    [
        ({"sliding_window": 8}, None),
        ({"use_sliding_window": True, "sliding_window": 8}, None),  # max_window_layers 28 is beyond the last layer
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, 8),
        ({"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"] * 2}, 8),
        ({"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention"] * 2}, None),
        ({"layer_types": ["full_attention"] * 2}, None),
    ],
)
def test_which_layers_of_qwen3_have_a_window(change: dict[str, Any], window: int | None) -> None:
    from transformers import AutoConfig

    assert _config(QWEN3 | change).sliding_window == window
    theirs = AutoConfig.for_model(**QWEN3 | change)
    expected = "full_attention" if window is None else "sliding_attention"
    assert set(theirs.layer_types) == {expected}


REFUSED = [
    (LLAMA | {"model_type": "mamba"}, "key 'model_type' = 'mamba': must be one of qwen3, llama, gpt2"),
    (LLAMA | {"model_type": ["llama"]}, "key 'model_type'"),
    (LLAMA | {"vocab_size": 0}, "key 'vocab_size' = '0': must be a whole number from 1"),
    (LLAMA | {"vocab_size": -3}, "key 'vocab_size'"),
    (LLAMA | {"vocab_size": "29"}, "key 'vocab_size'"),
    (LLAMA | {"vocab_size": True}, "key 'vocab_size'"),
    (LLAMA | {"vocab_size": 29.0}, "key 'vocab_size'"),
    (LLAMA | {"vocab_size": None}, "key 'vocab_size' is missing"),
    (LLAMA | {"hidden_size": 1 << 40}, "key 'hidden_size'"),
    (LLAMA | {"hidden_act": "gelu"}, "key 'hidden_act' = 'gelu': must be 'silu' or 'swish'"),
    (LLAMA | {"num_key_value_heads": 3}, "num_heads 2 must be a multiple of num_kv_heads 3"),
    (LLAMA | {"rms_norm_eps": "small"}, "key 'rms_norm_eps'"),
    (LLAMA | {"rms_norm_eps": 0}, "key 'rms_norm_eps'"),
    (LLAMA | {"attention_bias": True}, "key 'mlp_bias'"),
    (LLAMA | {"attention_bias": 1}, "key 'attention_bias'"),
    (LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "key 'rope_scaling'.*scaled rotations"),
    (LLAMA | {"rope_scaling": {"type": "linear", "factor": 2}}, "key 'rope_scaling'"),
    (LLAMA | {"rope_parameters": 7}, "key 'rope_parameters' = '7': must be an object"),
    (LLAMA | {"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e4}, "key 'rope_theta'.*rope_parameters says"),
    (LLAMA | {"rope_parameters": {"rope_theta": -1}}, "rope_parameters: key 'rope_theta'"),
    (LLAMA | {"partial_rotary_factor": 0.5}, "key 'partial_rotary_factor'"),
    (LLAMA | {"head_dim": 5}, "rope needs an even head_width"),
    (QWEN3 | {"attention_bias": True}, "key 'attention_bias'"),
    (QWEN3 | {"use_sliding_window": True, "max_window_layers": 1}, "key 'max_window_layers'.*mixed layers"),
    (QWEN3 | {"layer_types": ["full_attention"]}, "key 'layer_types'.*list of 2 names"),
    (QWEN3 | {"layer_types": ["full_attention", "chunked_attention"]}, "key 'layer_types'"),
    (QWEN3 | {"layer_types": ["sliding_attention"] * 2}, "key 'layer_types'"),
    (GPT2 | {"activation_function": "relu"}, "key 'activation_function'"),
    (GPT2 | {"n_head": 3}, "key 'n_head' = '3': must be a divisor of n_embd = 8"),
    (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "key 'scale_attn_by_inverse_layer_idx'"),
    (GPT2 | {"add_cross_attention": True}, "key 'add_cross_attention'"),
    (GPT2 | {"resid_pdrop": 1.5}, "key 'resid_pdrop'"),
    (BERT | {"hidden_act": "mish"}, "key 'hidden_act' = 'mish': must be 'gelu' or"),
    (BERT | {"hidden_act": ["gelu"]}, "key 'hidden_act'"),
    (BERT | {"position_embedding_type": "relative_key"}, "key 'position_embedding_type'"),
    (BERT | {"is_decoder": True}, "key 'is_decoder'"),
    (BERT | {"add_cross_attention": True}, "key 'add_cross_attention'"),
    (BERT | {"tie_word_embeddings": False}, "key 'tie_word_embeddings'"),
    (BERT | {"num_attention_heads": 3}, "key 'num_attention_heads' = '3': must be a divisor of hidden_size = 8"),
    (BERT | {"type_vocab_size": 0}, "key 'type_vocab_size' = '0'"),
    (BERT | {"layer_norm_eps": -1}, "key 'layer_norm_eps'"),
    (MARIAN | {"activation_function": "tanh"}, "key 'activation_function' = 'tanh'"),
    (MARIAN | {"activation_function": {"gelu": 1}}, "key 'activation_function'"),
    (MARIAN | {"decoder_vocab_size": 30}, "key 'decoder_vocab_size' = '30': must be 29"),
    (MARIAN | {"decoder_attention_heads": 4}, "key 'decoder_attention_heads' = '4': must be 2"),
    (MARIAN | {"decoder_ffn_dim": 13}, "key 'decoder_ffn_dim'"),
    (MARIAN | {"share_encoder_decoder_embeddings": False}, "key 'share_encoder_decoder_embeddings'"),
    (MARIAN | {"tie_word_embeddings": False}, "key 'tie_word_embeddings'"),
    (MARIAN | {"normalize_before": True}, "key 'normalize_before'"),
    (MARIAN | {"normalize_embedding": True}, "key 'normalize_embedding'"),
    (MARIAN | {"encoder_attention_heads": 3, "decoder_attention_heads": 3}, "a divisor of d_model = 8"),
    (MARIAN | {"decoder_layers": 0}, "key 'decoder_layers' = '0'"),
    (MARIAN | {"scale_embedding": 1}, "key 'scale_embedding' = '1': must be true or false"),
    (MARIAN | {"d_model": 9, "encoder_attention_heads": 3, "decoder_attention_heads": 3}, "need an even width"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_what_we_would_compute_otherwise_is_refused_by_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        read_config(values, "some/config.json")
    assert str(caught.value).startswith("some/config.json: ") and "\n" not in str(caught.value)


def test_tensors_that_do_not_fit_are_named() -> None:
    with pytest.raises(BadInputError, match="claims 2 layers, the file holds 0 tensors"):
        from_huggingface(LLAMA, {})
    with pytest.raises(BadInputError, match="fit none of Hugging Face's families qwen3, llama, gpt2"):
        to_huggingface(TransformerConfig(vocab_size=4, width=4, num_layers=1, num_heads=1, positions="none"), {})


@pytest.mark.parametrize("name", FAMILIES)
def test_written_configs_are_read_back_and_taken_by_transformers(name: str) -> None:
    from transformers import AutoConfig

    config = _config({"qwen3": QWEN3, "llama": LLAMA, "gpt2": GPT2, "bert": BERT, "marian": MARIAN}[name])
    values = FAMILIES[name].write_config(config)
    assert _config(values) == config
    theirs = AutoConfig.for_model(**values)
    assert (theirs.vocab_size, theirs.num_hidden_layers) == (config.vocab_size, config.num_layers)
