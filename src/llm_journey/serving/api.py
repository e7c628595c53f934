"""The application: OpenAI's routes over models that are open, health, metrics, and its own description.

    GET  /v1/models, /v1/models/{id}          what is served
    POST /v1/chat/completions                 conversations, tools, structured output; streamed or whole
    POST /v1/completions                      plain continuations
    POST /v1/embeddings                       vectors of texts
    GET  /healthz, /readyz, /metrics, /openapi.json

A route reads its body, makes orders of it (serving.orders), takes places, and waits as long as its client does.
"""

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, Path, Request, Response

from llm_journey.core.errors import JourneyError
from llm_journey.serving.answers import AsyncAnswers
from llm_journey.serving.chat_route import chat_events, whole_chat
from llm_journey.serving.completion_route import completion_events, whole_completion
from llm_journey.serving.config import ServerConfig
from llm_journey.serving.errors import ApiError, add_handlers, as_api_error, error_body
from llm_journey.serving.events import DONE, as_data
from llm_journey.serving.guard import App, Door, Guard
from llm_journey.serving.logs import facts_of, log_failure
from llm_journey.serving.metrics import CONTENT_TYPE, Metrics
from llm_journey.serving.orders import Order, chat_orders, completion_orders
from llm_journey.serving.requests import ChatRequest, CompletionRequest, EmbeddingRequest
from llm_journey.serving.responses import (
    ChatAnswer,
    CompletionAnswer,
    EmbeddingAnswer,
    EmbeddingItem,
    EmbeddingUsage,
    ErrorAnswer,
    Health,
    ModelCard,
    ModelList,
)
from llm_journey.serving.served import ServedEmbedder, ServedModel
from llm_journey.serving.waiting import ClientGone, EventStream, Places, while_wanted

T = TypeVar("T")
_FAILURES: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}}
# Of one server-sent event; its data is a piece of the answer as JSON, and [DONE] at the end.
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
_EMBED_SLICE = 32  # texts between two looks at whether they are still wanted
_GONE = 499  # nginx's status for a client that has left; nobody receives it


@dataclass
class Service:
    """What the routes share. draining: the server was told to end, and takes nothing new. broken_off: and what was
    under way then is over too."""

    models: Mapping[str, ServedModel]
    embedders: Mapping[str, ServedEmbedder]
    config: ServerConfig
    log_prompts: bool = False
    draining: bool = False
    broken_off: bool = False
    places: dict[str, Places] = field(init=False)
    metrics: Metrics = field(init=False)
    embedding: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        room = self.config.max_running + self.config.max_queue
        self.places = {name: Places(room) for name in (*self.models, *self.embedders)}
        for name, model in self.models.items():  # whoever shares an engine shares its room
            if model.parent is not None:
                self.places[name] = self.places[model.parent]
        self.metrics = Metrics(list(self.models.values()))

    def model(self, name: str) -> ServedModel:
        """The model of a name. Raises ApiError 404 that lists what there is, 503 while the server ends."""
        self._check_open()
        return _named(self.models, name, "that writes text")

    def embedder(self, name: str) -> ServedEmbedder:
        """The embedder of a name."""
        self._check_open()
        return _named(self.embedders, name, "that embeds texts")

    def break_off(self) -> None:
        """End every answer now; who waits for one is told."""
        self.broken_off = True
        for model in self.models.values():
            model.worker.post(model.worker.engine.cancel_all)

    def close(self, seconds: float = 1.0) -> bool:
        """End the engines; whether all have ended within so many seconds."""
        end = time.monotonic() + seconds
        for model in self.models.values():  # all are told before one is waited for
            model.worker.close(timeout=0.0)
        return all(model.worker.close(timeout=max(0.0, end - time.monotonic())) for model in self.models.values())

    def cards(self) -> list[ModelCard]:
        """What is served."""
        served: list[ServedModel | ServedEmbedder] = [*self.models.values(), *self.embedders.values()]
        return [
            ModelCard(id=each.name, created=each.created, kind=each.kind, context=each.context, parent=each.parent)
            for each in served
        ]

    def _check_open(self) -> None:
        if self.draining:
            raise _shutting_down()


def make_app(service: Service, door: Door) -> App:
    """The ASGI application. Raises BadInputError for a host that needs keys."""
    app = make_routes(service)

    def on_end(route: str, status: int, seconds: float) -> None:
        service.metrics.requests.labels(route, str(status)).inc()
        service.metrics.seconds.labels(route).observe(seconds)

    config = service.config
    return Guard(app, door=door, max_body_bytes=config.max_body_bytes, read_seconds=config.read_seconds, on_end=on_end)


def make_routes(service: Service) -> FastAPI:
    """The routes without what stands before them."""

    app = FastAPI(
        title="LLM Journey",
        description="Models of LLM Journey under OpenAI's API.",
        version="1",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        responses=_FAILURES,
    )
    add_handlers(app)
    _add_facts(app, service)
    _add_generation(app, service)
    _add_embeddings(app, service)
    _describe(app, service)
    return app


def _add_facts(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["health"])
    async def healthz() -> Health:
        """The process answers."""
        return Health(status="draining" if service.draining else "ok")

    @app.get("/readyz", tags=["health"])
    async def readyz() -> Health:
        """New requests are taken."""
        service._check_open()
        return Health(status="ok")

    @app.get("/metrics", tags=["health"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Prometheus figures."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models", tags=["models"])
    async def list_models() -> ModelList:
        """The models that are served."""
        return ModelList(data=service.cards())

    @app.get("/v1/models/{model}", tags=["models"])
    async def show_model(model: Annotated[str, Path(max_length=256)]) -> ModelCard:
        """One of them."""
        found = next((card for card in service.cards() if card.id == model), None)
        if found is None:
            raise _no_model(model, [card.id for card in service.cards()], "here")
        return found


def _add_generation(app: FastAPI, service: Service) -> None:
    limits = {"max_new_tokens": service.config.max_new_tokens, "max_n": service.config.max_n}
    streamed: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": _EVENT}}}}

    @app.post("/v1/chat/completions", tags=["text"], response_model=ChatAnswer, responses=streamed)
    async def chat(body: ChatRequest, request: Request) -> Any:
        """The reply to a conversation."""
        served = service.model(body.model)
        _note_prompt(service, request, [message.model_dump(exclude_none=True) for message in body.messages])
        wanted = await asyncio.to_thread(chat_orders, served, body, **limits)
        names = _names("chatcmpl", served)
        answering = _Answering(service, served, wanted.orders, request)
        if body.stream:
            return await answering.streamed(
                lambda answers: chat_events(answers, wanted, served.tokenizer, body, **names)
            )
        return await answering.whole(lambda answers: whole_chat(answers, wanted, served.tokenizer, **names))

    @app.post("/v1/completions", tags=["text"], response_model=CompletionAnswer, responses=streamed)
    async def complete(body: CompletionRequest, request: Request) -> Any:
        """The continuation of a text."""
        served = service.model(body.model)
        _note_prompt(service, request, body.prompt)
        orders = await asyncio.to_thread(completion_orders, served, body, **limits)
        names = _names("cmpl", served)
        answering = _Answering(service, served, orders, request)
        if body.stream:
            return await answering.streamed(
                lambda answers: completion_events(answers, orders, served.tokenizer, body, **names)
            )
        return await answering.whole(lambda answers: whole_completion(answers, orders, served.tokenizer, **names))


def _add_embeddings(app: FastAPI, service: Service) -> None:
    @app.post("/v1/embeddings", tags=["embeddings"])
    async def embed(body: EmbeddingRequest, request: Request) -> EmbeddingAnswer:
        """Vectors of texts."""
        served = service.embedder(body.model)
        texts = body.texts
        if len(texts) > service.config.max_texts:
            raise ApiError(400, f"{len(texts)} texts are too many: at most {service.config.max_texts}", param="input")
        if body.dimensions not in (None, served.width):
            raise ApiError(400, f"{served.name} gives {served.width} dimensions and no others", param="dimensions")
        _note_prompt(service, request, texts)
        facts_of(request.scope)["model"] = served.name
        with service.places[served.name].held(1):
            counts = await asyncio.to_thread(served.count, texts)
            long = next((index for index, count in enumerate(counts) if count > served.context), None)
            if long is not None:
                raise ApiError(
                    400,
                    f"text {long} has {counts[long]} tokens, {served.name} reads {served.context}: shorten or split it",
                    code="context_length_exceeded",
                    param="input",
                )
            vectors = await _vectors(service, served, texts, request)
        facts_of(request.scope)["prompt_tokens"] = sum(counts)
        service.metrics.prompt_tokens.labels(served.name).inc(sum(counts))
        packed = body.encoding_format == "base64"
        data = [
            EmbeddingItem(
                index=index,
                embedding=base64.b64encode(row.astype("<f4").tobytes()).decode() if packed else row.tolist(),
            )
            for index, row in enumerate(vectors)
        ]
        usage = EmbeddingUsage(prompt_tokens=sum(counts), total_tokens=sum(counts))
        return EmbeddingAnswer(data=data, model=served.name, usage=usage)


async def _vectors(
    service: Service, served: ServedEmbedder, texts: Sequence[str], request: Request
) -> npt.NDArray[np.float32]:
    """Vectors (N, D) of N texts, a slice at a time: a client that leaves, the deadline and the server's end are heeded
    between two slices."""

    async def embed() -> npt.NDArray[np.float32]:
        slices = []
        async with service.embedding:
            for first in range(0, len(texts), _EMBED_SLICE):
                if service.broken_off:
                    raise _shutting_down()
                slices.append(await asyncio.to_thread(served.embed, texts[first : first + _EMBED_SLICE]))
        return np.concatenate(slices)

    seconds = service.config.request_seconds
    try:
        async with asyncio.timeout(seconds):
            return await while_wanted(embed(), request.receive)
    except TimeoutError:
        raise ApiError(
            504, f"the vectors took more than {seconds:g} seconds; send fewer texts", code="timeout"
        ) from None
    except ClientGone:
        raise ApiError(_GONE, "the client has left") from None


class _Answering:
    """One request's way from orders to its response: places, deadline, metrics, the end."""

    def __init__(self, service: Service, served: ServedModel, orders: Sequence[Order], request: Request) -> None:
        self._service, self._served, self._orders, self._request = service, served, orders, request
        self._answers = AsyncAnswers(served, orders)
        self._deadline = time.monotonic() + service.config.request_seconds
        facts_of(request.scope)["model"] = served.name

    async def whole(self, read: Callable[[AsyncAnswers], Awaitable[T]]) -> T:
        """What `read` makes of the answers. A client that leaves ends them."""
        with self._service.places[self._served.name].held(len(self._orders)):
            try:
                return await while_wanted(self._read(read), self._request.receive)
            except ClientGone:
                raise ApiError(_GONE, "the client has left") from None
            finally:
                self._end()

    async def streamed(self, events: Callable[[AsyncAnswers], AsyncIterator[bytes]]) -> EventStream:
        """A stream of events. Errors before the first token are responses of their own."""
        places = self._service.places[self._served.name]
        places.take(len(self._orders))

        def end() -> None:
            places.give_back(len(self._orders))
            self._end()

        try:
            await self._submit()
        except BaseException:
            end()
            raise
        return EventStream(self._lines(events), on_end=end)

    async def _read(self, read: Callable[[AsyncAnswers], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                await self._submit()
                return await read(self._answers)
        except TimeoutError:
            raise self._too_long() from None
        except JourneyError as error:
            raise self._explained(error) from None

    async def _lines(self, events: Callable[[AsyncAnswers], AsyncIterator[bytes]]) -> AsyncIterator[bytes]:
        """The events. What fails after the first is told in an event of its own, and no [DONE] follows."""
        left = max(0.0, self._deadline - time.monotonic())
        timer = asyncio.get_running_loop().call_later(left, self._answers.expire)
        try:
            async for event in events(self._answers):
                yield event
        except (TimeoutError, JourneyError) as error:
            found = self._too_long() if isinstance(error, TimeoutError) else as_api_error(self._explained(error))
            facts_of(self._request.scope)["broken_off"] = found.code or found.status
            yield as_data(error_body(found.status, found.message, code=found.code))
        else:
            yield DONE
        finally:
            timer.cancel()

    async def _submit(self) -> None:
        prompt_tokens = sum({id(order.ids): len(order.ids) for order in self._orders}.values())
        facts_of(self._request.scope)["prompt_tokens"] = prompt_tokens
        self._service.metrics.prompt_tokens.labels(self._served.name).inc(prompt_tokens)
        await self._answers.submit()

    def _end(self) -> None:
        """Whatever has happened: let the answers go, and note what they took."""
        answers, metrics, name = self._answers, self._service.metrics, self._served.name
        if answers.unfinished:
            metrics.cancelled.labels("draining" if self._service.draining else "unwanted").inc()
        answers.close()
        facts = facts_of(self._request.scope)
        facts["completion_tokens"] = answers.num_tokens
        metrics.new_tokens.labels(name).inc(answers.num_tokens)
        if answers.first_token_seconds is not None:
            facts["first_token_seconds"] = round(answers.first_token_seconds, 4)
            metrics.first_token.labels(name).observe(answers.first_token_seconds)

    def _too_long(self) -> ApiError:
        seconds = self._service.config.request_seconds
        return ApiError(504, f"the answer took more than {seconds:g} seconds; ask for fewer tokens", code="timeout")

    def _explained(self, error: Exception) -> Exception:
        """An answer that the engine ended: because the server ends, or because a pass failed."""
        if self._service.draining:
            return _shutting_down()
        failure, self._served.worker.failure = self._served.worker.failure, None
        if failure is not None:
            log_failure(self._request.scope, failure)
        return error


def _describe(app: FastAPI, service: Service) -> None:
    """The OpenAPI document names the models that are served."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        document = plain()
        schemas = document["components"]["schemas"]
        for name, served in (
            ("ChatRequest", service.models),
            ("CompletionRequest", service.models),
            ("EmbeddingRequest", service.embedders),
        ):
            if served:
                schemas[name]["properties"]["model"]["enum"] = list(served)
        return document

    app.openapi = described  # type: ignore[method-assign]


def _names(prefix: str, served: ServedModel) -> dict[str, Any]:
    return {"answer_id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}


def _note_prompt(service: Service, request: Request, prompt: Any) -> None:
    if service.log_prompts:
        facts_of(request.scope)["prompt"] = prompt


def _named(known: Mapping[str, T], name: str, what: str) -> T:
    if name not in known:
        raise _no_model(name, known, what)
    return known[name]


def _shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="draining", headers={"Retry-After": "5"})


def _no_model(name: str, known: Any, what: str) -> ApiError:
    listed = ", ".join(known) or "none"
    return ApiError(404, f"no model {name[:80]!r} {what}; there is: {listed}", code="model_not_found", param="model")
