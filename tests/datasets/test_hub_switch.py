"""Switching the hub off reaches libraries that are loaded already, and leaves nothing behind."""

import os

import pytest
from huggingface_hub import constants

from llm_journey.datasets.hub import hub_is_offline, hub_switched_off


@pytest.mark.parametrize("before", [None, "0", "1"])
@pytest.mark.parametrize("loaded", [False, True])
def test_the_hub_is_off_inside_and_as_before_afterwards(
    before: str | None, loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if before is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", before)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", loaded)
    with pytest.raises(ZeroDivisionError), hub_switched_off():
        assert hub_is_offline() and constants.is_offline_mode()
        raise ZeroDivisionError
    assert (os.environ.get("HF_HUB_OFFLINE"), constants.is_offline_mode()) == (before, loaded)
