"""What the tests of training share: one thread, no measuring of the machine, no waiting for the disk, a tiny corpus."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_runs
import torch

from llm_journey.training import run


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take out what only takes time: other threads, the machine's peak, flushes (no power is cut here)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(run, "peak_flops", tiny_runs.peak_flops)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 short texts."""
    return tiny_runs.write_texts(tmp_path_factory.mktemp("texts"))
