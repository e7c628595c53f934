"""Packing: no document lost, no target across documents, each token a target exactly once; the packed loader."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_shards import END, numbered_shards

from llm_journey.core.errors import BadInputError
from llm_journey.datasets import packing
from llm_journey.datasets.batching import IGNORED, pad_documents
from llm_journey.datasets.packing import PackedLoader, fill_fraction, pack, plan_rows

PAD, START = 99_999, 77_777
LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=25)
SETTINGS = settings(max_examples=60, deadline=None)
METHODS = st.sampled_from(["best_fit", "first_fit"])


def numbered_documents(lengths):
    """Documents without a token in common."""
    ends = np.cumsum(lengths)
    return [np.arange(end - length, end) for length, end in zip(lengths, ends, strict=True)]


@SETTINGS
@given(lengths=LENGTHS, context=st.integers(1, 15), method=METHODS)
def test_no_document_is_lost_and_every_token_is_a_target_exactly_once(lengths, context, method):
    documents = numbered_documents(lengths)
    if not sum(lengths):
        with pytest.raises(BadInputError, match="nothing to pack"):
            pack(documents, context, pad_id=PAD, start_id=START, method=method)
        return
    batch = pack(documents, context, pad_id=PAD, start_id=START, method=method)
    assert Counter(batch.targets[batch.targets != IGNORED].tolist()) == Counter(range(sum(lengths)))


@SETTINGS
@given(lengths=LENGTHS, context=st.integers(1, 15), method=METHODS)
def test_without_a_start_token_all_but_each_first_token_are_targets(lengths, context, method):
    documents = [document for document in numbered_documents(lengths) if len(document) > 1]
    if documents:
        batch = pack(documents, context, pad_id=PAD, method=method)
        expected = Counter(np.concatenate([document[1:] for document in documents]).tolist())
        assert Counter(batch.targets[batch.targets != IGNORED].tolist()) == expected


@SETTINGS
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=25), context=st.integers(1, 15), method=METHODS)
def test_no_target_crosses_documents_and_segments_and_positions_begin_anew(lengths, context, method):
    owner = np.repeat(np.arange(len(lengths)), lengths)
    batch = pack(numbered_documents(lengths), context, pad_id=PAD, start_id=START, method=method)
    for inputs, targets, segments, positions in zip(
        batch.inputs, batch.targets, batch.segments, batch.positions, strict=True
    ):
        assert segments[0] == 0 and set(np.diff(segments)) <= {0, 1}
        for segment in range(segments[-1] + 1):
            mine = segments == segment
            assert positions[mine].tolist() == list(range(mine.sum()))
            if np.all(targets[mine] == IGNORED):
                assert np.all(inputs[mine] == PAD) and segment == segments[-1]
                continue
            assert len(set(owner[targets[mine]])) == 1
            # Inside a segment each target is the next input; its first input is the token before the first target.
            assert inputs[mine][1:].tolist() == targets[mine][:-1].tolist()
            first = targets[mine][0]
            begins = first == 0 or owner[first - 1] != owner[first]
            assert inputs[mine][0] == (START if begins else first - 1)


@SETTINGS
@given(lengths=LENGTHS, context=st.integers(1, 15), method=METHODS)
def test_a_document_that_fits_is_never_cut_and_rows_never_overflow(lengths, context, method):
    rows = plan_rows(lengths, context, method=method)
    assert all(sum(piece.stop - piece.start for piece in row) <= context for row in rows)
    pieces = Counter(piece.document for row in rows for piece in row)
    for document, length in enumerate(lengths):
        assert pieces[document] == -(-length // context)


@SETTINGS
@given(lengths=st.lists(st.integers(1, 10), min_size=1, max_size=30))
def test_no_two_rows_would_fit_into_one(lengths):
    for method in ("best_fit", "first_fit"):
        rows = plan_rows(lengths, 10, method=method)
        filled = sorted(sum(piece.stop - piece.start for piece in row) for row in rows)
        assert all(first + second > 10 for first, second in itertools.pairwise(filled))


def test_best_fit_wastes_little_on_real_lengths():
    lengths = np.random.default_rng(0).lognormal(4.5, 0.8, size=2000).astype(int) + 1
    batch = pack(numbered_documents(lengths.tolist()), 512, pad_id=PAD, start_id=START)
    assert fill_fraction(batch) > 0.98
    padded = pad_documents(numbered_documents(lengths.tolist()), pad_id=PAD, start_id=START)
    assert padded.num_targets() / padded.targets.size < 0.3


def test_bad_arguments_are_refused():
    with pytest.raises(BadInputError, match="best_fit, first_fit"):
        pack([np.arange(3)], 4, pad_id=0, method="worst_fit")
    with pytest.raises(BadInputError, match="at least 1"):
        plan_rows([3], 0)


def flat_rows(batch):
    arrays = (batch.inputs, batch.targets, batch.segments, batch.positions)
    return [tuple(np.concatenate(row).tolist()) for row in zip(*arrays, strict=True)]


def take(loader, count):
    return [row for _ in range(count) for row in flat_rows(loader.next_batch())]


SHARD_LENGTHS = st.lists(st.integers(1, 30), min_size=3, max_size=25)


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(packing, "_GROUP_DOCUMENTS", 4)


@pytest.mark.parametrize("seed", range(4))
def test_every_token_is_a_target_once_an_epoch(small_groups, seed):
    shards = numbered_shards([5, 17, 1, 30, 8, 12, 3, 25, 9, 2])
    loader = PackedLoader(shards, batch_size=1, context=16, seed=seed)
    orders = []
    for epoch in range(3):
        targets = []
        while len(targets) < shards.num_tokens:
            batch = loader.next_batch()
            targets += batch.targets[batch.targets != IGNORED].tolist()
        assert Counter(targets) == Counter(shards.read(0, shards.num_tokens).tolist())
        assert loader.epoch == pytest.approx(epoch + 1)
        orders.append(targets)
    assert orders[0] != orders[1]


@SETTINGS
@given(lengths=SHARD_LENGTHS, batch_size=st.integers(1, 3), world_size=st.integers(1, 3), done=st.integers(0, 15))
def test_incident_4_packed_batches_resume_anywhere(lengths, batch_size, world_size, done):
    arguments = {"batch_size": batch_size, "context": 8, "seed": 3, "world_size": world_size, "rank": world_size - 1}
    shards = numbered_shards(lengths)
    uninterrupted = PackedLoader(shards, **arguments)
    take(uninterrupted, done)
    resumed = PackedLoader(shards, **arguments)
    resumed.restore(json.loads(json.dumps(uninterrupted.state())))
    assert resumed.epoch == uninterrupted.epoch
    assert take(resumed, 8) == take(uninterrupted, 8)


@SETTINGS
@given(lengths=SHARD_LENGTHS, world_size=st.integers(2, 4))
def test_processes_share_the_rows_of_one_process_without_overlap(lengths, world_size):
    shards = numbered_shards(lengths)
    alone = PackedLoader(shards, batch_size=2 * world_size, context=8, seed=5)
    ranks = [
        PackedLoader(shards, batch_size=2, context=8, seed=5, world_size=world_size, rank=rank)
        for rank in range(world_size)
    ]
    for _ in range(5):
        assert [row for loader in ranks for row in take(loader, 1)] == take(alone, 1)
    assert all(loader.state() == alone.state() for loader in ranks)


def test_each_document_begins_after_the_end_token():
    batch = PackedLoader(numbered_shards([3, 4, 2]), batch_size=1, context=32, seed=0).next_batch()
    first = batch.positions == 0
    assert np.all(batch.inputs[first] == END)


def test_incident_6_packed_loader_refuses_other_data_naming_both():
    old, new = numbered_shards([9, 9]), numbered_shards([9, 9], first=5)
    state = PackedLoader(old, batch_size=1, context=3, seed=0).state()
    with pytest.raises(BadInputError) as caught:
        PackedLoader(new, batch_size=1, context=3, seed=0).restore(state)
    assert old.fingerprint in str(caught.value) and new.fingerprint in str(caught.value)


@pytest.mark.parametrize("change", [{"group": 9}, {"row": 99}, {"epoch": -1}, {"row": "1"}])
def test_a_damaged_position_is_refused(change):
    loader = PackedLoader(numbered_shards([9, 9]), batch_size=1, context=3, seed=0)
    with pytest.raises(BadInputError, match="damaged"):
        loader.restore({**loader.state(), **change})
