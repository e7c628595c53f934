"""A cap on what validations read: whole documents, drawn once, and said."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import Recorder, make_recipe, rows

from llm_journey.datasets.shards import TokenShards
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.reports.run_data import read_run
from llm_journey.reports.run_report import report_html
from llm_journey.training.inputs import Inputs, prepare_inputs
from llm_journey.training.recipe import recipe_from
from llm_journey.training.run import train
from llm_journey.training.validate import sample_held_out, validate


def _documents(shards: TokenShards) -> list[tuple[int, ...]]:
    return [tuple(shards.document(number).tolist()) for number in range(shards.num_documents)]


@pytest.fixture(scope="module")
def inputs(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """About half of 24 texts held out."""
    recipe = make_recipe(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOURNEY_HOME", str(tmp_path_factory.mktemp("home")))
        return prepare_inputs(replace(recipe, data=replace(recipe.data, held_out=0.5)))


def test_all_is_read_where_it_fits(inputs: Inputs) -> None:
    for most in (None, inputs.validation.num_tokens):
        found = sample_held_out(inputs, most)
        assert found.inputs is inputs and found.share == 1 and found.figures == {}


@pytest.mark.parametrize("share", [0.99, 0.5, 0.2])
def test_whole_documents_the_same_each_time(share: float, inputs: Inputs) -> None:
    most = int(share * inputs.validation.num_tokens)
    found = sample_held_out(inputs, most)
    sample, documents = found.inputs.validation, _documents(found.inputs.validation)
    whole, longest = _documents(inputs.validation), int(inputs.validation.document_lengths().max())
    assert most - longest < sample.num_tokens <= most and set(documents) < set(whole)
    assert (
        [ids for ids in whole if ids in set(documents)]
        == documents
        == _documents(sample_held_out(inputs, most).inputs.validation)
    ), "in their order, and again the same"
    assert sample.read(0, sample.num_tokens).tolist() == [token for ids in documents for token in ids]
    assert sample.num_bytes == sum(len(inputs.tokenizer.decode(ids[:-1]).encode()) for ids in documents)
    assert found.figures == {
        "validation_tokens": sample.num_tokens,
        "validation_share": sample.num_tokens / inputs.validation.num_tokens,
    }
    assert found.inputs.train is inputs.train and sample.fingerprint != inputs.validation.fingerprint


def test_its_bits_per_byte_are_those_of_its_documents(inputs: Inputs) -> None:
    """Over all documents one by one, nats and bytes add up to the whole's: the sample's bytes are its own."""
    torch.manual_seed(0)
    model = Decoder(TransformerConfig(vocab_size=280, width=16, num_layers=1, num_heads=2, context=64))
    sample = sample_held_out(inputs, inputs.validation.num_tokens // 2).inputs.validation
    found = validate(model, sample)
    assert found.tokens == sample.num_tokens - sample.num_documents
    assert found.bits_per_byte == pytest.approx(found.loss * found.tokens / np.log(2) / sample.num_bytes, rel=1e-6)
    nats = 0.0
    with torch.inference_mode():
        for ids in _documents(sample):
            log_probabilities = model(torch.tensor([[sample.end_id, *ids[:-2]]]))[0].log_softmax(-1)
            nats -= float(log_probabilities[range(len(ids) - 1), list(ids[:-1])].sum())
    assert found.loss == pytest.approx(nats / found.tokens, rel=1e-4)


def test_one_document_that_is_too_large_gives_its_beginning(inputs: Inputs) -> None:
    first = inputs.validation.document(0)
    alone = replace(inputs, validation=inputs.validation.holding([np.tile(first[:-1], 50)], 0))
    found = sample_held_out(alone, 40)
    tokens = np.tile(first[:-1], 50)[:39].tolist()
    assert _documents(found.inputs.validation) == [(*tokens, inputs.tokenizer.end_id)]
    assert found.share == pytest.approx(40 / alone.validation.num_tokens)


def test_pairs_stay_pairs() -> None:
    recipe = recipe_from(
        {
            "objective": "seq2seq",
            "data": {"source": "dates", "max_documents": 200, "held_out": 0.2},
            "tokenizer": {"vocab_size": 300},
            "model": {"kind": "encoder_decoder", "width": 8, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2},
            "training": {"steps": 1},
        },
        "test",
    )
    inputs = prepare_inputs(recipe)
    assert inputs.validation_targets is not None
    pairs = dict(zip(_documents(inputs.validation), _documents(inputs.validation_targets), strict=True))
    for most in (inputs.validation.num_tokens // 3, 1):
        found = sample_held_out(inputs, most).inputs
        assert found.validation_targets is not None
        sampled = list(zip(_documents(found.validation), _documents(found.validation_targets), strict=True))
        assert 0 < len(sampled) < len(pairs) and all(pairs[source] == target for source, target in sampled)


def test_a_run_says_what_it_read_in_metrics_and_report(texts: Path, tmp_path: Path) -> None:
    recipe = make_recipe(texts, validation_tokens=60)
    recipe = replace(recipe, data=replace(recipe.data, held_out=0.5))
    observer = Recorder()
    result = train(recipe, tmp_path / "run", observer=observer)
    validations = [row for row in rows(tmp_path / "run") if "validation_loss" in row]
    assert len(validations) == 2 and {row["validation_tokens"] for row in validations} == {
        result.figures["validation_tokens"]
    }
    assert 0 < result.figures["validation_tokens"] <= 60 and 0 < result.figures["validation_share"] < 0.5
    said = [message for message in observer.messages if "held-out tokens" in message]
    assert len(said) == 1 and said[0].startswith(f"validations read {result.figures['validation_tokens']} of ")
    share = f"Validations read {result.figures['validation_share']:.1%} of the held-out tokens"
    assert share in report_html(read_run(tmp_path / "run"))
    train(make_recipe(texts), tmp_path / "all", observer=observer)
    assert "Validations read" not in report_html(read_run(tmp_path / "all"))
