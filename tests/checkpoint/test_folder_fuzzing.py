"""Folders whose files were changed at random: a typed error or something that works, and soon.

Some hundred by default, 20,000 in the full run. Values are exchanged for ones that break programs; bytes are flipped,
cut, doubled. Bounds: 1 s each by the clock, and the file's size and 64 MB over the memory held before.
"""

from pathlib import Path

import pytest
from fuzzing import opened_under_watch

TEXTS = ("chats", "embedders")


def test_changed_folders_are_refused_or_used(tmp_path: Path) -> None:
    refused = opened_under_watch("models", *TEXTS, seed=0, count=70, directory=tmp_path)
    assert all(20 < number < 70 for number in refused), "many changes break something, some do not"


@pytest.mark.full
def test_ten_thousand_changed_models_are_refused_or_opened(tmp_path: Path) -> None:
    [refused] = opened_under_watch("models", seed=1, count=10_000, directory=tmp_path)
    assert 5_000 < refused < 10_000


@pytest.mark.full
def test_ten_thousand_changed_text_files_are_refused_or_used(tmp_path: Path) -> None:
    refused = opened_under_watch(*TEXTS, seed=1, count=5_000, directory=tmp_path)
    assert all(1_500 < number < 5_000 for number in refused)
