"""Model folders: what is written, what comes back, and what is refused by name."""

import json
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_decoders import GPT2, OWN, QWEN3, equal, small_decoder

from llm_journey.checkpoint import model_folder
from llm_journey.checkpoint.families import family_of
from llm_journey.checkpoint.model_folder import load_model, load_state, save_model
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.tokenizer import Tokenizer, TokenizerConfig
from llm_journey.tokenizer.train import train_tokenizer


def _edit(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat"] * 4, TokenizerConfig(vocab_size=270), processes=1)


@pytest.mark.parametrize("choices", [OWN, OWN | {"tied_embeddings": False, "dropout": 0.1}, {"mlp": "gelu"}])
def test_choices_of_no_family_are_saved_in_our_own_format(choices: dict[str, Any], tmp_path: Path) -> None:
    model = small_decoder(**choices)
    assert family_of(model.config) is None
    save_model(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "llm_journey"
    loaded, _ = load_model(tmp_path / "model")
    assert loaded.config == model.config
    assert equal(dict(loaded.state_dict()), dict(model.state_dict()))


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    save_model(small_decoder(**QWEN3), tmp_path / "tied")
    save_model(small_decoder(**QWEN3, tied_embeddings=False), tmp_path / "untied")
    tied, untied = (set(load_file(tmp_path / name / "model.safetensors")) for name in ("tied", "untied"))
    assert untied - tied == {"lm_head.weight"}


def test_the_tokenizer_and_the_ids_come_along(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = small_decoder(**QWEN3, vocab_size=tokenizer.vocab_size)
    save_model(model, tmp_path / "model", tokenizer=tokenizer, generation={"temperature": 0.7}, card="# A model\n")
    _, loaded = load_model(tmp_path / "model")
    assert loaded is not None and loaded.encode("the mat sat") == tokenizer.encode("the mat sat")
    end = tokenizer.end_id
    for name in ("config.json", "generation_config.json"):
        values = json.loads((tmp_path / "model" / name).read_text())
        assert [values[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")] == [end, end, end]
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["temperature"] == 0.7
    assert (tmp_path / "model" / "README.md").read_text() == "# A model\n"


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(BadInputError, match="the tokenizer has 270 ids, the model embeds only 29"):
        save_model(small_decoder(**QWEN3), tmp_path / "model", tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_stored_as_it_is_and_read_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = small_decoder(**GPT2).to(dtype)
    save_model(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    _, state = load_state(tmp_path / "model")
    assert equal(state, dict(model.state_dict()))
    assert load_model(tmp_path / "model")[0].embed.weight.dtype == torch.float32


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    save_model(small_decoder(**QWEN3), tmp_path / "model")
    before = torch.get_rng_state()
    load_model(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before)
    fresh = small_decoder(**QWEN3).embed.weight.detach().clone().normal_()
    assert float(fresh.std()) > 0.5  # drawing works again afterwards


def test_saving_replaces_a_model_but_never_other_files(tmp_path: Path) -> None:
    save_model(small_decoder(0, **QWEN3), tmp_path / "model")
    save_model(small_decoder(1, **GPT2), tmp_path / "model")
    assert load_model(tmp_path / "model")[0].config.positions == "learned"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.md").write_text("years of work")
    with pytest.raises(BadInputError, match="holds files that are no model"):
        save_model(small_decoder(**QWEN3), tmp_path / "thesis")
    with pytest.raises(BadInputError, match="a file is in the way"):
        save_model(small_decoder(**QWEN3), tmp_path / "thesis" / "chapter.md")
    assert (tmp_path / "thesis" / "chapter.md").read_text() == "years of work"


def test_a_model_with_foreign_layers_is_not_saved_as_whole(tmp_path: Path) -> None:
    model = small_decoder(**QWEN3)
    model.blocks[0].add_module("adapter", torch.nn.Linear(2, 2))
    with pytest.raises(BadInputError, match=r"no place for: blocks\.0\.adapter\.bias, blocks\.0\.adapter\.weight"):
        save_model(model, tmp_path / "model")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llm_journey.checkpoint.tensor_files.save_file", full)
    with pytest.raises(JourneyError, match=r"model: could not be written \(No space left on device\)") as caught:
        save_model(small_decoder(**QWEN3), tmp_path / "model")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "weights.ckpt"])
def test_a_pickle_in_place_of_safetensors_is_refused_by_name(name: str, tmp_path: Path) -> None:
    save_model(small_decoder(**QWEN3), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / name)
    with pytest.raises(BadInputError, match=f"{name}: a pickle, which runs code"):
        load_model(tmp_path / "model")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="nowhere: no such model folder"):
        load_model(tmp_path / "nowhere")
    save_model(small_decoder(**QWEN3), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(BadInputError, match=r"model\.safetensors: no such file"):
        load_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(BadInputError, match="split into several files"):
        load_model(tmp_path / "model")
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(BadInputError, match=r"config\.json: no such file"):
        load_model(tmp_path / "model")


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _long_header(data: bytes) -> bytes:
    return struct.pack("<Q", 1 << 62) + data[8:]


def _offsets_past_the_end(data: bytes) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 64


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": _cut,
    "empty": lambda _: b"",
    "seven bytes": lambda data: data[:7],
    "header longer than the file": _long_header,
    "offsets past the end": _offsets_past_the_end,
    "header not JSON": lambda data: data[:8] + b"\xff" * (len(data) - 8),
    "a pickle under the right name": lambda _: b"\x80\x04" + b"." * 100,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_safetensors_file_is_named(damage: str, tmp_path: Path) -> None:
    save_model(small_decoder(**QWEN3), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(BadInputError, match=r"model\.safetensors: not a whole safetensors file") as caught:
        load_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


LIES = [
    ({"num_hidden_layers": 3, "layer_types": None}, "tensors are missing: model.layers.2"),
    ({"num_hidden_layers": 1, "layer_types": None}, "no place for: model.layers.1"),
    ({"num_hidden_layers": 1 << 30, "layer_types": None}, "claims 1073741824 layers, the file holds 24 tensors"),
    ({"hidden_size": 16}, r"has shape \[29, 8\], its config asks for \[29, 16\]"),
    ({"vocab_size": 1 << 30}, r"has shape \[29, 8\], its config asks for \[1073741824, 8\]"),
    ({"intermediate_size": 1 << 30}, r"has shape .* its config asks for"),
    ({"head_dim": 1 << 20}, r"has shape .* its config asks for"),
    ({"max_position_embeddings": 1 << 40}, "key 'max_position_embeddings' = '1099511627776': must be a whole number"),
    ({"tie_word_embeddings": False}, "tensors are missing: lm_head.weight"),
]


@pytest.mark.parametrize(("change", "message"), LIES)
def test_a_lying_config_is_refused_before_anything_is_allocated(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_model(small_decoder(**QWEN3), tmp_path / "model")
    _edit(tmp_path / "model", **change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadInputError, match=message):
        load_model(tmp_path / "model")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # in KiB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wdith": 3}, "unknown key 'wdith'"),
        ({"mlp": "swish"}, "key 'mlp' = 'swish'"),
        ({"num_layers": 1 << 40}, "claims 1099511627776 layers"),
        ({"context": 1 << 30}, "key 'context' = 1073741824: must be at most 1048576"),
        ({"width": "wide"}, "key 'width' = 'wide'"),
    ],
)
def test_our_own_config_is_checked_too(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_model(small_decoder(**OWN), tmp_path / "model")
    _edit(tmp_path / "model", **change)
    with pytest.raises(BadInputError, match=message):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": NaN}', "[" * 100_000, '{"model_type": "mamba"}', "{}", "\xff"])
def test_a_config_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    save_model(small_decoder(**QWEN3), tmp_path / "model")
    (tmp_path / "model" / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInputError, match=r"config\.json: ") as caught:
        load_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_a_stored_head_must_be_the_embedding_it_is_tied_to(tmp_path: Path) -> None:
    save_model(small_decoder(**QWEN3), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path)
    assert load_model(tmp_path / "model")[0].head is None
    tensors["lm_head.weight"][3, 2] += 1
    save_file(tensors, path)
    with pytest.raises(BadInputError, match=r"tie_word_embeddings is true, yet lm_head\.weight differs"):
        load_model(tmp_path / "model")


def test_files_of_openai_are_read(tmp_path: Path) -> None:
    """Names without the prefix, the causal mask stored as a buffer, n_inner left out."""
    model = small_decoder(**GPT2 | {"mlp_width": 32})
    save_model(model, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    tensors |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 16, 16).tril() for layer in range(2)}
    save_file(tensors, path)
    _edit(tmp_path / "model", n_inner=None)
    assert equal(load_state(tmp_path / "model")[1], dict(model.state_dict()))


def test_the_config_of_a_family_is_exact(tmp_path: Path) -> None:
    """family_of takes a family only for choices that it computes: each of these, changed alone, leaves it."""
    assert family_of(small_decoder(**QWEN3).config) == "qwen3"
    assert family_of(small_decoder().config) == "llama"
    assert family_of(small_decoder(**GPT2).config) == "gpt2"
    for change in ({"norm": "layernorm"}, {"norm_placement": "post"}, {"positions": "none"}, {"mlp": "gelu"}):
        assert family_of(small_decoder(**QWEN3 | change).config) is None
        assert family_of(small_decoder(**change).config) is None
    assert family_of(small_decoder(**QWEN3 | {"bias": True}).config) is None
    assert family_of(small_decoder(sliding_window=4).config) is None
    for change in ({"bias": False}, {"mlp": "gelu"}, {"num_kv_heads": 1}, {"head_width": 6}, {"qk_norm": True}):
        assert family_of(small_decoder(**GPT2 | change).config) is None


def test_the_layout_is_hugging_faces(tmp_path: Path) -> None:
    save_model(small_decoder(**QWEN3), tmp_path / "model")
    names = {model_folder.CONFIG, model_folder.WEIGHTS, model_folder.GENERATION}
    assert {path.name for path in (tmp_path / "model").iterdir()} == names
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o777 == 0o644
