"""The three chat models are one: in process, over HTTP from our own server; and how a tool call is told from words."""

import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_server import EMBEDDER, MODEL, Running, small_served
from test_openai_client import PARAMETERS, TOOLS, USER

from llm_journey.app.chat_model import LocalChatModel
from llm_journey.client.http import Address, Connection, HttpChatModel, HttpEmbedder
from llm_journey.client.protocol import ChatModel, ChatSampling, collect
from llm_journey.core.errors import BadInputError
from llm_journey.generation.constrained import make_constraint
from llm_journey.serving.tool_text import MARK, Closers, ReplyReader, ToolGate, call_schema, read_piece

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]
SAMPLING = ChatSampling(temperature=0.9, seed=2, max_tokens=60)


@pytest.fixture(scope="module")
def local() -> Iterator[LocalChatModel]:
    found = LocalChatModel(small_served(), max_new_tokens=256)
    yield found
    found.close()


@pytest.fixture
def remote(server: Running) -> HttpChatModel:
    return HttpChatModel(MODEL, Connection(Address(url=f"{server.url}/v1", retries=0)))


@pytest.mark.parametrize(
    "options", [{}, {"tools": TOOLS, "tool_choice": "required"}, {"response_format": {"type": "json_object"}}]
)
def test_in_process_is_over_http(local: LocalChatModel, remote: HttpChatModel, options: dict[str, Any]) -> None:
    models: list[ChatModel] = [local, remote]
    replies = [model.complete(USER, sampling=SAMPLING, **options) for model in models]
    replies += [collect(model.stream(USER, sampling=SAMPLING, **options)) for model in models]
    assert len({reply.text for reply in replies}) == 1
    assert len({reply.finish_reason for reply in replies}) == 1
    assert len({reply.usage for reply in replies}) == 1 and replies[0].usage is not None
    assert {len(reply.tool_calls) for reply in replies} == {1 if "tools" in options else 0}
    assert len({call.arguments for reply in replies for call in reply.tool_calls}) <= 1
    assert replies[0].text or replies[0].tool_calls


def test_errors_are_the_same_kind(local: LocalChatModel, remote: HttpChatModel) -> None:
    for model in (local, remote):
        with pytest.raises(BadInputError, match=r"has \d+ tokens, the model's context holds 1024"):
            model.complete([{"role": "user", "content": "river " * 1200}])
        with pytest.raises(BadInputError, match=r"messages\.0\.role"):
            model.complete([{"role": "king", "content": "x"}])


def test_leaving_a_stream_lets_the_answer_go(local: LocalChatModel) -> None:
    engine = local.served.worker.engine
    stream = local.stream(USER, response_format={"type": "json_object"}, sampling=ChatSampling(max_tokens=250, seed=0))
    next(stream)
    stream.close()
    local.served.worker.call(lambda: None)
    assert not engine.busy and engine.pool.num_free == engine.pool.num_blocks


def test_the_embedder_over_http(server: Running) -> None:
    embedder = HttpEmbedder(EMBEDDER, Connection(Address(url=f"{server.url}/v1")), batch=2)
    texts = ["the river", "old stone", "a city"]
    np.testing.assert_array_equal(embedder.embed(texts), server.service.embedders[EMBEDDER].embed(texts))


class _Fixed:
    """A call that must be exactly these bytes, byte tokens only."""

    def __init__(self, tokenizer: Any, data: bytes) -> None:
        self._ids = [tokenizer.vocabulary[bytes([value])] for value in data]
        self._size = tokenizer.vocab_size
        self.tokens_left: int | None = None

    def limit(self, tokens_left: int) -> None:
        self.tokens_left = tokens_left

    def allowed(self) -> torch.Tensor:
        allowed_v = torch.zeros(self._size, dtype=torch.bool)
        allowed_v[self._ids[0]] = True
        return allowed_v

    def accept(self, token: int) -> None:
        assert token == self._ids.pop(0)

    @property
    def done(self) -> bool:
        return not self._ids


@given(
    st.lists(
        st.sampled_from(["<tool", "_call", ">", "<", "tool_call>", MARK, "x", "<tool_", "call>x", ">{"]), max_size=8
    )
)
def test_the_gate_opens_at_the_mark_and_nowhere_else(local_parts: list[str]) -> None:
    """Whatever tokens the words come in: what may come next is everything that does not run past a mark's end."""
    served = _SERVED
    gate = ToolGate(served.tokenizer, served.closers, _Fixed(served.tokenizer, b"{}"), max_new_tokens=99)
    written = b""
    for token in served.tokenizer.encode("".join(local_parts)):
        allowed_v = gate.allowed()
        data = served.tokenizer.id_to_bytes(token)
        past = (written + data).find(MARK.encode()) >= 0 and not (written + data).endswith(MARK.encode())
        if MARK.encode() in written:
            assert int(allowed_v.sum()) == 1
            return
        assert bool(allowed_v[token]) == (not past)
        if past:
            return
        gate.accept(token)
        written += data
        assert not gate.done


_SERVED = small_served()


def test_tokens_that_run_past_the_mark_wait_for_it() -> None:
    closers = Closers(
        ((1, b">"), (2, b">{"), (3, b"_call>"), (4, b"_call>\n{"), (5, b"<tool_call>x"), (6, b"a > b")), 8
    )
    refused = {
        count: {token for token in range(8) if not bool(closers.mask(count)[token])} for count in range(len(MARK))
    }
    assert refused[len(MARK) - 1] == {2, 5}  # "<tool_call" stands
    assert refused[len("<tool")] == {4, 5}
    assert refused[0] == {5}


def test_the_gate_ends_with_the_call() -> None:
    call = _Fixed(_SERVED.tokenizer, b"{}")
    gate = ToolGate(_SERVED.tokenizer, _SERVED.closers, call, max_new_tokens=40)
    for value in f"well {MARK}{{}}".encode():
        assert not gate.done and call.tokens_left in (None, 40 - len(f"well {MARK}"))
        gate.accept(_SERVED.tokenizer.vocabulary[bytes([value])])
    assert gate.done and call.tokens_left is not None


@pytest.mark.parametrize("tokens", [90, 150, 300])
def test_a_call_behind_words_comes_to_its_end_in_time(tokens: int) -> None:
    """Of random tokens: as many strings and lists as there may be, and yet a whole call within what is left."""
    parameters = {"type": "object", "properties": {"a": {"type": "array", "items": {}}}, "required": ["a"]}
    schema = call_schema([{"function": {"name": "f", "parameters": parameters}}])
    for seed in range(5):
        draw, written = random.Random(seed), []
        call = make_constraint(_SERVED.tokenizer, schema=schema, stop_ids=_SERVED.stop_ids)
        gate = ToolGate(_SERVED.tokenizer, _SERVED.closers, call, max_new_tokens=tokens)
        for value in f"well {MARK}".encode():
            gate.accept(_SERVED.tokenizer.vocabulary[bytes([value])])
        while not gate.done and len(written) < tokens - len(f"well {MARK}"):
            token = draw.choice(gate.allowed().nonzero().flatten().tolist())
            gate.accept(token)
            if token in _SERVED.stop_ids:
                break
            written.append(token)
        jsonschema.validate(json.loads(_SERVED.tokenizer.decode(written)), schema)


@given(st.text(alphabet="<tol_cal>x", max_size=30), st.integers(1, 5), st.booleans())
def test_words_and_call_however_the_text_is_cut(before: str, size: int, call: bool) -> None:
    before = before.replace(MARK, "")
    text = before + (f'{MARK}\n{{"name": "f", "arguments": {{"a": 1}}}}' if call else "")
    reader = ReplyReader(tools=True, begun=False)
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    deltas = [delta for part in parts for delta in read_piece(reader, part, None)]
    deltas += read_piece(reader, "", "stop")
    reply = collect(deltas)
    assert reply.text == text.partition(MARK)[0]
    assert [(each.name, each.arguments) for each in reply.tool_calls] == ([("f", '{"a": 1}')] if call else [])
    assert reply.finish_reason == ("tool_calls" if call else "stop")


def test_a_call_that_was_cut_is_no_call() -> None:
    reader = ReplyReader(tools=True, begun=True)
    reply = collect([*read_piece(reader, '{"name": "f", "argu', None), *read_piece(reader, "", "length")])
    assert (reply.text, reply.tool_calls, reply.finish_reason) == ("", (), "length")


@pytest.mark.parametrize("count", [1, 2])
def test_references_of_a_tool_follow_it(count: int) -> None:
    schema = call_schema(TOOLS[:count])
    right = {"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}
    jsonschema.validate(right, schema)
    for wrong in (
        {**right, "arguments": {"city": "Paris", "days": 30}},
        {**right, "arguments": {"city": "Oslo", "days": 3}},
        {**right, "name": "negate"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_auto_may_answer_or_call(local: LocalChatModel) -> None:
    """A prompt that ends in the mark's beginning, so that even this model calls; and one where it only talks."""
    reply = local.complete(USER, tools=TOOLS, sampling=ChatSampling(seed=1, max_tokens=20))
    assert reply.finish_reason in {"stop", "length"} and MARK not in reply.text
    for call in reply.tool_calls:
        jsonschema.validate(json.loads(call.arguments), PARAMETERS[call.name])
