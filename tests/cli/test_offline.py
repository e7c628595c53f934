"""Once the cache is filled, everything runs with sockets blocked, and without asking for one.

pytest-socket forbids sockets in all tests; here they are counted too, so that a try that was swallowed is seen.
"""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from command_line import Journey


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The sockets and name look-ups that were asked for."""
    asked: list[str] = []

    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        asked.append(f"{arguments} {options}")
        raise OSError("sockets are blocked")

    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    yield asked


def test_everything_runs_with_sockets_blocked(
    home: Path, corpus: Path, journey: Journey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sockets: list[str]
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    small = ("--set", "tokenizer.vocab_size=280")
    for command in (
        ("data", "list"),
        ("models", "list"),
        ("data", "prepare", corpus, *small),
        ("data", "show", corpus, *small, "--count", "1"),
        ("tokenizer", "train", corpus, "--to", tmp_path / "tokenizer", *small),
        ("tokenizer", "show", "rivers"),
        ("train", "rivers", "--name", "second", "--set", "training.trackers=[jsonl, tensorboard]"),
        ("train", "second", "--resume", "--set", "training.steps=14"),
        ("generate", "second", "The river", "--set", "max_new_tokens=4"),
        ("chat", "second", "Hi", "--set", "max_new_tokens=4"),
        ("report", "second", "--measure"),
        ("runs", "list"),
        ("runs", "show", "second"),
        ("runs", "compare", "rivers", "second"),
        ("doctor",),
        ("clean", "--yes"),
    ):
        outcome = journey(*command)
        assert outcome.code == 0, (command, outcome)
    assert sockets == []


def test_a_catalog_item_in_the_cache_needs_no_network(
    empty_home: Path, journey: Journey, monkeypatch: pytest.MonkeyPatch, sockets: list[str]
) -> None:
    """An item is pulled once; from then on its name resolves to the verified copy."""
    import hashlib
    from dataclasses import replace

    from llm_journey.datasets import catalog
    from llm_journey.datasets.sources import CatalogFile

    text = "The old stone bridge was built by the river in the north of the town.\n" * 40
    file = CatalogFile("input.txt", len(text.encode()), hashlib.sha256(text.encode()).hexdigest())
    entry = replace(catalog.CATALOG["tinyshakespeare"], files=(file,))
    monkeypatch.setitem(catalog.CATALOG, "tinyshakespeare", entry)
    monkeypatch.delenv("JOURNEY_DATA_DIR", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    cached = empty_home / "cache" / "catalog" / "tinyshakespeare"
    cached.mkdir(parents=True)
    (cached / "input.txt").write_text(text, encoding="utf-8")
    assert journey("data", "pull", "tinyshakespeare").out == f"{cached / 'input.txt'}\n"
    prepared = journey(
        "data", "prepare", "tinyshakespeare", "--set", "tokenizer.vocab_size=270", "--set", "data.quality.enabled=false"
    )
    assert prepared.code == 0, prepared.err
    assert sockets == []
