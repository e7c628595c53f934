"""Validation against a slow computation that scores one token at a time from the rule in words."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_shards import END, VOCABULARY, write_documents

from llm_journey.datasets.batching import IGNORED
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.training import validate as validating
from llm_journey.training.validate import Validation, validate, validation_batches


def _model(context: int, **choices: Any) -> Decoder:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "width": 16, "num_layers": 1, "num_heads": 2}
    model = Decoder(TransformerConfig(**shape, context=context, **choices))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.4)
    return model


def _slow_nats(model: Decoder, text: list[int]) -> list[float]:
    """One token, one forward pass. Windows of `context` inputs begin every context // 2 tokens (at least 1); a token
    is scored in the first window that holds it, from all that stands before it there."""
    context, stride = model.config.context, max(model.config.context // 2, 1)
    inputs = [END, *text[:-1]]
    nats = []
    for place, token in enumerate(text):
        begin = 0
        while place >= begin + context:
            begin += stride
        logits = model(torch.tensor([inputs[begin : place + 1]]))[0, -1]
        nats.append(-float(torch.log_softmax(logits.double(), dim=-1)[token]))
    return nats


@pytest.mark.parametrize("context", [1, 2, 5, 8])
@torch.no_grad()
def test_it_is_the_slow_computation(context: int, tmp_path: Path) -> None:
    """Summed nats of 150 tokens in float32: 1e-5."""
    lengths = [1, 3, 40, 2, 8, 9, 17, 5, 64, 1]
    shards = write_documents(tmp_path, lengths)
    model = _model(context).eval()
    nats = [
        value for number in range(len(lengths)) for value in _slow_nats(model, shards.document(number)[:-1].tolist())
    ]
    found = validate(model, shards)
    assert found.tokens == len(nats) == sum(lengths)
    assert found.loss == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss), rel=1e-12)
    assert found.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / (3 * sum(lengths)), rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=8), context=st.integers(1, 20))
def test_every_token_is_a_target_exactly_once_with_half_a_context_before_it(
    lengths: list[int], context: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shards = write_documents(tmp_path_factory.mktemp("shards"), lengths)
    targets: list[int] = []
    for batch in validation_batches(shards, context):
        assert batch.inputs.shape[1] <= context
        for inputs, row in zip(batch.inputs, batch.targets, strict=True):
            scored = np.flatnonzero(row != IGNORED)
            targets += row[scored].tolist()
            begins_a_document = inputs[0] == END
            assert begins_a_document or scored[0] >= context - max(context // 2, 1)
    expected = [token for number in range(len(lengths)) for token in shards.document(number)[:-1].tolist()]
    assert sorted(targets) == sorted(expected), "the end token behind a document is no target"


@pytest.mark.parametrize("vocabulary_is_small", [True, False])
def test_batches_are_bounded_and_hold_little_padding(
    vocabulary_is_small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, size = ("_TOKENS_A_BATCH", 64) if vocabulary_is_small else ("_LOGITS_A_BATCH", 64 * VOCABULARY)
    monkeypatch.setattr(validating, limit, size)
    shards = write_documents(tmp_path, [3, 16, 1, 16, 9, 2, 30, 16, 5])
    batches = list(validation_batches(shards, 16))
    assert len(batches) > 2 and all(batch.inputs.size <= 64 for batch in batches)
    widths = [batch.inputs.shape[1] for batch in batches]
    assert widths == sorted(widths)


def test_how_documents_share_batches_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, model = write_documents(tmp_path, [3, 16, 1, 16, 9, 2, 30]), _model(8)
    expected = validate(model, shards)
    monkeypatch.setattr(validating, "_TOKENS_A_BATCH", 1)
    alone = validate(model, shards)
    assert alone.loss == pytest.approx(expected.loss, rel=1e-6) and alone.tokens == expected.tokens


def test_dropout_is_off_and_nothing_is_disturbed(tmp_path: Path) -> None:
    shards, model = write_documents(tmp_path, [12, 5]), _model(8, dropout=0.5)
    model.train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = validate(model, shards)
    assert first == validate(model, shards)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    model.eval()
    assert first == validate(model, shards) and not model.training


def test_the_mode_comes_back_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, model = write_documents(tmp_path, [12]), _model(8)

    def fail(*arguments: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(validating, "_summed_nats", fail)
    model.train()
    with pytest.raises(MemoryError):
        validate(model, shards)
    assert model.training


def test_a_hopeless_loss_has_an_infinite_perplexity() -> None:
    assert Validation(loss=1000.0, bits_per_byte=1.0, tokens=1).perplexity == math.inf
