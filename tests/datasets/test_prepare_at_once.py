"""Two processes that prepare one corpus at the same time: one works, the other waits, says so, and uses the work."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_journey.core.locks import one_at_a_time
from llm_journey.core.paths import cache_dir

PROGRAM = """
import sys, time
from pathlib import Path
from llm_journey.datasets import prepare

folder, slowly = Path(sys.argv[1]), sys.argv[2] == "slowly"
select = prepare._select

def selecting(*arguments):
    print("selecting", flush=True)
    if slowly:
        time.sleep(1.5)
    return select(*arguments)

prepare._select = selecting
config = prepare.DataConfig(source=str(folder / "corpus.jsonl"), held_out=0.2)
report = prepare.prepare_documents(
    config, folder / "out", resolve=Path, on_wait=lambda: print("waiting", flush=True)
)
print("reused" if report.reused else "made", report.documents_in, flush=True)
"""


def _start(folder: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), how], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JOURNEY_HOME", str(tmp_path / "home"))
    words = "river stone amber falcon garden"
    lines = [json.dumps({"text": f"Article {number}: {words} of the number {number}."}) for number in range(30)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def test_the_second_waits_and_uses_the_firsts_work(folder: Path) -> None:
    first = _start(folder, "slowly")
    assert first.stdout is not None and first.stdout.readline() == "selecting\n"
    second = _start(folder, "quickly")
    said, _ = second.communicate(timeout=60)
    assert said.splitlines() == ["waiting", "reused 30"]
    assert first.communicate(timeout=60)[0] == "made 30\n" and (first.returncode, second.returncode) == (0, 0)
    assert {path.name for path in folder.iterdir()} == {"corpus.jsonl", "home", "out"}, "no lock beside the folder"


def test_a_killed_process_holds_up_nobody(folder: Path) -> None:
    first = _start(folder, "slowly")
    assert first.stdout is not None and first.stdout.readline() == "selecting\n"
    first.kill()
    first.wait()
    first.stdout.close()
    said, _ = _start(folder, "quickly").communicate(timeout=60)
    assert said.splitlines() == ["selecting", "made 30"]


def test_a_lock_is_for_its_target_alone_and_is_given_back(folder: Path) -> None:
    waited: list[str] = []
    began = time.monotonic()
    with (
        one_at_a_time(folder / "a", lambda: waited.append("a")),
        one_at_a_time(folder / "b", lambda: waited.append("b")),
    ):
        assert len(list((cache_dir() / ".locks").iterdir())) == 2
    with one_at_a_time(folder / "a", lambda: waited.append("a")), pytest.raises(ValueError, match="inside"):
        raise ValueError("inside")
    with one_at_a_time(folder / "a", lambda: waited.append("a")):
        pass
    assert waited == [] and time.monotonic() - began < 30
