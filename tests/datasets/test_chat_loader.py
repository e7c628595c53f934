"""Every token that the assistant wrote is a target once an epoch; rows, order and place of stopping change nothing."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.batching import IGNORED, Batch
from llm_journey.datasets.chat_loader import ChatLoader, ChatShards, write_chats
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder

CONTEXT = 24
# Ids are unique in a data set, so that a target names its token.
lengths = st.lists(st.integers(2, CONTEXT + 1), min_size=1, max_size=25)


def make(folder: Path, sizes: list[int], seed: int = 0) -> tuple[ChatShards, list[tuple[list[int], list[bool]]]]:
    draw = np.random.default_rng(seed)
    starts = np.cumsum([0, *sizes])
    examples = []
    for start, size in zip(starts, sizes, strict=False):
        trained = draw.random(size) < 0.5
        trained[0], trained[-1] = False, True
        examples.append((list(range(int(start), int(start) + size)), trained.tolist()))
    write_chats(examples, folder, split="train", vocab_size=int(starts[-1]) + 1, end_id=int(starts[-1]))
    return ChatShards.open(folder, "train", verify=True), examples


def epoch_of(loader: ChatLoader) -> list[Batch]:
    batches = [loader.next_batch()]
    while loader.epoch % 1:
        batches.append(loader.next_batch())
    return batches


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths, st.integers(1, 4), st.sampled_from(["padded", "packed"]), st.integers(0, 3))
def test_each_trained_token_is_a_target_once_an_epoch(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], batch_size: int, rows: Any, seed: int
) -> None:
    shards, examples = make(tmp_path_factory.mktemp("chats"), sizes, seed)
    loader = ChatLoader(shards, batch_size=batch_size, context=CONTEXT, seed=seed, rows=rows)
    expected = Counter(
        token for ids, trained in examples for token, is_trained in zip(ids, trained, strict=True) if is_trained
    )
    for _ in range(2):
        found: Counter[int] = Counter()
        for batch in epoch_of(loader):
            assert batch.inputs.shape[0] <= batch_size and batch.inputs.shape[1] <= CONTEXT
            chosen = batch.targets != IGNORED
            found.update(batch.targets[chosen].tolist())
            assert np.array_equal(batch.inputs[chosen] + 1, batch.targets[chosen])  # each from the token before it
            if batch.segments is not None and batch.positions is not None:
                same = batch.segments[:, 1:] == batch.segments[:, :-1]
                assert np.array_equal(same, batch.positions[:, 1:] == batch.positions[:, :-1] + 1)
        assert found == expected
    assert shards.num_trained == expected.total()


@pytest.mark.parametrize("rows", ["padded", "packed"])
def test_stopped_anywhere_and_resumed(rows: Any, tmp_path: Path) -> None:
    shards, _ = make(tmp_path, [5, 9, 20, 3, 8, 25, 4, 11, 7])
    options: dict[str, Any] = {"batch_size": 2, "context": CONTEXT, "seed": 3, "rows": rows}
    whole = ChatLoader(shards, **options)
    batches, states = [], []
    for _ in range(13):
        states.append(whole.state())
        batches.append(whole.next_batch())
    for number, state in enumerate(states):
        again = ChatLoader(shards, **options)
        again.restore(state)
        for expected in batches[number : number + 3]:
            found = again.next_batch()
            assert np.array_equal(found.inputs, expected.inputs) and np.array_equal(found.targets, expected.targets)


@pytest.mark.parametrize("rows", ["padded", "packed"])
def test_a_shared_row_leaks_nothing(rows: Any, tmp_path: Path) -> None:
    """A token's logits do not depend on the neighbour in its row."""
    shards, examples = make(tmp_path, [5, 9, 8, 3, 8, 6, 4, 3, 3, 2])
    torch.manual_seed(0)
    model = Decoder(
        TransformerConfig(vocab_size=shards.ids.vocab_size, width=16, num_layers=2, num_heads=2, context=CONTEXT)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    alone = {}
    for ids, _ in examples:
        logits_tv = model(torch.tensor([ids[:-1]]))[0]
        alone.update(zip(ids[:-1], logits_tv, strict=True))
    loader, shared = ChatLoader(shards, batch_size=5, context=CONTEXT, seed=0, rows=rows), 0
    for batch in epoch_of(loader):
        segments, positions = (
            None if array is None else torch.tensor(array) for array in (batch.segments, batch.positions)
        )
        shared += segments is not None
        logits_btv = model(torch.tensor(batch.inputs), segments_bt=segments, positions_bt=positions)
        for row, column in zip(*np.nonzero(batch.inputs != shards.ids.end_id), strict=True):
            token = int(batch.inputs[row, column])
            assert (logits_btv[row, column] - alone[token]).abs().max() < 1e-5
    assert shared


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    shards, _ = make(tmp_path / "one", [5, 9])
    other, _ = make(tmp_path / "other", [5, 8])
    with pytest.raises(BadInputError, match="of other chats"):
        ChatShards(shards.ids, other.trained)
    loader = ChatLoader(shards, batch_size=2, context=CONTEXT, seed=0)
    with pytest.raises(BadInputError, match="data fingerprint"):
        ChatLoader(other, batch_size=2, context=CONTEXT, seed=0).restore(loader.state())
    with pytest.raises(BadInputError, match="it is damaged"):
        loader.restore(loader.state() | {"batch": 7})
    with pytest.raises(BadInputError, match="9 tokens does not fit the context of 7"):
        ChatLoader(shards, batch_size=2, context=7, seed=0)
    with pytest.raises(BadInputError, match="unknown rows 'cut'"):
        ChatLoader(shards, batch_size=2, context=CONTEXT, seed=0, rows="cut")  # type: ignore[arg-type]
