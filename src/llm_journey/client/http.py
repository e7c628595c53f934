"""A chat model and an embedder behind any OpenAI-compatible address: our own server, llama.cpp's, vLLM, a provider's.

What can pass (429, 5xx, no connection) is tried again with growing, jittered pauses, or as long as Retry-After says;
what cannot (400, 401, 404) is told at once with the server's own words. A stream that has begun is never tried again.
The key comes from an environment variable and stands in no message, no log and no repr. Needs the extra `client`.
"""

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llm_journey.client.protocol import (
    ChatDelta,
    ChatReply,
    ChatSampling,
    Message,
    ResponseFormat,
    Tool,
    ToolCall,
    ToolChoice,
    Usage,
)
from llm_journey.client.sse import read_events
from llm_journey.core.errors import BadInputError, JourneyError

if TYPE_CHECKING:
    import httpx
    import numpy as np
    import numpy.typing as npt

KEY_VARIABLE = "OPENAI_API_KEY"
_AGAIN = {408, 409, 429, 500, 502, 503, 504}
_LONGEST_PAUSE = 30.0
_MAX_ERROR_CHARACTERS = 300
_MAX_TOOL_CALLS = 128
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where and how patiently. url: up to and with /v1. key_variable: the environment variable that holds the key (an
    unset one means no key). seconds: the longest wait for the next bytes. retries: further tries after the first."""

    url: str
    key_variable: str = KEY_VARIABLE
    seconds: float = 120.0
    connect_seconds: float = 10.0
    retries: int = 3

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise BadInputError(f"{self.url!r} is no address of a server; it begins with http:// or https://")
        if self.retries < 0 or min(self.seconds, self.connect_seconds) <= 0:
            raise BadInputError("retries must be at least 0, and the seconds above 0")


class Connection:
    """Requests to an address. transport, sleep: stand-ins for the network and the clock in tests."""

    def __init__(
        self,
        address: Address,
        *,
        transport: "httpx.BaseTransport | None" = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        library = _httpx()
        self.address, self._sleep = address, sleep
        key = os.environ.get(address.key_variable, "")
        if not (key.isascii() and key.isprintable()):
            raise BadInputError(f"the key in {address.key_variable} holds what no key does: it must be printable ASCII")
        try:
            self._client = library.Client(
                base_url=address.url.rstrip("/"),
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=library.Timeout(address.seconds, connect=address.connect_seconds),
                transport=transport,
                follow_redirects=False,  # a redirect would carry the key elsewhere
            )
        except (library.InvalidURL, ValueError) as error:
            raise BadInputError(f"{address.url!r} is no address of a server: {error}") from None

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON object that the address answers with."""
        library = _httpx()
        with self._response(path, body) as response:
            try:
                data: bytes = response.read()
            except library.HTTPError as error:
                raise JourneyError(f"{self.address.url}: the answer broke off ({type(error).__name__})") from None
            return _object(data, self.address.url)

    @contextmanager
    def events(self, path: str, body: dict[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        """The JSON objects of an event stream, as they come. Leaving the block lets the answer go."""
        with self._response(path, body | {"stream": True}) as response:
            yield self._events(response)

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._client.close()

    def _events(self, response: "httpx.Response") -> Iterator[dict[str, Any]]:
        library = _httpx()
        ended = False
        try:
            for data in read_events(response.iter_bytes()):
                if data == "[DONE]":
                    ended = True
                    break
                event = _object(data, self.address.url)
                if "error" in event:
                    raise JourneyError(f"{self.address.url}: {_reason(event)}")
                yield event
        except library.HTTPError as error:
            raise JourneyError(f"{self.address.url}: the answer broke off ({type(error).__name__})") from None
        if not ended:
            raise JourneyError(f"{self.address.url}: the answer broke off before its end")

    @contextmanager
    def _response(self, path: str, body: dict[str, Any]) -> Iterator["httpx.Response"]:
        response = self._open(path, body)
        try:
            yield response
        finally:
            response.close()

    def _open(self, path: str, body: dict[str, Any]) -> "httpx.Response":
        """The first response that is no failure of the moment; its body is still to be read."""
        library = _httpx()
        request_error: str = ""
        try:
            data = json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise BadInputError(f"the request cannot be written as JSON: {error}") from None
        for attempt in range(self.address.retries + 1):
            pause = min(2**attempt * 0.5, _LONGEST_PAUSE) * random.uniform(0.5, 1)
            try:
                request = self._client.build_request("POST", path, content=data, headers=_JSON)
                response: httpx.Response = self._client.send(request, stream=True)
            except library.TransportError as error:
                request_error = f"cannot be reached ({type(error).__name__})"
            else:
                if response.status_code < 300:
                    return response
                request_error = self._refusal(response)
                pause = _retry_after(response) or pause
            if attempt < self.address.retries:
                self._sleep(pause)
        raise JourneyError(f"{self.address.url}: {request_error}, {self.address.retries + 1} times")

    def _refusal(self, response: "httpx.Response") -> str:
        """Why a response is a failure of the moment. Raises for one that will not pass."""
        try:
            said = _reason(_object(response.read(), self.address.url))
        except (JourneyError, _httpx().HTTPError):
            said = "no reason given"
        finally:
            response.close()
        message = f"answered {response.status_code}: {said}"
        if response.status_code in _AGAIN:
            return message
        kind = BadInputError if 400 <= response.status_code < 500 else JourneyError
        raise kind(f"{self.address.url}: {message}")


@dataclass
class HttpChatModel:
    """A chat model behind an address; `client.protocol.ChatModel` says what its methods do."""

    name: str
    connection: Connection

    def complete(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        tool_choice: ToolChoice = "auto",
        response_format: ResponseFormat | None = None,
        sampling: ChatSampling | None = None,
    ) -> ChatReply:
        """The reply to a conversation."""
        body = self._body(messages, tools, tool_choice, response_format, sampling)
        answer = self.connection.post("/chat/completions", body)
        with _well_formed(self.connection.address.url):
            choice = answer["choices"][0]
            message = choice["message"]
            calls = tuple(_tool_call(call) for call in message.get("tool_calls") or ())
            return ChatReply(message.get("content") or "", calls, choice.get("finish_reason"), _usage(answer))

    def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        tool_choice: ToolChoice = "auto",
        response_format: ResponseFormat | None = None,
        sampling: ChatSampling | None = None,
    ) -> Iterator[ChatDelta]:
        """The reply in pieces. Closing the iterator lets the answer go, which stops the server."""
        body = self._body(messages, tools, tool_choice, response_format, sampling)
        body["stream_options"] = {"include_usage": True}
        calls = _CallPieces()
        with self.connection.events("/chat/completions", body) as events, _well_formed(self.connection.address.url):
            for event in events:
                choice = event["choices"][0] if event.get("choices") else {}
                delta = choice.get("delta") or {}
                calls.add(delta.get("tool_calls") or ())
                finish_reason = choice.get("finish_reason")
                if finish_reason is not None:
                    for call in calls.whole():
                        yield ChatDelta(tool_call=call)
                piece = ChatDelta(delta.get("content") or "", None, finish_reason, _usage(event))
                if piece != ChatDelta():
                    yield piece

    def _body(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        tool_choice: ToolChoice,
        response_format: ResponseFormat | None,
        sampling: ChatSampling | None,
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.name, "messages": [dict(message) for message in messages]}
        if tools:
            body |= {"tools": [dict(tool) for tool in tools], "tool_choice": tool_choice}
        if response_format is not None:
            body["response_format"] = dict(response_format)
        return body | (sampling or ChatSampling()).given()


@dataclass
class HttpEmbedder:
    """An embedder behind an address. batch: texts a request."""

    name: str
    connection: Connection
    batch: int = 64

    def embed(self, texts: Sequence[str]) -> "npt.NDArray[np.float32]":
        """(N, D) vectors of the texts, in their order."""
        import numpy as np

        rows: list[list[float]] = []
        for start in range(0, len(texts), self.batch):
            part = list(texts[start : start + self.batch])
            body = {"model": self.name, "input": part, "encoding_format": "float"}
            answer = self.connection.post("/embeddings", body)
            with _well_formed(self.connection.address.url):
                found = sorted(answer["data"], key=lambda item: int(item["index"]))
                if [item["index"] for item in found] != list(range(len(part))):
                    raise ValueError("it does not hold one vector for each text")
                rows += [item["embedding"] for item in found]
        with _well_formed(self.connection.address.url):
            return np.array(rows, dtype=np.float32) if rows else np.zeros((0, 0), dtype=np.float32)


@dataclass
class _CallPieces:
    """Tool calls whose names and arguments come in pieces, by their index."""

    parts: dict[int, dict[str, str]] = field(default_factory=dict)

    def add(self, deltas: Sequence[dict[str, Any]]) -> None:
        for delta in deltas:
            index = int(delta.get("index", 0))
            if index not in self.parts and len(self.parts) >= _MAX_TOOL_CALLS:
                raise ValueError("it holds too many tool calls")
            part = self.parts.setdefault(index, {"id": "", "name": "", "arguments": ""})
            function = delta.get("function") or {}
            part["id"] = delta.get("id") or part["id"]
            part["name"] += function.get("name") or ""
            part["arguments"] += function.get("arguments") or ""

    def whole(self) -> list[ToolCall]:
        return [ToolCall(**self.parts[index]) for index in sorted(self.parts)]


def _tool_call(value: dict[str, Any]) -> ToolCall:
    return ToolCall(str(value["id"]), str(value["function"]["name"]), str(value["function"]["arguments"]))


def _usage(answer: dict[str, Any]) -> Usage | None:
    usage = answer.get("usage")
    return None if not usage else Usage(int(usage["prompt_tokens"]), int(usage.get("completion_tokens", 0)))


@contextmanager
def _well_formed(url: str) -> Iterator[None]:
    """An answer that is no chat completion becomes a JourneyError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise JourneyError(
            f"{url}: the answer is not what OpenAI's would be ({type(error).__name__}: {error})"
        ) from None


def _object(data: bytes | str, url: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise JourneyError(f"{url}: answered something that is no JSON") from None
    if not isinstance(value, dict):
        raise JourneyError(f"{url}: answered JSON that is no object")
    return value


def _reason(answer: dict[str, Any]) -> str:
    error = answer.get("error")
    said = error.get("message") if isinstance(error, dict) else error
    text = " ".join(str(said or answer.get("message") or "no reason given").split())
    return text if len(text) <= _MAX_ERROR_CHARACTERS else text[:_MAX_ERROR_CHARACTERS] + "..."


def _retry_after(response: "httpx.Response") -> float | None:
    """Seconds that the server asks to wait, within reason."""
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(seconds, _LONGEST_PAUSE) if seconds >= 0 else None


def _httpx() -> Any:
    try:
        import httpx
    except ModuleNotFoundError:
        raise BadInputError(
            "a model behind an address needs the package httpx: pip install 'llm-journey[client]'"
        ) from None
    return httpx
