"""The loader's promises: determinism, resuming anywhere, sharing between processes, each token as often as stated."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_shards import END, VOCAB, numbered_shards

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.batching import IGNORED
from llm_journey.datasets.loader import TokenLoader, sequential_batches
from llm_journey.datasets.shards import TokenShards, write_shards

LENGTHS = st.lists(st.integers(1, 30), min_size=3, max_size=25)
SETTINGS = settings(max_examples=40, deadline=None)


@pytest.fixture
def shards():
    return numbered_shards([5, 17, 1, 30, 8, 12, 3, 25, 9])


def rows(batches):
    """Every row as its inputs and its last target: the window that it was cut from."""
    return [
        (*inputs.tolist(), int(targets[-1]))
        for batch in batches
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True)
    ]


def take(loader, count):
    return rows(loader.next_batch() for _ in range(count))


@pytest.mark.parametrize("order", ["documents", "windows"])
def test_targets_are_the_inputs_one_token_later(shards, order):
    batch = TokenLoader(shards, batch_size=4, context=7, seed=0, order=order).next_batch()
    assert batch.inputs.shape == batch.targets.shape == (4, 7)
    assert batch.inputs.dtype == batch.targets.dtype == np.int64
    assert np.array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    assert batch.segments is None and batch.positions is None


@SETTINGS
@given(
    lengths=LENGTHS,
    order=st.sampled_from(["documents", "windows"]),
    batch_size=st.integers(1, 4),
    context=st.integers(1, 5),
    done=st.integers(0, 30),
)
def test_incident_4_accelerate_4071_litgpt_1712_resume_anywhere_reads_on_without_repeat_or_reshuffle(
    lengths, order, batch_size, context, done
):
    shards = numbered_shards(lengths)
    arguments = {"batch_size": batch_size, "context": context, "seed": 3, "order": order}
    uninterrupted = TokenLoader(shards, **arguments)
    take(uninterrupted, done)
    state = json.loads(json.dumps(uninterrupted.state()))
    resumed = TokenLoader(shards, **arguments)
    resumed.restore(state)
    assert resumed.epoch == uninterrupted.epoch
    assert take(resumed, 12) == take(uninterrupted, 12)
    assert resumed.state() == uninterrupted.state()


@SETTINGS
@given(
    lengths=LENGTHS,
    order=st.sampled_from(["documents", "windows"]),
    world_size=st.integers(2, 4),
    steps=st.integers(1, 8),
)
def test_processes_share_the_stream_of_one_process_without_overlap(lengths, order, world_size, steps):
    shards = numbered_shards(lengths)
    arguments = {"context": 3, "seed": 5, "order": order}
    alone = TokenLoader(shards, batch_size=2 * world_size, **arguments)
    ranks = [
        TokenLoader(shards, batch_size=2, world_size=world_size, rank=rank, **arguments) for rank in range(world_size)
    ]
    for _ in range(steps):
        assert [row for loader in ranks for row in take(loader, 1)] == take(alone, 1)
    assert all(loader.state() == alone.state() for loader in ranks)


def test_a_run_goes_on_with_another_number_of_processes(shards):
    whole = take(TokenLoader(shards, batch_size=1, context=4, seed=1), 24)
    two = [TokenLoader(shards, batch_size=3, context=4, seed=1, world_size=2, rank=rank) for rank in range(2)]
    before = [row for _ in range(2) for loader in two for row in take(loader, 1)]
    three = [TokenLoader(shards, batch_size=2, context=4, seed=1, world_size=3, rank=rank) for rank in range(3)]
    for loader in three:
        loader.restore(two[0].state())
    after = [row for _ in range(2) for loader in three for row in take(loader, 1)]
    assert before + after == whole


@SETTINGS
@given(lengths=LENGTHS, context=st.integers(1, 6), epochs=st.integers(1, 3))
def test_documents_order_every_token_is_a_target_once_an_epoch(lengths, context, epochs):
    shards = numbered_shards(lengths)
    loader = TokenLoader(shards, batch_size=1, context=context, seed=9)
    targets = []
    while len(targets) < epochs * shards.num_tokens - 1:
        targets += loader.next_batch().targets.ravel().tolist()
    first = int(TokenLoader(shards, batch_size=1, context=1, seed=9).next_batch().inputs[0, 0])
    stream = [first, *targets]
    raw = Counter(shards.read(0, shards.num_tokens).tolist())
    for epoch in range(epochs):
        assert Counter(stream[epoch * shards.num_tokens : (epoch + 1) * shards.num_tokens]) == raw


@SETTINGS
@given(lengths=LENGTHS)
def test_documents_order_keeps_each_document_whole_and_in_one_piece(lengths):
    shards = numbered_shards(lengths)
    loader = TokenLoader(shards, batch_size=1, context=1, seed=2)
    stream = [int(loader.next_batch().inputs[0, 0]) for _ in range(shards.num_tokens)]
    cut = [tuple(part.split()) for part in " ".join(map(str, stream)).replace(f" {END} ", "|").split("|")]
    cut[-1] = cut[-1][:-1] if cut[-1][-1:] == (str(END),) else cut[-1]
    expected = {tuple(map(str, shards.document(number)[:-1])) for number in range(shards.num_documents)}
    assert set(cut) == expected and len(cut) == len(expected)


@SETTINGS
@given(lengths=LENGTHS, context=st.integers(1, 6), epochs=st.integers(1, 3))
def test_windows_order_every_window_once_an_epoch(lengths, context, epochs):
    shards = numbered_shards(lengths)
    windows = (shards.num_tokens - 1) // context
    loader = TokenLoader(shards, batch_size=1, context=context, seed=9, order="windows")
    expected = Counter(
        tuple(shards.read(number * context, (number + 1) * context + 1).tolist()) for number in range(windows)
    )
    for _ in range(epochs):
        assert Counter(take(loader, windows)) == expected
    assert loader.epoch == epochs


@pytest.mark.parametrize("order", ["documents", "windows"])
def test_shards_on_disk_give_the_stream_of_the_same_shards_in_memory(tmp_path, shards, order):
    texts = [" ".join(map(str, shards.document(number)[:-1])) for number in range(shards.num_documents)]
    write_shards(
        texts,
        lambda batch: [[int(word) for word in text.split()] for text in batch],
        tmp_path,
        split="train",
        vocab_size=VOCAB,
        end_id=END,
        shard_tokens=41,
    )
    arguments = {"batch_size": 3, "context": 8, "seed": 4, "order": order}
    assert take(TokenLoader(TokenShards.open(tmp_path, "train"), **arguments), 12) == take(
        TokenLoader(shards, **arguments), 12
    )


@pytest.mark.parametrize("order", ["documents", "windows"])
def test_epochs_and_seeds_differ_in_order(shards, order):
    def epochs(seed):
        loader = TokenLoader(shards, batch_size=1, context=1, seed=seed, order=order)
        count = shards.num_tokens - (order == "windows")
        return take(loader, count), take(loader, count)

    first, second = epochs(0)
    assert first != second
    assert (first, second) == epochs(0)
    assert first != epochs(1)[0]


def test_a_batch_larger_than_an_epoch_runs_on_into_the_next():
    shards = numbered_shards([2, 3])
    batch = TokenLoader(shards, batch_size=10, context=3, seed=0).next_batch()
    assert Counter(batch.inputs.ravel()[:14].tolist()) == Counter({END: 4, 1: 2, 2: 2, 3: 2, 4: 2, 5: 2})


def test_a_context_longer_than_the_data_is_refused_with_both_numbers():
    shards = numbered_shards([4, 4])
    TokenLoader(shards, batch_size=1, context=9, seed=0)
    with pytest.raises(BadInputError, match=r"context of 10 tokens is longer than the data.* 10 tokens, and 11"):
        TokenLoader(shards, batch_size=1, context=10, seed=0)


def test_incident_6_nemo_rl_2519_swapped_data_is_refused_naming_both():
    old, new = numbered_shards([9, 9]), numbered_shards([9, 9], first=5)
    state = TokenLoader(old, batch_size=1, context=3, seed=0).state()
    with pytest.raises(BadInputError) as caught:
        TokenLoader(new, batch_size=1, context=3, seed=0).restore(state)
    assert old.fingerprint in str(caught.value) and new.fingerprint in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed 1"),
        ({"order": "windows"}, "order 'windows'"),
        ({"context": 4}, "context 4"),
        ({"windows_done": -1}, "no count"),
        ({"windows_done": None}, "no count"),
        ({"windows_done": True}, "no count"),
    ],
)
def test_a_state_of_another_stream_or_a_damaged_one_is_refused(shards, change, message):
    loader = TokenLoader(shards, batch_size=2, context=3, seed=0)
    with pytest.raises(BadInputError, match=message):
        loader.restore({**loader.state(), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"context": 0}, "at least 1"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not one of 2"),
        ({"order": "random"}, "documents, windows"),
    ],
)
def test_bad_arguments_are_refused(shards, change, message):
    with pytest.raises(BadInputError, match=message):
        TokenLoader(shards, **{"batch_size": 2, "context": 3, "seed": 0, **change})


@SETTINGS
@given(lengths=LENGTHS, batch_size=st.integers(1, 4), context=st.integers(1, 40))
def test_a_sequential_pass_has_every_token_as_a_target_once_in_order(lengths, batch_size, context):
    shards = numbered_shards(lengths)
    batches = list(sequential_batches(shards, batch_size=batch_size, context=context))
    inputs = np.concatenate([batch.inputs.ravel() for batch in batches])
    targets = np.concatenate([batch.targets.ravel() for batch in batches])
    raw = shards.read(0, shards.num_tokens)
    assert targets[targets != IGNORED].tolist() == raw.tolist()
    assert inputs[targets != IGNORED].tolist() == [END, *raw[:-1].tolist()]
    assert all(batch.inputs.shape[1] == context and len(batch.inputs) <= batch_size for batch in batches)
