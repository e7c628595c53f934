"""What the shell offers after Tab."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_journey.cli import completion


def offered(line: str) -> list[str]:
    words = line.split(" ")
    environment = {
        **os.environ, "_JOURNEY_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)
    }  # fmt: skip
    command = [sys.executable, "-m", "llm_journey"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False).stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("journey da", "data"),
        ("journey data pr", "prepare"),
        ("journey train --re", "--resume"),
        ("journey train qui", "quickstart"),
        ("journey generate riv", "rivers"),
        ("journey runs show ", "rivers"),
        ("journey data pull wiki-", "wiki-summaries"),
        ("journey models pull smol", "smollm2-135m-instruct"),
    ],
)
def test_names_are_offered(line: str, expected: str, shared_home: Path) -> None:
    assert expected in offered(line)


def test_there_may_be_nothing_to_offer(empty_home: Path) -> None:
    assert completion.runs("") == []
    assert completion.recipes("small") == ["small"]
    assert completion.models("all-") == completion.catalog_models("all-") == ["all-minilm-l6-v2"]
    assert "smollm2-135m-instruct" not in completion.catalog_data("")
