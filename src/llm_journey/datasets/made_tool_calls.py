"""Requests in plain words, each with the one tool call that does them: generated, so that every answer is right.

Six tools, many wordings, values drawn; the answer is JSON, {"name": ..., "arguments": {...}}, and nothing else. What a
model must learn is the form, which tool is meant, and to carry the values over. The tools are the same in every chat
and are not shown to the model: a small model has no room to read them each time.
"""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

SYSTEM = "Answer with one tool call as JSON."
_PEOPLE = ("Ada", "Ben", "Carla", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Liam", "Mona",
           "Nils", "Olga", "Paul", "Rosa", "Sven", "Tara", "Uma", "Vera", "Will", "Yara", "Zoe")  # fmt: skip
_CITIES = ("Paris", "Oslo", "Lima", "Cairo", "Delhi", "Rome", "Quito", "Perth", "Kyoto", "Turin", "Leeds", "Bern",
           "Accra", "Dakar", "Hanoi", "Miami", "Porto", "Riga", "Sofia", "Tunis")  # fmt: skip
_ROOMS = ("kitchen", "bedroom", "hall", "office", "garage", "bathroom", "cellar", "attic")
_THINGS = ("milk", "bread", "eggs", "rice", "tea", "apples", "soap", "paper", "coffee", "salt", "onions", "cheese")
_SONGS = ("Blue Train", "Hey Jude", "Clair de Lune", "Imagine", "So What", "Nightswimming", "Waterloo", "Hallelujah")
_UNITS = (("seconds", 1), ("minutes", 60), ("hours", 3600))


def _timer(draw: random.Random) -> tuple[str, dict[str, Any]]:
    number, (unit, seconds) = draw.randint(2, 50), draw.choice(_UNITS)
    forms = (
        "Set a timer for {n} {u}.",
        "Wake me in {n} {u}.",
        "Remind me in {n} {u}, please.",
        "Start a {n} {u} timer",
    )
    return draw.choice(forms).format(n=number, u=unit), {"seconds": number * seconds}


def _weather(draw: random.Random) -> tuple[str, dict[str, Any]]:
    city, (words, day) = draw.choice(_CITIES), draw.choice((("today", 0), ("tomorrow", 1), ("in two days", 2)))
    forms = ("What is the weather in {c} {d}?", "Will it rain in {c} {d}?", "Do I need a coat in {c} {d}?",
             "How warm does it get {d} in {c}?")  # fmt: skip
    return draw.choice(forms).format(c=city, d=words), {"city": city, "days_ahead": day}


def _message(draw: random.Random) -> tuple[str, dict[str, Any]]:
    person, text = draw.choice(_PEOPLE), draw.choice((
        "I am late", "the keys are under the mat", "dinner is at eight", "happy birthday", "call me back",
        "the train is full", "I have the tickets", "see you on Monday",
    ))  # fmt: skip
    forms = ("Tell {p} that {t}.", "Send {p} a message: {t}", "Let {p} know {t}", "Write to {p}: {t}")
    return draw.choice(forms).format(p=person, t=text), {"to": person, "text": text}


def _light(draw: random.Random) -> tuple[str, dict[str, Any]]:
    room, level = draw.choice(_ROOMS), draw.choice((0, 100, draw.randint(1, 99)))
    forms = {0: ("Turn off the light in the {r}.", "Make it dark in the {r}", "{r} light off"),
             100: ("Turn on the light in the {r}.", "Full light in the {r}, please", "{r} light on")}  # fmt: skip
    some = ("Dim the {r} to {l} percent.", "Set the light in the {r} to {l}%")
    return draw.choice(forms.get(level, some)).format(r=room, l=level), {"room": room, "percent": level}


def _shopping(draw: random.Random) -> tuple[str, dict[str, Any]]:
    count, thing = draw.randint(2, 12), draw.choice(_THINGS)
    forms = ("Put {n} {t} on the shopping list.", "We need {n} {t}", "Add {n} {t} to the list, please", "Buy {n} {t}.")
    return draw.choice(forms).format(n=count, t=thing), {"item": thing, "count": count}


def _music(draw: random.Random) -> tuple[str, dict[str, Any]]:
    song, room = draw.choice(_SONGS), draw.choice(_ROOMS)
    forms = ("Play {s} in the {r}.", "I want to hear {s} in the {r}", "Put on {s}, {r}")
    return draw.choice(forms).format(s=song, r=room), {"title": song, "room": room}


_TOOLS: dict[str, Callable[[random.Random], tuple[str, dict[str, Any]]]] = {
    "set_timer": _timer,
    "get_weather": _weather,
    "send_message": _message,
    "set_light": _light,
    "add_to_list": _shopping,
    "play_music": _music,
}


def tool_calls(count: int, seed: int = 0) -> Iterator[tuple[str, Any]]:
    """Rows {"messages"} of `count` different requests; of so many that they would have to repeat, as many as come."""
    draw = random.Random(seed)
    seen: set[str] = set()
    for _ in range(20 * count):
        if len(seen) == count:
            return
        name = draw.choice(list(_TOOLS))
        asked, arguments = _TOOLS[name](draw)
        if asked in seen:
            continue
        seen.add(asked)
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": asked},
            {"role": "assistant", "content": json.dumps({"name": name, "arguments": arguments})},
        ]
        yield f"request {len(seen)}", {"messages": messages}
