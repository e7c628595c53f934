"""Padding, masks, batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.batching import IGNORED, from_windows, pad_batch, pad_documents

SEQUENCES = st.lists(st.lists(st.integers(0, 500), max_size=12), min_size=1, max_size=8)


@given(sequences=SEQUENCES, extra=st.integers(0, 5), side=st.sampled_from(["right", "left"]))
def test_mask_marks_exactly_the_tokens_and_padding_is_on_one_side(sequences, extra, side):
    length = max(map(len, sequences)) + extra
    ids, mask = pad_batch(sequences, pad_id=501, length=length, side=side)
    assert ids.shape == mask.shape == (len(sequences), length)
    assert ids.dtype == np.int64 and mask.dtype == np.bool_
    for row, row_mask, sequence in zip(ids, mask, sequences, strict=True):
        assert row[row_mask].tolist() == sequence
        assert np.all(row[~row_mask] == 501)
        padding = length - len(sequence)
        empty = row_mask[:padding] if side == "left" else row_mask[length - padding :]
        assert not empty.any()


def test_without_a_length_the_longest_sequence_gives_it():
    ids, mask = pad_batch([[1, 2, 3], [4]], pad_id=0, side="left")
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[True] * 3, [False, False, True]]


def test_a_sequence_longer_than_the_length_is_refused_with_both_numbers():
    with pytest.raises(BadInputError, match=r"5 tokens does not fit the length 4"):
        pad_batch([[1, 2, 3, 4, 5]], pad_id=0, length=4)


def test_no_sequence_and_an_unknown_side_are_refused():
    with pytest.raises(BadInputError, match="at least one"):
        pad_batch([], pad_id=0)
    with pytest.raises(BadInputError, match="left, right"):
        pad_batch([[1]], pad_id=0, side="middle")


def test_windows_become_inputs_and_the_tokens_after_them():
    batch = from_windows(np.array([[1, 2, 3], [3, 4, 5]]))
    assert batch.inputs.tolist() == [[1, 2], [3, 4]]
    assert batch.targets.tolist() == [[2, 3], [4, 5]]
    assert batch.num_targets() == 4


@given(documents=st.lists(st.lists(st.integers(0, 500), min_size=1, max_size=12), min_size=1, max_size=8))
def test_with_a_start_token_every_token_of_a_padded_document_is_a_target_once(documents):
    batch = pad_documents([np.array(document) for document in documents], pad_id=501, start_id=502)
    for inputs, targets, document in zip(batch.inputs, batch.targets, documents, strict=True):
        counted = targets != IGNORED
        assert targets[counted].tolist() == document
        assert inputs[counted].tolist() == [502, *document[:-1]]
        assert np.all(inputs[~counted] == 501)


def test_without_a_start_token_the_first_token_is_no_target():
    batch = pad_documents([np.array([7, 8, 9]), np.array([5])], pad_id=0)
    assert batch.inputs.tolist() == [[7, 8], [0, 0]]
    assert batch.targets.tolist() == [[8, 9], [IGNORED, IGNORED]]
