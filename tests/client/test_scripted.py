"""The fakes keep to the protocol."""

import numpy as np
import pytest

from llm_journey.client.protocol import ChatReply, ChatSampling, ToolCall, collect
from llm_journey.client.scripted import HashedEmbedder, ScriptedChatModel
from llm_journey.core.errors import BadInputError, JourneyError

USER = [{"role": "user", "content": "Hi"}]


def test_answers_in_order_and_what_was_asked() -> None:
    call = ChatReply("", (ToolCall("1", "f", "{}"),), "tool_calls")
    model = ScriptedChatModel([" two  words\n", call, lambda messages: messages[-1]["content"], BadInputError("no")])
    assert model.complete(USER).text == " two  words\n"
    assert collect(model.stream(USER)) == call
    assert model.complete(USER, sampling=ChatSampling(seed=3)).text == "Hi"
    with pytest.raises(BadInputError, match="no"):
        model.complete(USER)
    with pytest.raises(JourneyError, match="holds 4 answers"):
        model.complete(USER)
    assert model.asked[2].sampling.seed == 3


def test_a_stream_is_more_than_one_piece() -> None:
    assert len([delta for delta in ScriptedChatModel(["one two three"]).stream(USER) if delta.text]) == 3


def test_equal_words_near_vectors() -> None:
    vectors = HashedEmbedder().embed(["the old river", "The river old", "a new bridge", ""])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0], atol=1e-6)
    assert vectors[0] @ vectors[1] > 0.99 > 0.5 > vectors[0] @ vectors[2]
