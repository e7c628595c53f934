"""Batches with padding on either side, and gradients: ours = transformers', three sizes of each family.

Only real positions are compared: what a model says at padding means nothing, and the two say different things there.
Tolerances: float32 sums in another order; 1e-4 for logits of about one, 1e-4 of the largest gradient of each tensor.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from random_decoders import BERT_MASKED, GPT2, LLAMA, MARIAN, QWEN3, random_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from llm_journey.checkpoint import families
from llm_journey.checkpoint.model_folder import save_model
from llm_journey.model.encoder import Encoder
from llm_journey.model.encoder_decoder import EncoderDecoder
from llm_journey.model.kinds import Model

TOLERANCE = 1e-4
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "llama": LLAMA | {"num_kv_heads": 2},
    "qwen3": QWEN3 | {"num_kv_heads": 2},
    "bert": BERT_MASKED,
    "marian": MARIAN,
}
SIZES: dict[str, dict[str, Any]] = {
    "small": {},
    "odd": {"vocab_size": 101, "width": 18, "num_heads": 6, "num_kv_heads": 0, "num_layers": 3, "mlp_width": 37},
    "large": {"vocab_size": 257, "width": 96, "num_heads": 8, "num_layers": 5, "context": 80},
}
GROUPED = {"odd": {"head_width": 4, "num_kv_heads": 3, "width": 24}}
# Padding before and after the tokens of each row.
SIDES = ((0, 0), (5, 0), (0, 7), (3, 4), (12, 0), (0, 12))
OPENERS = {"bert": AutoModelForMaskedLM, "marian": AutoModelForSeq2SeqLM}


def _model(family: str, size: str) -> Model:
    choices = FAMILIES[family] | SIZES[size]
    if family in ("llama", "qwen3"):
        choices |= GROUPED.get(size, {"num_kv_heads": 2})
    model = random_model(scale=0.2, **choices)
    assert families.family_of(model.config) == family
    return model


def _theirs(model: Model, family: str, directory: Path) -> Any:
    save_model(model, directory)
    return OPENERS.get(family, AutoModelForCausalLM).from_pretrained(directory).eval()


def _rows(length: int, vocab_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ids and True at real tokens, each (6, length)."""
    ids = torch.randint(vocab_size, (len(SIDES), length), generator=torch.Generator().manual_seed(seed))
    places = torch.arange(length)
    return ids, torch.stack([(places >= left) & (places < length - right) for left, right in SIDES])


def _both(ours: Model, theirs: Any, length: int, hide: bool = True) -> tuple[Tensor, Tensor]:
    """Logits at real positions, ours and theirs. hide: whether ours is told which tokens are padding."""
    ids, real = _rows(length, ours.config.vocab_size, seed=1)
    told = real if hide else None
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    match ours:
        case EncoderDecoder():
            targets, real_targets = _rows(length - 2, ours.config.vocab_size, seed=2)
            found = ours(ids, targets, source_padding_mask_bs=told, padding_mask_bt=real_targets if hide else None)
            expected = theirs(
                input_ids=ids, attention_mask=real, decoder_input_ids=targets, decoder_attention_mask=real_targets
            )
            return found[real_targets], expected.logits[real_targets]
        case Encoder():
            types = torch.randint(ours.config.token_types, ids.shape, generator=torch.Generator().manual_seed(3))
            found = ours(ids, padding_mask_bs=told, positions_bt=positions, token_types_bt=types)
            expected = theirs(ids, attention_mask=real, position_ids=positions, token_type_ids=types)
        case _:
            found = ours(ids, padding_mask_bs=told, positions_bt=positions)
            expected = theirs(ids, attention_mask=real, position_ids=positions)
    return found[real], expected.logits[real]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_a_padded_batch(family: str, size: str, tmp_path: Path) -> None:
    ours = _model(family, size)
    theirs = _theirs(ours, family, tmp_path / "model")
    for length in (15, 32):
        with torch.inference_mode():
            found, expected = _both(ours, theirs, length)
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_padded_batch(family: str, tmp_path: Path) -> None:
    ours = _model(family, "small")
    theirs = _theirs(ours, family, tmp_path / "model")
    weights = None
    for logits in _both(ours, theirs, 15):
        if weights is None:
            weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(4))
        (logits * weights).mean().backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients.values())
    _, named = families.to_huggingface(ours.config, gradients)
    # transformers' sinusoids of Marian are a table that never changes, yet counted among its parameters.
    learned = {name: parameter for name, parameter in theirs.named_parameters() if "embed_positions" not in name}
    expected = {name: parameter.grad for name, parameter in learned.items()}
    assert named.keys() - expected.keys() <= {"final_logits_bias"}, "Marian's bias is no parameter in transformers"
    assert not expected.keys() - named.keys()
    for name, gradient in expected.items():
        # A key's bias moves all scores of a query alike, so its gradient is zero but for rounding.
        atol = TOLERANCE * max(float(gradient.abs().max()), 1e-3)
        torch.testing.assert_close(
            named[name], gradient, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_that_is_not_hidden_shows(family: str, tmp_path: Path) -> None:
    """The comparison can fail: with our mask left out, the difference is far over the bound."""
    ours = _model(family, "small")
    with torch.inference_mode():
        found, expected = _both(ours, _theirs(ours, family, tmp_path / "model"), 15, hide=False)
    assert float((found - expected).abs().max()) > 100 * TOLERANCE


@pytest.mark.parametrize(
    "part", ["encoder_blocks.1.attention.k.weight", "blocks.0.cross_attention.v.weight", "head_bias"]
)
def test_one_changed_number_of_the_encoder_decoder_shows(part: str, tmp_path: Path) -> None:
    ours = _model("marian", "small")
    theirs = _theirs(ours, "marian", tmp_path / "model")
    with torch.no_grad():
        ours.get_parameter(part).view(-1)[3] += 1.0
    with torch.inference_mode():
        found, expected = _both(ours, theirs, 15)
    assert float((found - expected).abs().max()) > TOLERANCE
