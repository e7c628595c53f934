"""Beam search of ours = transformers' `generate(num_beams=...)` on random Marian models: the same ids, the same scores.

transformers divides by length ** penalty instead of eq. 14; the search takes any penalty, so both forms are compared.
Equal scores to 1e-4: both add up the same float32 log-probabilities of two models that differ in the last bits.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from llm_journey.checkpoint.model_folder import load_decoder, load_encoder_decoder
from llm_journey.generation.beam import continue_text, write_targets

transformers = pytest.importorskip("transformers")

PAD, END, VOCABULARY, LONGEST = 0, 1, 23, 9


@pytest.fixture(scope="module", params=[0, 1, 2])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """transformers' model, and ours opened from what it saved. Weights large enough to make decided distributions."""
    torch.manual_seed(request.param)
    config = transformers.MarianConfig(
        vocab_size=VOCABULARY, decoder_vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
        max_position_embeddings=32, pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=PAD,
        forced_eos_token_id=None, scale_embedding=True, share_encoder_decoder_embeddings=True,
    )  # fmt: skip
    theirs = transformers.MarianMTModel(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.ndim == 2 and "positions" not in name:
                parameter.normal_(std=0.2)
        theirs.final_logits_bias.normal_()
        theirs.final_logits_bias[0, END] += 1.5  # else almost no sequence would end before it is cut off
    folder = tmp_path_factory.mktemp("marian") / "model"
    theirs.save_pretrained(folder)
    return theirs, load_encoder_decoder(Path(folder))[0]


def _sources() -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() for length in (3, 7, 5, 1)]


def _theirs(model: Any, **options: Any) -> tuple[list[list[list[int]]], list[list[float]]]:
    """Ids after the start, up to the end token, and scores of every beam of every source."""
    sources = _sources()
    longest = max(map(len, sources))
    ids = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in sources])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in sources])
    count = options["num_beams"]
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=LONGEST, num_return_sequences=count, do_sample=False,
        output_scores=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    rows = []
    for row in out.sequences[:, 1:].tolist():
        rows.append(row[: row.index(END)] if END in row else row[:LONGEST])
    grouped = [rows[start : start + count] for start in range(0, len(rows), count)]
    scores = out.sequences_scores.view(-1, count).tolist() if count > 1 else []
    return grouped, scores


@pytest.mark.parametrize("num_beams", [2, 3, 5])
@pytest.mark.parametrize("power", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("early_stopping", ["never", True])
def test_the_same_hypotheses_and_scores(models: Any, num_beams: int, power: float, early_stopping: Any) -> None:
    theirs, ours = models
    ids, scores = _theirs(theirs, num_beams=num_beams, length_penalty=power, early_stopping=early_stopping)
    found = write_targets(
        ours, _sources(), begin_id=PAD, end_id=END, pad_id=PAD, max_length=LONGEST, num_beams=num_beams,
        penalty=lambda length: length**power, early_stopping=early_stopping is True,
    )  # fmt: skip
    assert [[list(item.ids) for item in row] for row in found] == ids
    for row, expected in zip(found, scores, strict=True):
        assert [item.score for item in row] == pytest.approx(expected, abs=1e-4)


def test_the_sequences_differ_enough_to_tell_a_right_search_from_a_wrong_one(models: Any) -> None:
    _, ours = models
    found = write_targets(ours, _sources(), begin_id=PAD, end_id=END, pad_id=PAD, max_length=LONGEST, num_beams=5)
    assert len({(len(item.ids), item.ended) for row in found for item in row}) >= 3


def test_one_beam_is_their_greedy_search(models: Any) -> None:
    theirs, ours = models
    ids, _ = _theirs(theirs, num_beams=1)
    found = write_targets(ours, _sources(), begin_id=PAD, end_id=END, pad_id=PAD, max_length=LONGEST, num_beams=1)
    assert [[list(item.ids) for item in row] for row in found] == ids


def test_padding_and_company_change_nothing(models: Any) -> None:
    """A source searched for alone, without padding, gives what it gives among longer ones."""
    _, ours = models
    options = {"begin_id": PAD, "end_id": END, "pad_id": PAD, "max_length": LONGEST, "num_beams": 3}
    together = write_targets(ours, _sources(), **options)
    for source, expected in zip(_sources(), together, strict=True):
        (alone,) = write_targets(ours, [source], **options)
        assert [item.ids for item in alone] == [item.ids for item in expected]


def test_a_cache_that_does_not_follow_its_beams_is_noticed(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted error: without `reorder` the beams read each other's past, and the comparison above fails."""
    theirs, ours = models
    monkeypatch.setattr("llm_journey.generation.kv_cache.KVCache.reorder", lambda self, rows: None)
    ids, _ = _theirs(theirs, num_beams=5, length_penalty=0.0, early_stopping="never")
    found = write_targets(
        ours, _sources(), begin_id=PAD, end_id=END, pad_id=PAD, max_length=LONGEST, num_beams=5,
        penalty=lambda length: 1.0,
    )  # fmt: skip
    assert [[list(item.ids) for item in row] for row in found] != ids


@pytest.mark.parametrize("num_beams", [2, 5])
@pytest.mark.parametrize("early_stopping", ["never", True])
def test_a_decoder_goes_on_with_the_same_hypotheses(num_beams: int, early_stopping: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=None, eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    theirs.save_pretrained(tmp_path)
    ours = load_decoder(tmp_path)[0]
    for prompt in ([5], [3, 9, 4, 17, 2]):
        out = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=LONGEST, num_beams=num_beams, num_return_sequences=num_beams,
            do_sample=False, length_penalty=0.6, early_stopping=early_stopping, output_scores=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        rows = [row[len(prompt) :] for row in out.sequences.tolist()]
        wanted = [row[: row.index(END)] if END in row else row[:LONGEST] for row in rows]
        found = continue_text(
            ours, prompt, end_ids={END}, max_length=LONGEST, num_beams=num_beams,
            penalty=lambda length: length**0.6, early_stopping=early_stopping is True,
        )  # fmt: skip
        assert [list(each.ids) for each in found] == wanted
        scores = torch.tensor([each.score for each in found])
        torch.testing.assert_close(scores, out.sequences_scores, atol=1e-4, rtol=1e-4)
