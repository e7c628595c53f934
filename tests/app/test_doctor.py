"""The doctor's findings, on this machine and on ones that lack something."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from llm_journey.app import doctor


def finding(name: str) -> doctor.Finding:
    return next(item for item in doctor.examine() if item.name == name)


def test_everything_needed_is_here(empty_home: Path) -> None:
    found = doctor.examine()
    assert doctor.as_json(found)["ok"]
    assert len({(item.area, item.name) for item in found}) == len(found)
    assert all(item.fix == "" for item in found if item.state == "ok")
    assert str(empty_home / "cache") in finding("cache").value
    assert not empty_home.exists()


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: name != "wandb" and installed(name))
    found = finding("track")
    assert (found.state, found.value, found.fix) == ("missing", "without wandb", "pip install 'llm-journey[track]'")
    assert doctor.as_json([found])["ok"], "an extra is no need"


def test_little_disk_and_no_compiler_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10, used=9, free=1_000_000))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "journey clean" in finding("free disk").fix
    assert (finding("C++ compiler").state, finding("C++ compiler").value) == ("note", "none")


def test_a_wrong_data_folder_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JOURNEY_DATA_DIR", str(tmp_path / "nothing"))
    assert finding("JOURNEY_DATA_DIR").state == "missing"


def test_the_network_is_asked_only_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("llm_journey.datasets.hub.hub_is_reachable", lambda: asked.append(True) or False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    doctor.examine()
    hub = [item for item in doctor.examine(network=True) if item.area == "network"]
    assert (asked, hub[0].value) == ([], "not asked: HF_HUB_OFFLINE is set")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub = [item for item in doctor.examine(network=True) if item.area == "network"]
    assert (asked, hub[0].value, hub[0].state) == ([True], "no", "note")
