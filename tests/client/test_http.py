"""The HTTP client against transports that fail at will; tests/serving has it against our own server."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from llm_journey.client.http import Address, Connection, HttpChatModel, HttpEmbedder
from llm_journey.client.protocol import ChatReply, ChatSampling, ToolCall, Usage, collect
from llm_journey.core.errors import BadInputError, JourneyError

USER = [{"role": "user", "content": "Hi"}]
ANSWER = {
    "choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}
Answers = list[httpx.Response | Exception]


class Server(httpx.BaseTransport):
    """Gives its answers in turn and keeps the requests."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers, self.requests = list(answers), []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers[len(self.requests) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


def model(server: httpx.BaseTransport, retries: int = 3, pauses: list[float] | None = None) -> HttpChatModel:
    sleep: Callable[[float], None] = (pauses if pauses is not None else []).append
    return HttpChatModel("m", Connection(Address(url="http://a/v1", retries=retries), transport=server, sleep=sleep))


def failure(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": f"no {status}"}}, headers=headers)


def events(*lines: str) -> httpx.Response:
    text = "".join(f"data: {line}\r\n\r\n" for line in lines).encode()

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(text), 7):  # borders anywhere
            yield text[start : start + 7]

    return httpx.Response(200, stream=_Stream(chunks()))


class _Stream(httpx.SyncByteStream):
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks


def chunk(delta: dict[str, Any], reason: str | None = None) -> str:
    return json.dumps({"choices": [{"delta": delta, "finish_reason": reason}]}, ensure_ascii=False)


def test_a_reply_and_what_was_asked() -> None:
    server = Server(httpx.Response(200, json=ANSWER))
    reply = model(server).complete(USER, sampling=ChatSampling(temperature=0, stop=["x"]))
    assert reply == ChatReply("Hello", (), "stop", Usage(3, 1))
    body = json.loads(server.requests[0].content)
    assert body == {"model": "m", "messages": USER, "temperature": 0, "stop": ["x"]}


@pytest.mark.parametrize(
    "passing", [failure(429), failure(503), failure(500), httpx.ConnectError("x"), httpx.ReadTimeout("x")]
)
def test_what_passes_is_tried_again(passing: httpx.Response | Exception) -> None:
    pauses: list[float] = []
    server = Server(passing, passing, httpx.Response(200, json=ANSWER))
    assert model(server, pauses=pauses).complete(USER).text == "Hello"
    assert len(pauses) == 2 and 0.25 <= pauses[0] <= 0.5 <= pauses[1] <= 1


def test_retry_after_is_obeyed_within_reason() -> None:
    pauses: list[float] = []
    server = Server(
        failure(429, **{"retry-after": "7"}), failure(429, **{"retry-after": "1e9"}), httpx.Response(200, json=ANSWER)
    )
    model(server, pauses=pauses).complete(USER)
    assert pauses == [7, 30]


def test_what_does_not_pass_is_told_at_once() -> None:
    for status, kind in ((400, BadInputError), (401, BadInputError), (404, BadInputError), (501, JourneyError)):
        server = Server(failure(status))
        with pytest.raises(kind, match=f"answered {status}: no {status}"):
            model(server).complete(USER)
        assert len(server.requests) == 1
    with pytest.raises(JourneyError, match=r"cannot be reached \(ConnectError\), 2 times"):
        model(Server(httpx.ConnectError("x"), httpx.ConnectError("x")), retries=1).complete(USER)


def test_a_redirect_does_not_carry_the_key_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = Server(httpx.Response(302, headers={"location": "http://evil.example/"}))
    connection = Connection(Address(url="http://a/v1"), transport=server)
    with pytest.raises(JourneyError, match="answered 302") as caught:
        HttpChatModel("m", connection).complete(USER)
    assert server.requests[0].headers["authorization"] == "Bearer sk-secret"
    assert "secret" not in f"{caught.value} {connection} {connection.address} {connection.__dict__}"


def test_a_stream_makes_the_same_reply() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a"'}}
    more = {"index": 0, "function": {"arguments": ": 1}"}}
    usage = json.dumps({"choices": [], "usage": ANSWER["usage"]})
    lines = [chunk({"role": "assistant", "content": ""}), chunk({"content": "é 🎉"}), chunk({"content": " yes"})]
    calls = [chunk({"tool_calls": [call]}), chunk({"tool_calls": [more]}), chunk({}, "tool_calls"), usage]
    server = Server(events(*lines, *calls, "[DONE]"))
    reply = collect(model(server).stream(USER))
    assert reply == ChatReply("é 🎉 yes", (ToolCall("c", "f", '{"a": 1}'),), "tool_calls", Usage(3, 1))
    assert json.loads(server.requests[0].content)["stream_options"] == {"include_usage": True}


def test_a_stream_that_breaks_off_is_an_error_and_not_tried_again() -> None:
    for lines, said in (
        ([chunk({"content": "a"})], "broke off before its end"),
        ([chunk({"content": "a"}), '{"error": {"message": "out of order"}}'], "out of order"),
        (["[1]"], "no object"),
        (['{"choices": [7]}'], "not what OpenAI's would be"),
    ):
        server = Server(events(*lines))
        with pytest.raises(JourneyError, match=said):
            list(model(server).stream(USER))
        assert len(server.requests) == 1


@pytest.mark.parametrize("answer", [b"[]", b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{"message": 3}]}'])
def test_answers_that_are_none(answer: bytes) -> None:
    with pytest.raises(JourneyError, match="http://a/v1"):
        model(Server(httpx.Response(200, content=answer))).complete(USER)


def test_embeddings_come_in_the_order_of_the_texts() -> None:
    data = [{"index": 1, "embedding": [3.0, 4.0]}, {"index": 0, "embedding": [1.0, 2.0]}]
    server = Server(httpx.Response(200, json={"data": data}), httpx.Response(200, json={"data": data[1:]}))
    embedder = HttpEmbedder("m", Connection(Address(url="http://a/v1"), transport=server), batch=2)
    np.testing.assert_array_equal(embedder.embed(["a", "b", "c"]), [[1, 2], [3, 4], [1, 2]])
    short = Server(httpx.Response(200, json={"data": data[:1]}))
    with pytest.raises(JourneyError, match="one vector for each text"):
        HttpEmbedder("m", Connection(Address(url="http://a/v1"), transport=short)).embed(["a", "b"])


@pytest.mark.parametrize("wrong", [{"content": "\ud800"}, {"content": float("nan")}, {"content": {1, 2}}])
def test_a_request_that_is_no_json_is_bad_input(wrong: dict[str, Any]) -> None:
    model = HttpChatModel("m", Connection(Address(url="http://localhost/v1"), transport=httpx.MockTransport(fail)))
    with pytest.raises(BadInputError, match="cannot be written as JSON"):
        model.complete([{"role": "user", **wrong}])  # type: ignore[list-item]


def fail(_: httpx.Request) -> httpx.Response:
    raise AssertionError("nothing is sent")


@pytest.mark.parametrize("key", ["a\nb", "schlüssel"])
def test_a_key_that_is_none(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(BadInputError, match="printable ASCII") as caught:
        Connection(Address(url="http://localhost/v1"))
    assert key not in str(caught.value)


def test_an_address_is_checked() -> None:
    with pytest.raises(BadInputError, match="no address"):
        Connection(Address(url="http://[::1"))
    with pytest.raises(BadInputError, match="begins with http"):
        Address(url="file:///etc/passwd")
