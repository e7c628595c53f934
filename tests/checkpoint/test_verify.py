"""The comparison with transformers: what it refuses, and that it can fail. The proofs are in tests/equivalence."""

import importlib.util
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from small_decoders import OWN, QWEN3, small_decoder

from llm_journey.checkpoint.model_folder import save_model
from llm_journey.checkpoint.verify import compare_with_transformers
from llm_journey.core.errors import BadInputError, JourneyError


def test_a_saved_folder_agrees(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_model(small_decoder(**QWEN3), tmp_path / "model")
    capfd.readouterr()
    assert compare_with_transformers(tmp_path / "model", [3, 1, 4, 1, 5]) <= 1e-4
    assert "Loading weights" not in capfd.readouterr().err


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(small_decoder(**QWEN3), tmp_path / "model")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(JourneyError, match=r"pip install 'llm-journey\[hf\]'") as caught:
        compare_with_transformers(tmp_path / "model", [1])
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("ids", [[], [29], [-1], list(range(17))])
def test_ids_that_do_not_fit_are_refused(ids: list[int], tmp_path: Path) -> None:
    save_model(small_decoder(**QWEN3), tmp_path / "model")
    with pytest.raises(BadInputError, match="give 1 to 16 ids from 0 to 28"):
        compare_with_transformers(tmp_path / "model", ids)


def test_a_model_of_no_family_is_refused(tmp_path: Path) -> None:
    save_model(small_decoder(**OWN), tmp_path / "model")
    with pytest.raises(BadInputError, match="fits none of qwen3, llama, gpt2"):
        compare_with_transformers(tmp_path / "model", [1])


def test_transformers_finding_other_tensors_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored copy of a tied head is harmless to us; what transformers reports as unexpected is not passed over."""
    import llm_journey.checkpoint.verify as verify

    model = small_decoder(**QWEN3)
    save_model(model, tmp_path / "model")
    state = verify.load_state(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.extra.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    monkeypatch.setattr(verify, "load_state", lambda directory: state)
    with pytest.raises(JourneyError, match=r"transformers expects other tensors: model\.layers\.0\.extra\.weight"):
        compare_with_transformers(tmp_path / "model", [1])
