"""Failures in OpenAI's shape, whatever fails: a body, a route, a limit, the engine.

Every message is one line and safe to show; where this program itself is at fault, the client learns no more than that,
and the log has the rest under the request's id.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.serving.logs import log_failure
from llm_journey.serving.responses import ErrorAnswer, ErrorDetail

_MAX_CHARACTERS = 500
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refusal with its status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """The refusal as it is sent."""
        return error_response(self.status, self.message, code=self.code, param=self.param, headers=self.headers)


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The JSON of a failure."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    line = " ".join(message.split()).encode("utf-8", "replace").decode()
    line = line if len(line) <= _MAX_CHARACTERS else line[:_MAX_CHARACTERS] + "..."
    return ErrorAnswer(error=ErrorDetail(message=line, type=kind, param=param, code=code)).model_dump()


def error_response(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A failure as a response."""
    body = error_body(status, message, code=code, param=param)
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error of ours."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BadInputError):
        return ApiError(400, str(error))
    if isinstance(error, JourneyError):
        return ApiError(500, str(error))
    return ApiError(500, "the server failed; its log says why, under this response's x-request-id")


def add_handlers(app: FastAPI) -> None:
    """Every exception that leaves a route becomes a response of OpenAI's shape."""

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        found = as_api_error(error)
        if found.status >= 500 and not isinstance(error, ApiError):  # a limit that was reached is no failure
            log_failure(request.scope, error)
        return found.response()

    async def refuse_body(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        message, param = _first_problem(error)
        return error_response(400, message, param=param)

    async def refuse_route(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = error.detail if error.status_code == 400 else HTTPStatus(error.status_code).phrase
        if message == "There was an error parsing the body":  # FastAPI's, of bytes that are no text
            message = "the body is no JSON: it is not UTF-8"
        return error_response(error.status_code, message, headers=error.headers)

    app.add_exception_handler(ApiError, refuse)
    app.add_exception_handler(JourneyError, refuse)
    app.add_exception_handler(RequestValidationError, refuse_body)
    app.add_exception_handler(HTTPException, refuse_route)
    app.add_exception_handler(Exception, refuse)


def _first_problem(error: RequestValidationError) -> tuple[str, str | None]:
    """The first thing that is wrong with a body, and which key it is."""
    first = error.errors()[0]
    # Pydantic names the branch of a union too ("list[TextPart]"); a key has no bracket or blank in it.
    place = [str(part) for part in first["loc"][1:] if isinstance(part, int) or str(part).isidentifier()]
    where = ".".join(place)[:200]
    said = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return f"the body is no JSON: {(first.get('ctx') or {}).get('error', 'it cannot be read')}", None
    if first["type"] == "model_attributes_type" and not where:
        return "the body is no JSON object sent as application/json", None
    return (f"{where}: {said}", where) if where else (said, None)
