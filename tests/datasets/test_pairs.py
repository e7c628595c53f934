"""Pairs: what belongs together stays together, each pair comes once an epoch, a stopped loader goes on the same."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.batching import IGNORED, PairBatch
from llm_journey.datasets.pairs import PairLoader, all_pairs
from llm_journey.datasets.shards import TokenShards, write_shards

END = 26
NUM_PAIRS = 50


def _letters(texts: list[str]) -> list[list[int]]:
    return [[ord(letter) - ord("a") for letter in text] for text in texts]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenShards, TokenShards]:
    """50 sources, all different, and each one's reversal."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = random.Random(0)
    texts = sorted({"".join(generator.choices("abcdefg", k=generator.randint(1, 20))) for _ in range(80)})[:NUM_PAIRS]
    generator.shuffle(texts)
    for split, written in (("train", texts), ("train-targets", [text[::-1] for text in texts])):
        write_shards(written, _letters, folder, split=split, vocab_size=27, end_id=END)
    return TokenShards.open(folder, "train"), TokenShards.open(folder, "train-targets")


def _loader(shards: tuple[TokenShards, TokenShards], **changes: int) -> PairLoader:
    return PairLoader(*shards, **{"batch_size": 4, "context": 32, "seed": 0, **changes})


def _rows(batch: PairBatch) -> list[list[int]]:
    """The sources of a batch, once its rows are seen to be what they must be."""
    found = []
    for source, mask, inputs, targets in zip(batch.source, batch.source_mask, batch.inputs, batch.targets, strict=True):
        ids = source[mask].tolist()
        wanted = targets[targets != IGNORED].tolist()
        assert ids[-1] == END and wanted == [*ids[:-1][::-1], END]
        assert inputs[: len(wanted)].tolist() == [END, *wanted[:-1]]
        assert (source[~mask] == END).all() and (inputs[len(wanted) :] == END).all()
        found.append(ids)
    return found


def test_an_epoch_holds_every_pair_once_in_an_order_of_its_own(shards: tuple[TokenShards, TokenShards]) -> None:
    loader = _loader(shards, batch_size=5)
    epochs = [[row for _ in range(NUM_PAIRS // 5) for row in _rows(loader.next_batch())] for _ in range(3)]
    for epoch in epochs:
        assert len({tuple(row) for row in epoch}) == NUM_PAIRS
    assert epochs[0] != epochs[1] != epochs[2]


def test_rows_of_a_batch_are_about_as_long(shards: tuple[TokenShards, TokenShards]) -> None:
    loader = _loader(shards, batch_size=5)
    share = np.mean([loader.next_batch().source_mask.mean() for _ in range(10)])
    assert share > 0.8  # without sorting about 0.6


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 5), batch_size=st.integers(1, 50), taken=st.integers(0, 40))
def test_a_stopped_loader_goes_on_the_same(
    shards: tuple[TokenShards, TokenShards], seed: int, batch_size: int, taken: int
) -> None:
    first = _loader(shards, seed=seed, batch_size=batch_size)
    for _ in range(taken):
        first.next_batch()
    second = _loader(shards, seed=seed, batch_size=batch_size)
    second.restore(first.state())
    for _ in range(3):
        assert _rows(first.next_batch()) == _rows(second.next_batch())


def test_all_pairs_gives_each_once(shards: tuple[TokenShards, TokenShards]) -> None:
    rows = [row for batch in all_pairs(*shards, 8) for row in _rows(batch)]
    assert len(rows) == NUM_PAIRS == len({tuple(row) for row in rows})
    assert [len(row) for row in rows] == sorted(len(row) for row in rows)


def test_bad_input(shards: tuple[TokenShards, TokenShards], tmp_path: Path) -> None:
    sources, targets = shards
    state = _loader(shards).state()
    for change in ({"seed": 1}, {"batch_size": 5}):
        with pytest.raises(BadInputError, match=next(iter(change))):
            _loader(shards, **change).restore(state)
    with pytest.raises(BadInputError, match="data fingerprint"):
        PairLoader(targets, sources, batch_size=4, context=32, seed=0).restore(state)
    with pytest.raises(BadInputError, match="context is 8"):
        _loader(shards, context=8)
    write_shards(["a"], _letters, tmp_path, split="train", vocab_size=27, end_id=END)
    with pytest.raises(BadInputError, match="1 sources and 50 targets"):
        PairLoader(TokenShards.open(tmp_path, "train"), targets, batch_size=1, context=32, seed=0)
