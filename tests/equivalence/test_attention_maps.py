"""Maps and residuals are those of transformers' own `output_attentions` and `output_hidden_states`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from random_decoders import BERT, BERT_MASKED, GPT2, LLAMA, MARIAN, QWEN3, random_decoder, random_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from llm_journey.checkpoint.model_folder import save_model
from llm_journey.inspection.inspection import inspect_ids, inspect_pair, readout
from llm_journey.inspection.recorder import watch
from llm_journey.model.decoder import Decoder
from llm_journey.model.encoder import Encoder
from llm_journey.model.encoder_decoder import EncoderDecoder

# float32 sums taken in another order.
TOLERANCE = 1e-4

CASES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gpt2 odd": GPT2 | {"vocab_size": 101, "width": 15, "num_heads": 3, "num_layers": 3, "mlp_width": 37},
    "llama": LLAMA,
    "llama grouped": LLAMA | {"num_kv_heads": 2, "num_layers": 3, "tied_embeddings": False},
    "llama multi-query": LLAMA | {"num_kv_heads": 1, "head_width": 10},
    "qwen3 window": QWEN3 | {"sliding_window": 5, "num_layers": 3, "num_kv_heads": 2},
}


class Everything:
    """A watcher that keeps every map and residual as it is."""

    def __init__(self) -> None:
        self.maps: dict[tuple[int, int], Tensor] = {}
        self.residuals: list[Tensor] = []

    def on_residual(self, layer: int, residual_td: Tensor) -> None:
        assert layer == len(self.residuals)
        self.residuals.append(residual_td.clone())

    def on_attention(self, layer: int, head: int, weights_ts: Tensor) -> None:
        self.maps[layer, head] = weights_ts.clone()


def both(model: Decoder, folder: Path) -> tuple[Everything, Any, Tensor]:
    """What we see of a random text, what transformers shows of it, and the ids (1, T)."""
    ids_bt = torch.randint(model.config.vocab_size, (1, 29), generator=torch.Generator().manual_seed(1))
    save_model(model, folder)
    seen = Everything()
    watch(model, seen, lambda: model(ids_bt))
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.inference_mode():
        shown = theirs(ids_bt, output_attentions=True, output_hidden_states=True)
    return seen, shown, ids_bt


@pytest.mark.parametrize("case", CASES)
def test_maps_and_residuals_equal_transformers(case: str, tmp_path: Path) -> None:
    model = random_decoder(scale=0.2, **CASES[case])
    seen, shown, _ = both(model, tmp_path / "model")
    assert len(seen.maps) == model.config.num_layers * model.config.num_heads
    for (layer, head), weights_ts in seen.maps.items():
        torch.testing.assert_close(weights_ts, shown.attentions[layer][0, head], atol=TOLERANCE, rtol=0)
    # transformers' last hidden state has been through the final norm, ours has not.
    with torch.inference_mode():
        last = model.norm(seen.residuals[-1])
    for ours, reference in zip([*seen.residuals[:-1], last], shown.hidden_states, strict=True):
        torch.testing.assert_close(ours, reference[0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", ["gpt2", "llama grouped"])
def test_the_lens_is_transformers_norm_and_head_on_its_hidden_states(case: str, tmp_path: Path) -> None:
    model = random_decoder(scale=0.2, **CASES[case])
    _, shown, ids_bt = both(model, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    final_norm = theirs.transformer.ln_f if case == "gpt2" else theirs.model.norm
    found = inspect_ids(model, ids_bt[0].tolist())
    with torch.inference_mode():
        logits = [theirs.lm_head(final_norm(state[0])) for state in shown.hidden_states[:-1]] + [shown.logits[0]]
    for ours, logits_tv in zip(found.lens, logits, strict=True):
        log_probabilities_tv = torch.log_softmax(logits_tv, dim=-1)
        entropy_t = torch.distributions.Categorical(logits=logits_tv).entropy() / torch.log(torch.tensor(2.0))
        torch.testing.assert_close(torch.tensor(ours.entropy), entropy_t, atol=TOLERANCE, rtol=0)
        best = log_probabilities_tv.exp().max(-1).values
        torch.testing.assert_close(torch.tensor(ours.kept_probabilities[:, 0]), best, atol=TOLERANCE, rtol=0)
        next_t = log_probabilities_tv[:-1].exp().gather(1, ids_bt[0, 1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(ours.probability[:-1]), next_t, atol=TOLERANCE, rtol=0)


def test_planted_errors_show(tmp_path: Path) -> None:
    """A head's map against another head's, and a lens without the final norm: far over the tolerance."""
    model = random_decoder(scale=0.2, **CASES["llama grouped"])
    seen, shown, _ = both(model, tmp_path / "model")
    assert float((seen.maps[0, 1] - shown.attentions[0][0, 0]).abs().max()) > 100 * TOLERANCE
    assert float((seen.maps[1, 0] - shown.attentions[0][0, 0]).abs().max()) > 100 * TOLERANCE
    with torch.inference_mode():
        unnormed = torch.nn.functional.linear(seen.residuals[1], model.head_weight)
        assert float((readout(model)(seen.residuals[1]) - unnormed).abs().max()) > 100 * TOLERANCE


def test_an_encoder_sees_both_ways_and_its_lens_ends_at_transformers_logits(tmp_path: Path) -> None:
    model = random_model(scale=0.2, **BERT_MASKED)
    assert isinstance(model, Encoder)
    ids_bt = torch.randint(model.config.vocab_size, (1, 29), generator=torch.Generator().manual_seed(1))
    save_model(model, tmp_path / "model")
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    with torch.inference_mode():
        shown = theirs(ids_bt, output_attentions=True, output_hidden_states=True)
    seen = Everything()
    watch(model, seen, lambda: model(ids_bt))
    for (layer, head), weights_ts in seen.maps.items():
        torch.testing.assert_close(weights_ts, shown.attentions[layer][0, head], atol=TOLERANCE, rtol=0)
    assert float(seen.maps[0, 0].triu(1).sum()) > 1
    for ours, reference in zip(seen.residuals, shown.hidden_states, strict=True):
        torch.testing.assert_close(ours, reference[0], atol=TOLERANCE, rtol=0)
    found = inspect_ids(model, ids_bt[0].tolist(), unjudged={int(ids_bt[0, 3])})
    assert not found.causal and found.predicted is not None
    own_t = shown.logits[0].softmax(-1).gather(1, ids_bt[0, :, None])[:, 0]
    own_t[ids_bt[0] == ids_bt[0, 3]] = float("nan")
    judged = torch.tensor(found.predicted.probability)
    torch.testing.assert_close(judged, own_t, atol=TOLERANCE, rtol=0, equal_nan=True)


def test_an_encoder_without_a_head_has_maps_and_no_lens() -> None:
    model = random_model(**BERT)
    assert isinstance(model, Encoder)
    found = inspect_ids(model, [1, 2, 3])
    assert found.lens == [] and found.predicted is None and sorted(found.maps) == [0, 1]


def test_an_encoder_decoders_three_kinds_of_maps_and_its_lens_equal_transformers(tmp_path: Path) -> None:
    """Three layers that read, two that write; the target is shorter than the source, so that no map fits another."""
    model = random_model(scale=0.5, **MARIAN | {"num_layers": 3, "num_decoder_layers": 2})
    assert isinstance(model, EncoderDecoder)
    generator = torch.Generator().manual_seed(1)
    source_bs, target_bt = (torch.randint(67, (1, length), generator=generator) for length in (29, 17))
    save_model(model, tmp_path / "model")
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    with torch.inference_mode():
        shown = theirs(
            input_ids=source_bs, decoder_input_ids=target_bt, output_attentions=True, output_hidden_states=True
        )
    found = inspect_pair(model, source_bs[0].tolist(), target_bt[0].tolist())
    maps = {"encoder": shown.encoder_attentions, "decoder": shown.decoder_attentions, "cross": shown.cross_attentions}
    assert [part.name for part in found.parts] == list(maps) and sorted(found.maps) == list(range(3 + 2 + 2))
    for part in found.parts:
        for layer, expected in zip(part.layers, maps[part.name], strict=True):
            torch.testing.assert_close(torch.tensor(found.maps[layer]), expected[0], atol=TOLERANCE, rtol=0)
    assert found.maps[5].shape == (4, 17, 29)
    swapped = torch.tensor(found.maps[5][::-1].copy())
    assert float((swapped - shown.cross_attentions[0][0]).abs().max()) > 30 * TOLERANCE, "heads must not be alike"
    assert len(found.lens) == len(shown.decoder_hidden_states) == 3
    for ours, state in zip(found.lens, shown.decoder_hidden_states, strict=True):
        with torch.inference_mode():
            probabilities_tv = (theirs.lm_head(state[0]) + theirs.final_logits_bias[0]).softmax(-1)
        best = probabilities_tv.max(-1).values
        torch.testing.assert_close(torch.tensor(ours.kept_probabilities[:, 0]), best, atol=TOLERANCE, rtol=0)
        next_t = probabilities_tv[:-1].gather(1, target_bt[0, 1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(ours.probability[:-1]), next_t, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(probabilities_tv, shown.logits[0].softmax(-1), atol=TOLERANCE, rtol=0)
