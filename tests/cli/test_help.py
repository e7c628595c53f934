"""Help: what it says (snapshots), two examples each, and how fast it comes."""

import subprocess
import sys
import time
from typing import Any

import pytest
import typer
from syrupy.assertion import SnapshotAssertion

from command_line import Journey
from llm_journey.cli.main import app

HEAVY = ("torch", "numpy", "transformers", "matplotlib", "yaml", "rich", "pyarrow", "tokenizers", "regex")


def every_command() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]

    def walk(command: Any, path: tuple[str, ...]) -> None:
        for name, child in getattr(command, "commands", {}).items():
            found.append((*path, name))
            walk(child, (*path, name))

    walk(typer.main.get_command(app), ())
    return found


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_help_is_as_agreed(path: tuple[str, ...], journey: Journey, snapshot: SnapshotAssertion) -> None:
    outcome = journey(*path, "--help")
    assert outcome.code == 0
    assert outcome.err == ""
    assert outcome.out == snapshot


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_help_shows_two_examples(path: tuple[str, ...], journey: Journey) -> None:
    examples = journey(*path, "--help").out.partition("Examples:")[2].strip().splitlines()
    command = " ".join(["journey", *path])
    assert len(examples) >= 2
    assert all(line.strip().startswith(command) for line in examples)


def test_the_grammar_is_the_agreed_one() -> None:
    agreed = {
        *("data list", "data pull", "data prepare", "data show", "models list", "models pull"),
        *("models show", "models import", "export"),
        *("tokenizer train", "tokenizer show", "runs list", "runs show", "runs compare"),
        *("train", "generate", "chat", "report", "doctor", "clean", "quickstart"),
    }
    assert agreed <= {" ".join(path) for path in every_command()}


def test_help_loads_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "llm_journey", "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_help_takes_little_longer_than_its_parser() -> None:
    """At most twice the time of `import typer`: the best of seven each, in turns, so that a load hits both."""

    def seconds(*arguments: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        return time.perf_counter() - start

    pairs = [(seconds("-c", "import typer"), seconds("-m", "llm_journey", "--help")) for _ in range(7)]
    parser, whole = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
    assert whole < 2 * parser + 0.02, f"{whole:.3f} s against {parser:.3f} s"


def test_version_and_completion(journey: Journey) -> None:
    assert journey("--version").out.startswith("llm-journey ")
    shown = subprocess.run(
        [sys.executable, "-m", "llm_journey"],
        capture_output=True,
        text=True,
        env={"_JOURNEY_COMPLETE": "complete_bash", "COMP_WORDS": "journey da", "COMP_CWORD": "1"},
        check=False,
    )
    assert "data" in shown.stdout.split()
