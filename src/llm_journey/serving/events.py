"""Server-sent events as bytes, made so that a token costs little: most differ from the last one by their text alone.

A stream shares its processor with the engine, so what is spent on an event is taken from the next token.
"""

import json
import uuid
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

DONE = b"data: [DONE]\n\n"
_MARK = uuid.uuid4().hex  # stands for the text while a frame is made; it needs no escape and is in no other value


def as_data(value: Any) -> bytes:
    """An event with a value as JSON."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def as_event(event: BaseModel) -> bytes:
    """An event with the JSON of a model, without what is None."""
    return b"data: " + event.model_dump_json(exclude_none=True).encode() + b"\n\n"


def text_frame(make: Callable[[str], BaseModel]) -> Callable[[str], bytes]:
    """`as_event(make(text))` as a function of the text, the rest being made once. Of the model's strings only the text
    may depend on it, once."""
    marked = f'"{_MARK}"'.encode()
    head, found, tail = as_event(make(_MARK)).partition(marked)
    assert found and marked not in tail
    return lambda text: head + json.dumps(text, ensure_ascii=False).encode() + tail
