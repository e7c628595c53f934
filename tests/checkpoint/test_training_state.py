"""Checkpoints: what goes in comes out bit for bit, the last few stay, damage is refused by name."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_decoders import GPT2, OWN, QWEN3, equal, small_decoder
from torch import Tensor

from llm_journey.checkpoint.model_folder import load_model, write_model_files
from llm_journey.checkpoint.training_state import latest_checkpoint, load_checkpoint, save_checkpoint
from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer import TokenizerConfig
from llm_journey.tokenizer.train import train_tokenizer


def _optimizer(step: int) -> dict[str, Tensor]:
    """Every kind of tensor that a training loop may hand over."""
    base = torch.arange(12, dtype=torch.float32) + step
    return {
        "adam.embed.weight.mean": base.view(3, 4),
        "adam.embed.weight.transposed": base.view(3, 4).T,
        "muon.momentum": base.to(torch.bfloat16),
        "shared.with.the.first": base,
        "step": torch.tensor(step),
        "empty": torch.zeros(0, 5),
        "flags": base > 3,
        "rng.torch": torch.random.get_rng_state(),
        "double": base.double() / 3,
    }


STATE = {
    "rng": {"python": [3, [1, 2, 3], None], "numpy": 2**127 + 11},
    "data": {"epoch": 2, "batch": 10**18, "fingerprint": "ab" * 32},
    "scaler": {"scale": 65536.0, "growth": 0.1 + 0.2},
    "words": "naïve ☃",
    "nothing": None,
}


def _save(directory: Path, step: int, *, keep: int = 3, **changes: Any) -> Path:
    model, tokenizer = changes.pop("model", None) or small_decoder(step, **QWEN3), changes.pop("tokenizer", None)
    arguments: dict[str, Any] = {
        "step": step,
        "write_model": lambda folder: write_model_files(model, folder, tokenizer=tokenizer),
        "optimizer_state": _optimizer(step),
        "state": STATE | {"step": step},
        "keep": keep,
    }
    return save_checkpoint(directory, **(arguments | changes))


def _never(message: str) -> None:
    pytest.fail(f"warned: {message}")


@pytest.mark.parametrize("choices", [QWEN3, GPT2, OWN])
def test_everything_comes_back_bit_for_bit(choices: dict[str, Any], tmp_path: Path) -> None:
    model = small_decoder(5, **choices)
    path = _save(tmp_path, 100, model=model)
    assert path == tmp_path / "step-00000100"
    found = latest_checkpoint(tmp_path, on_warning=_never)
    assert found is not None
    assert (found.path, found.step, found.config, found.state) == (path, 100, model.config, STATE | {"step": 100})
    assert equal(found.model, dict(model.state_dict()))
    assert equal(found.optimizer, _optimizer(100))


def test_a_checkpoint_is_a_model_folder_too(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a cat, a hat"] * 3, TokenizerConfig(vocab_size=262), processes=1)
    model = small_decoder(1, **QWEN3, vocab_size=262)
    loaded, read = load_model(_save(tmp_path, 1, model=model, tokenizer=tokenizer))
    assert equal(dict(loaded.state_dict()), dict(model.state_dict()))
    assert read is not None and read.encode("a hat") == tokenizer.encode("a hat")


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "step-1").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    assert latest_checkpoint(tmp_path) is None
    with pytest.raises(BadInputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "step-00000001")


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    for step in (0, 5, 100, 20_000, 123_456_789):
        _save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00020000", "step-123456789"]
    found = latest_checkpoint(tmp_path, on_warning=_never)
    assert found is not None and found.step == 123_456_789


def test_senseless_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep at least 1"):
        _save(tmp_path, 1, keep=0)
    with pytest.raises(ValueError, match="step must be at least 0"):
        _save(tmp_path, -1)
    with pytest.raises(ValueError, match="Out of range float values"):
        _save(tmp_path, 1, state={"best": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_the_same_step_is_replaced(tmp_path: Path) -> None:
    _save(tmp_path, 7)
    model = small_decoder(99, **QWEN3)
    _save(tmp_path, 7, model=model)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]
    found = latest_checkpoint(tmp_path, on_warning=_never)
    assert found is not None and equal(found.model, dict(model.state_dict()))


def test_later_steps_of_a_continuation_that_was_given_up_are_set_aside(tmp_path: Path) -> None:
    """Going on from step 10 although 20 exists: 15 must be the latest from then on, and keep=1 must not drop it."""
    for step in (10, 20):
        _save(tmp_path, step)
    warnings: list[str] = []
    _save(tmp_path, 15, keep=1, on_warning=warnings.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["abandoned-step-00000020", "step-00000015"]
    assert len(warnings) == 1 and "set aside as abandoned-step-00000020" in warnings[0]
    found = latest_checkpoint(tmp_path, on_warning=_never)
    assert found is not None and found.step == 15


def test_incident_5_a_truncated_save_is_never_the_latest(tmp_path: Path) -> None:
    """speculators#739: the newest checkpoint was cut off half-way; the one before loads, by itself, with a warning."""
    for step in (1, 2):
        _save(tmp_path, step)
    whole = (tmp_path / "step-00000002" / "model.safetensors").read_bytes()
    for length in (0, 8, len(whole) // 2, len(whole) - 1):
        (tmp_path / "step-00000002" / "model.safetensors").write_bytes(whole[:length])
        warnings: list[str] = []
        found = latest_checkpoint(tmp_path, on_warning=warnings.append)
        assert found is not None and found.step == 1
        assert equal(found.model, dict(small_decoder(1, **QWEN3).state_dict()))
        assert len(warnings) == 1 and "step-00000002/model.safetensors: damaged" in warnings[0]


def test_incident_5_a_save_that_died_is_mentioned_and_swept(tmp_path: Path) -> None:
    """What kill -9 leaves is a hidden directory: never a candidate, named in a warning, gone after the next save."""
    _save(tmp_path, 1)
    half = tmp_path / ".step-00000002.abc123.tmp"
    shutil.copytree(tmp_path / "step-00000001", half)
    (half / "manifest.json").unlink()
    warnings: list[str] = []
    found = latest_checkpoint(tmp_path, on_warning=warnings.append)
    assert found is not None and found.step == 1
    assert len(warnings) == 1 and "the save of step 2 was cut off; going back to step 1" in warnings[0]
    _save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def test_a_step_that_died_between_two_renames_is_found_under_its_retired_name(tmp_path: Path) -> None:
    _save(tmp_path, 4)
    retired = tmp_path / ".step-00000004.xyz.old"
    retired.mkdir()
    (tmp_path / "step-00000004").rename(retired / "old")
    found = latest_checkpoint(tmp_path, on_warning=_never)
    assert found is not None and found.step == 4
    _save(tmp_path, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def _flips(path: Path, generator: random.Random) -> Iterator[tuple[int, bytes]]:
    data = path.read_bytes()
    for position in {0, len(data) - 1, *(generator.randrange(len(data)) for _ in range(8))}:
        yield position, data[:position] + bytes([data[position] ^ 1 << generator.randrange(8)]) + data[position + 1 :]


def test_one_flipped_bit_in_any_file_is_refused_by_name_and_the_one_before_is_taken(tmp_path: Path) -> None:
    for step in (1, 2):
        _save(tmp_path, step)
    generator = random.Random(0)
    names = sorted(path.name for path in (tmp_path / "step-00000002").iterdir())
    assert names == [
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "training_state.json",
        "training_state.safetensors",
    ]
    for name in names:
        path = tmp_path / "step-00000002" / name
        whole = path.read_bytes()
        for position, flipped in _flips(path, generator):
            path.write_bytes(flipped)
            warnings: list[str] = []
            found = latest_checkpoint(tmp_path, on_warning=warnings.append)
            assert found is not None and found.step == 1, (name, position)
            # A flip in the manifest may name another file than the manifest, but always the checkpoint.
            expected = "step-00000002" if name == "manifest.json" else f"step-00000002/{name}: damaged"
            assert len(warnings) == 1 and expected in warnings[0] and "\n" not in warnings[0], warnings
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "training_state.json", "training_state.safetensors"])
def test_a_missing_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    _save(tmp_path, 1)
    (_save(tmp_path, 2) / name).unlink()
    warnings: list[str] = []
    found = latest_checkpoint(tmp_path, on_warning=warnings.append)
    assert found is not None and found.step == 1
    assert name in warnings[0]


def test_nothing_whole_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    for step in (1, 2):
        (_save(tmp_path, step) / "config.json").write_text("{}")
    warnings: list[str] = []
    with pytest.raises(
        BadInputError,
        match=r"none of 2 checkpoints is whole; start .* the newest: .*step-00000002/config\.json",
    ):
        latest_checkpoint(tmp_path, on_warning=warnings.append)
    assert len(warnings) == 2


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        '{"format": 2, "step": 1, "files": {}}',
        '{"format": 1, "step": 1, "files": {}}',
        '{"format": 1, "step": 9, "files": {"training_state.json": {}, "training_state.safetensors": {}}}',
        '{"format": 1, "step": 1, "files": {"training_state.json": {}, "training_state.safetensors": 3}}',
        '{"format": 1, "step": 1, "files": {"../x": {}, "training_state.json": {}, "training_state.safetensors": {}}}',
        '{"format": 1, "step": "1", "files": []}',
    ],
)
def test_a_hostile_manifest_is_refused(manifest: str, tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    (path / "manifest.json").write_text(manifest)
    with pytest.raises(BadInputError) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_the_default_warning_goes_to_standard_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _save(tmp_path, 1)
    (_save(tmp_path, 2) / "config.json").write_text("{}")
    from llm_journey.core import console

    console.messages.cache_clear()
    try:
        assert latest_checkpoint(tmp_path) is not None
    finally:
        console.messages.cache_clear()
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.startswith("warning: ") and "config.json: damaged" in captured.err
