"""Logs as JSON lines on standard error, one a request, under the id that the response carries as `x-request-id`.

Of a request its size and outcome are logged, never its text; `log_prompts` adds the texts.
"""

import json
import logging
import sys
import time
import traceback
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

Scope = MutableMapping[str, Any]
NAME = "llm_journey.serving"
_logger = logging.getLogger(NAME)
_FACTS = "journey.facts"  # what is known of a request so far, in its scope


class JsonLines(logging.Formatter):
    """A record as one JSON object: time, level, event, and the facts that came with it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line, ensure_ascii=True, default=str)


def start_logging(stream: TextIO | None = None) -> None:
    """Our own lines and uvicorn's, as JSON lines on standard error."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    for name in (NAME, "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name != "uvicorn.error" else []
        logger.propagate = name == "uvicorn.error"
    _logger.setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def facts_of(scope: Scope) -> dict[str, Any]:
    """The facts of a request, to be added to."""
    facts: dict[str, Any] = scope.setdefault(_FACTS, {})
    return facts


def log(event: str, facts: Mapping[str, Any], *, level: int = logging.INFO) -> None:
    """One line."""
    _logger.log(level, event, extra={"facts": dict(facts)})


def log_failure(scope: Scope, error: Exception) -> None:
    """An error of this program, with its traceback, under the request's id."""
    facts = {"id": facts_of(scope).get("id")}
    _logger.error("failure", extra={"facts": facts}, exc_info=error)
