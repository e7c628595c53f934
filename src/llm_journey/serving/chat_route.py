"""POST /v1/chat/completions: orders in, one answer or a stream of events out."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from llm_journey.client.protocol import ChatDelta, ToolCall
from llm_journey.generation.engine import Token
from llm_journey.serving.answers import AsyncAnswers
from llm_journey.serving.events import as_event, text_frame
from llm_journey.serving.orders import ChatOrders
from llm_journey.serving.requests import ChatRequest
from llm_journey.serving.responses import (
    CallAnswer,
    CallDelta,
    ChatAnswer,
    ChatChoice,
    ChatChoiceDelta,
    ChatEvent,
    ChatLogprobs,
    FunctionAnswer,
    MessageAnswer,
    MessageDelta,
    TokenLogprob,
    TopLogprob,
    UsageAnswer,
)
from llm_journey.serving.tool_text import read_piece
from llm_journey.tokenizer import Tokenizer


async def whole_chat(
    answers: AsyncAnswers, wanted: ChatOrders, tokenizer: Tokenizer, *, answer_id: str, created: int, model: str
) -> ChatAnswer:
    """The answer once it is whole."""
    readers = [wanted.reader() for _ in wanted.orders]
    texts: list[list[str]] = [[] for _ in readers]
    calls: list[list[ToolCall]] = [[] for _ in readers]
    tokens: list[list[Token]] = [[] for _ in readers]
    reasons: list[Any] = ["stop"] * len(readers)
    async for piece in answers:
        tokens[piece.index] += piece.tokens
        for delta in read_piece(readers[piece.index], piece.text, piece.ended):
            texts[piece.index].append(delta.text)
            calls[piece.index] += [delta.tool_call] if delta.tool_call else []
            reasons[piece.index] = delta.finish_reason or reasons[piece.index]
    choices = [
        ChatChoice(
            index=index,
            message=MessageAnswer(
                content="".join(texts[index]) or (None if calls[index] else ""),
                tool_calls=[CallAnswer(id=call.id, function=_function(call)) for call in calls[index]] or None,
            ),
            logprobs=_logprobs(tokenizer, tokens[index]) if order.logprobs is not None else None,
            finish_reason=reasons[index],
        )
        for index, order in enumerate(wanted.orders)
    ]
    usage = usage_of(len(wanted.orders[0].ids), answers.num_tokens)
    return ChatAnswer(id=answer_id, created=created, model=model, choices=choices, usage=usage)


async def chat_events(
    answers: AsyncAnswers,
    wanted: ChatOrders,
    tokenizer: Tokenizer,
    request: ChatRequest,
    *,
    answer_id: str,
    created: int,
    model: str,
) -> AsyncIterator[bytes]:
    """The answer's events: first each answer's role, then what comes, then the counts where they were asked for."""
    readers = [wanted.reader() for _ in wanted.orders]

    def event(choices: list[ChatChoiceDelta], usage: UsageAnswer | None = None) -> ChatEvent:
        return ChatEvent(id=answer_id, created=created, model=model, choices=choices, usage=usage)

    def frame(index: int) -> Callable[[str], bytes]:
        return text_frame(lambda text: event([ChatChoiceDelta(index=index, delta=MessageDelta(content=text))]))

    frames = [frame(index) for index in range(len(readers))]
    for index in range(len(readers)):
        yield as_event(event([ChatChoiceDelta(index=index, delta=MessageDelta(role="assistant", content=""))]))
    async for piece in answers:
        order = wanted.orders[piece.index]
        logprobs = _logprobs(tokenizer, piece.tokens) if order.logprobs is not None and piece.tokens else None
        for delta in read_piece(readers[piece.index], piece.text, piece.ended):
            if delta == ChatDelta() and logprobs is None:
                continue
            if logprobs is None and delta.tool_call is None and delta.finish_reason is None:
                yield frames[piece.index](delta.text)
                continue
            yield as_event(event([_choice_delta(piece.index, delta, logprobs)]))
            logprobs = None
    if request.wants_usage:
        yield as_event(event([], usage_of(len(wanted.orders[0].ids), answers.num_tokens)))


def usage_of(prompt_tokens: int, new_tokens: int) -> UsageAnswer:
    """The counts in OpenAI's shape."""
    return UsageAnswer(
        prompt_tokens=prompt_tokens, completion_tokens=new_tokens, total_tokens=prompt_tokens + new_tokens
    )


def _choice_delta(index: int, delta: ChatDelta, logprobs: ChatLogprobs | None) -> ChatChoiceDelta:
    reason: Any = delta.finish_reason
    return ChatChoiceDelta(index=index, delta=_delta(delta), logprobs=logprobs, finish_reason=reason)


def _delta(delta: ChatDelta) -> MessageDelta:
    call = delta.tool_call
    return MessageDelta(
        content=delta.text or None,
        tool_calls=None if call is None else [CallDelta(index=0, id=call.id, function=_function(call))],
    )


def _function(call: ToolCall) -> FunctionAnswer:
    return FunctionAnswer(name=call.name, arguments=call.arguments)


def _logprobs(tokenizer: Tokenizer, tokens: Sequence[Token]) -> ChatLogprobs:
    return ChatLogprobs(
        content=[
            TokenLogprob(
                **_spelled(tokenizer, token.id, token.logprob or 0.0),
                top_logprobs=[TopLogprob(**_spelled(tokenizer, other, value)) for other, value in token.top],
            )
            for token in tokens
        ]
    )


def _spelled(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    data = spelling(tokenizer, token)
    return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}


def spelling(tokenizer: Tokenizer, token: int) -> bytes:
    """A token's bytes; none for a row of the model that the tokenizer has no token for."""
    return tokenizer.id_to_bytes(token) if token < tokenizer.vocab_size else b""
