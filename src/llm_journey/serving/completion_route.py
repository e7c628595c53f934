"""POST /v1/completions: plain continuations, in OpenAI's older shape."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from llm_journey.generation.engine import Token
from llm_journey.serving.answers import AsyncAnswers
from llm_journey.serving.chat_route import spelling, usage_of
from llm_journey.serving.events import as_event, text_frame
from llm_journey.serving.orders import Order
from llm_journey.serving.requests import CompletionRequest
from llm_journey.serving.responses import CompletionAnswer, CompletionChoice, CompletionLogprobs, UsageAnswer
from llm_journey.tokenizer import Tokenizer


async def whole_completion(
    answers: AsyncAnswers, orders: Sequence[Order], tokenizer: Tokenizer, *, answer_id: str, created: int, model: str
) -> CompletionAnswer:
    """The answer once it is whole."""
    texts: list[list[str]] = [[] for _ in orders]
    tokens: list[list[Token]] = [[] for _ in orders]
    reasons: list[Any] = ["stop"] * len(orders)
    async for piece in answers:
        texts[piece.index].append(piece.text)
        tokens[piece.index] += piece.tokens
        reasons[piece.index] = piece.ended or reasons[piece.index]
    choices = [
        CompletionChoice(
            index=index,
            text="".join(texts[index]),
            logprobs=_logprobs(tokenizer, tokens[index], 0) if order.logprobs is not None else None,
            finish_reason=reasons[index],
        )
        for index, order in enumerate(orders)
    ]
    return CompletionAnswer(id=answer_id, created=created, model=model, choices=choices, usage=_usage(orders, answers))


async def completion_events(
    answers: AsyncAnswers,
    orders: Sequence[Order],
    tokenizer: Tokenizer,
    request: CompletionRequest,
    *,
    answer_id: str,
    created: int,
    model: str,
) -> AsyncIterator[bytes]:
    """The answer's events, then the counts where they were asked for."""
    offsets = [0] * len(orders)

    def event(choices: list[CompletionChoice], usage: UsageAnswer | None = None) -> CompletionAnswer:
        return CompletionAnswer(id=answer_id, created=created, model=model, choices=choices, usage=usage)

    def frame(index: int) -> Callable[[str], bytes]:
        return text_frame(lambda text: event([CompletionChoice(index=index, text=text, finish_reason=None)]))

    frames = [frame(index) for index in range(len(orders))]
    async for piece in answers:
        wanted = orders[piece.index].logprobs is not None and piece.tokens
        if piece.text and not wanted and not piece.ended:
            yield frames[piece.index](piece.text)
        elif piece.text or wanted or piece.ended:
            logprobs = _logprobs(tokenizer, piece.tokens, offsets[piece.index]) if wanted else None
            reason: Any = piece.ended
            choice = CompletionChoice(index=piece.index, text=piece.text, logprobs=logprobs, finish_reason=reason)
            yield as_event(event([choice]))
        if wanted:
            offsets[piece.index] += sum(len(_text(tokenizer, token.id)) for token in piece.tokens)
    if request.wants_usage:
        yield as_event(event([], _usage(orders, answers)))


def _usage(orders: Sequence[Order], answers: AsyncAnswers) -> UsageAnswer:
    """Each prompt counts once, however many answers it has."""
    distinct = {id(order.ids): len(order.ids) for order in orders}
    return usage_of(sum(distinct.values()), answers.num_tokens)


def _text(tokenizer: Tokenizer, token: int) -> str:
    return spelling(tokenizer, token).decode("utf-8", "replace")


def _logprobs(tokenizer: Tokenizer, tokens: Sequence[Token], offset: int) -> CompletionLogprobs:
    """Lists side by side; text_offset counts characters of the answer."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(_text(tokenizer, token.id))
    return CompletionLogprobs(
        tokens=[_text(tokenizer, token.id) for token in tokens],
        token_logprobs=[token.logprob or 0.0 for token in tokens],
        top_logprobs=[{_text(tokenizer, other): value for other, value in token.top} for token in tokens],
        text_offset=offsets,
    )
