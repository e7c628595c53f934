"""The environment in which chat templates run, and the limited process for templates that we did not write.

A chat template is a program that came with a model. jinja2's immutable sandbox keeps it from Python's internals
(CVE-2024-34359: a template ran code), but not from looping for hours or from asking for gigabytes in one expression
(`10 ** 10 ** 10`, `'a' * 10 ** 9`, a filter's width): no check between two steps of a template can stop one such
step. So foreign templates run here as `python -m`, in a process with a limit on memory and processor time, and
chat_template ends that process when the time is up.

What a template finds is what Hugging Face's `apply_chat_template` offers: trimmed blocks, loop controls, the
`generation` tag, `raise_exception`, `strftime_now`, and a `tojson` that leaves HTML characters alone.
"""

import datetime
import json
import signal
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import IO, Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from llm_journey.core.line_process import READY

MEMORY_BYTES = 512 << 20


class OutputTooLongError(jinja2.TemplateError):
    """The template wrote more than it may."""


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training masks; for rendering it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain class attribute

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(Namespace):
    """jinja2's namespace, without underscored attributes: none of Python's own can be put in its way."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace takes no attribute named {name!r}")
        super().__setitem__(name, value)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _dict(*arguments: Any, **items: Any) -> dict[Any, Any]:
    return dict(*arguments, **items)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise_exception, namespace=_Namespace, dict=_dict)
    return environment


@lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


def run(template: str, variables: Mapping[str, Any], *, now: datetime.datetime, max_characters: int) -> str:
    """The template's output for `variables`, in this process, with no limit but that on the output's length.

    Raises jinja2.TemplateError (a SecurityError among others), and whatever a faulty template makes Python raise.
    """
    parts: list[str] = []
    characters = 0
    # strftime_now is a variable here, not a global: a compiled template is used at more than one time.
    for part in _compiled(template).generate({**variables, "strftime_now": now.strftime}):
        parts.append(part)
        characters += len(part)
        if characters > max_characters:
            raise OutputTooLongError(f"wrote more than {max_characters} characters")
    return "".join(parts)


def run_request(request: Mapping[str, Any]) -> dict[str, str]:
    """`run` on a request as it comes over the pipe; an error comes back as its message.

    "damaged" says that the process should not be used again.
    """
    try:
        text = run(
            request["template"],
            request["variables"],
            now=datetime.datetime.fromisoformat(request["now"]),
            max_characters=request["max_characters"],
        )
    except MemoryError:
        return {"error": "needs more memory than a template may use", "damaged": "yes"}
    except RecursionError:
        return {"error": "calls itself too deeply"}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"}
    except Exception as error:  # a template can make any operation fail: a key, a type, a division
        return {"error": f"{error}" or type(error).__name__}
    return {"text": text}


def _limit_memory() -> None:
    # Other systems do not enforce RLIMIT_AS; there the limits on time and output are what holds.
    if sys.platform != "linux":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _limit_processor_time(seconds: float) -> None:
    """From now on this process may use `seconds` more, whoever still watches it."""
    if sys.platform == "win32":
        return
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime + seconds) + 1, hard))


def _serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    _limit_memory()
    replies.write(READY)
    replies.flush()
    for line in requests:
        request = json.loads(line)
        _limit_processor_time(request["seconds"])
        replies.write(json.dumps(run_request(request)).encode() + b"\n")
        replies.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve(sys.stdin.buffer, sys.stdout.buffer)
