"""The official client against the running server: chat, streams, tools, structured output, embeddings, errors."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from small_server import EMBEDDER, MODEL, Running

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]

USER = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
SUM = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "negate", "parameters": SUM}},
]
PARAMETERS = {"get_weather": WEATHER, "negate": SUM}


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, EMBEDDER]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="there is: small, vectors"):
        client.models.retrieve("gpt-5")


def test_chat_equals_the_model_asked_directly(client: openai.OpenAI, server: Running) -> None:
    """The reply is what plain decoding of the rendered prompt gives."""
    from small_server import small_model

    from llm_journey.generation.decode import generate
    from llm_journey.generation.sampling import SamplingConfig
    from llm_journey.tokenizer.chat_template import encode_chat

    model = small_model()
    ids = encode_chat(model.tokenizer, USER, add_generation_prompt=True)
    plain = generate(model.decoder, ids, SamplingConfig(temperature=0, max_new_tokens=30), stop_ids=model.stop_ids)
    expected = b"".join(server.model.text_bytes(token) for token in plain).decode("utf-8", "replace")
    reply = client.chat.completions.create(model=MODEL, messages=USER, temperature=0, max_tokens=30)
    assert reply.choices[0].message.content == expected
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(ids), len(plain.new_ids))
    assert reply.choices[0].finish_reason == plain.finish_reason


@pytest.mark.parametrize("stop", [None, ["e", "zz"], "\ufffd"])
def test_streamed_is_unstreamed(client: openai.OpenAI, stop: Any) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": USER, "seed": 4, "max_tokens": 60, "n": 3, "stop": stop}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    texts, reasons, tokens = ["", "", ""], [None] * 3, [0] * 3
    usage = None
    stream = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=2
    )
    for event in stream:
        for choice in event.choices:
            assert reasons[choice.index] is None
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
            tokens[choice.index] += len(choice.logprobs.content or ()) if choice.logprobs else 0
        usage = event.usage or usage
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    assert tokens == [len(choice.logprobs.content) for choice in whole.choices]  # type: ignore[union-attr, arg-type]
    if stop is None:
        assert len(set(texts)) == 3  # three seeds, three replies
    else:
        assert not any(part in text for text in texts for part in stop)
        assert "stop" in reasons


def test_logprobs_are_the_models(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=USER, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    for token in logprobs.content:
        assert token.logprob == token.top_logprobs[0].logprob  # greedy takes the likeliest
        values = [each.logprob for each in token.top_logprobs]
        assert values == sorted(values, reverse=True) and values[0] < 0
        assert token.bytes is not None and bytes(token.bytes).decode("utf-8", "replace") == token.token


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "negate"}}])
@pytest.mark.parametrize("seed", range(4))
def test_tool_arguments_validate(client: openai.OpenAI, choice: Any, seed: int) -> None:
    """ollama#10552: whatever the model would rather say."""
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": USER,
        "tools": TOOLS,
        "tool_choice": choice,
        "seed": seed,
        "max_tokens": 120,
    }
    reply = client.chat.completions.create(**asked)
    assert reply.choices[0].finish_reason == "tool_calls"
    (call,) = reply.choices[0].message.tool_calls or ()
    if choice != "required":
        assert call.function.name == "negate"
    jsonschema.validate(json.loads(call.function.arguments), PARAMETERS[call.function.name])
    deltas = [event.choices[0] for event in client.chat.completions.create(**asked, stream=True)]
    (streamed,) = [call for delta in deltas for call in delta.delta.tool_calls or ()]
    assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)
    assert deltas[-1].finish_reason == "tool_calls"


def test_a_conversation_with_calls_and_results(client: openai.OpenAI) -> None:
    """What the client got back goes into the next request as it is."""
    first = client.chat.completions.create(
        model=MODEL, messages=USER, tools=TOOLS, tool_choice="required", seed=1, max_tokens=120
    )
    message = first.choices[0].message
    (call,) = message.tool_calls or ()
    messages = [*USER, message, {"role": "tool", "tool_call_id": call.id, "content": "It rains."}]
    reply = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, max_tokens=5, seed=0)
    assert reply.choices[0].finish_reason in {"length", "stop"}


@pytest.mark.parametrize("seed", range(4))
def test_structured_output(client: openai.OpenAI, seed: int) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}
    reply = client.chat.completions.create(model=MODEL, messages=USER, response_format=shape, seed=seed, max_tokens=120)
    assert reply.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(reply.choices[0].message.content or ""), WEATHER)
    choice = {"structured_outputs": {"choice": ["yes", "no"]}}
    said = client.chat.completions.create(model=MODEL, messages=USER, extra_body=choice, seed=seed).choices[0]
    assert said.message.content in {"yes", "no"}


def test_a_hostile_regex_is_refused_and_the_next_request_succeeds(client: openai.OpenAI) -> None:
    """vllm#19270: `foo**` killed the server."""
    for regex in ("foo**", "a{1000000000}", "("):
        with pytest.raises(openai.BadRequestError, match="regex"):
            client.chat.completions.create(
                model=MODEL, messages=USER, extra_body={"structured_outputs": {"regex": regex}}
            )
    answer = client.chat.completions.create(
        model=MODEL, messages=USER, extra_body={"structured_outputs": {"regex": "[0-9]{3}"}}
    )
    assert (answer.choices[0].message.content or "").isdigit()


def test_completions(client: openai.OpenAI, server: Running) -> None:
    ids = server.model.tokenizer.frame(server.model.tokenizer.encode("The river"))
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 8, "temperature": 0}
    by_text = client.completions.create(prompt=["The river", "Paris"], **asked)
    by_ids = client.completions.create(prompt=ids, **asked)
    assert [choice.index for choice in by_text.choices] == [0, 1]
    assert by_text.choices[0].text == by_ids.choices[0].text != by_text.choices[1].text
    streamed = client.completions.create(prompt=ids, stream=True, **asked)
    assert "".join(event.choices[0].text for event in streamed) == by_ids.choices[0].text


def test_embeddings(client: openai.OpenAI, server: Running) -> None:
    """In both encodings; the client asks for base64 by itself."""
    import numpy as np

    texts = ["the river", "old stone"]
    packed = client.embeddings.create(model=EMBEDDER, input=texts)
    plain = client.embeddings.create(model=EMBEDDER, input=texts, encoding_format="float")
    direct = server.service.embedders[EMBEDDER].embed(texts)
    for answer in (packed, plain):
        np.testing.assert_array_equal(np.array([item.embedding for item in answer.data], dtype=np.float32), direct)
    with pytest.raises(openai.BadRequestError, match=r"text 1 has \d+ tokens, vectors reads 16"):
        client.embeddings.create(model=EMBEDDER, input=["the", "river " * 40])


def test_a_long_prompt_is_refused_with_both_counts(client: openai.OpenAI) -> None:
    """ollama#17889: a prompt longer than the context was cut in silence."""
    with pytest.raises(openai.BadRequestError, match=r"the prompt has \d+ tokens, the model's context holds 1024"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "river " * 1200}])
    with pytest.raises(openai.BadRequestError, match=r"max_tokens is 300, this server gives at most 256"):
        client.chat.completions.create(model=MODEL, messages=USER, max_tokens=300)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "gpt-5"}, "no model 'gpt-5'"),
        ({"model": EMBEDDER}, "no model 'vectors' that writes text"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "half \ud83d"}]}, "messages.0.content"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"n": 9}, "9 answers are asked for"),
        ({"tempo": 1}, "tempo"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "fly"}}}, "none of the tools"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "king"}}}},
            "schema",
        ),
        ({"stop": ["x"] * 9}, "stop"),
    ],
)
def test_wrong_requests_are_told_why(client: openai.OpenAI, changed: dict[str, Any], said: str) -> None:
    import httpx

    asked = {"model": MODEL, "messages": USER, "max_tokens": 4} | changed
    text = json.dumps(asked)  # the client itself refuses half a surrogate pair
    answer = httpx.post(
        f"{client.base_url}chat/completions", content=text, headers={"content-type": "application/json"}
    )
    assert answer.status_code in {400, 404}
    assert set(answer.json()) == {"error"} and said in answer.json()["error"]["message"]
    assert "\n" not in answer.json()["error"]["message"]
