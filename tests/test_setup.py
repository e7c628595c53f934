"""Set-up from a fresh clone: what the Makefile does, once; what the constraints lock; what CI calls."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Stands in for python3: notes each call, makes a `.venv` whose python and journey note theirs, installs nothing.
FAKE_PYTHON = """\
#!/bin/sh
echo "$0 $*" >> {log}
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/journey ;;
  "--version") echo "Python 3.9.1" ;;
  *version_info*) exit {too_old} ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, folder / name)
    return folder


def fake_python(folder: Path, *, too_old: bool = False) -> tuple[Path, Path]:
    python, log = folder / "python3", folder / "calls"
    python.write_text(FAKE_PYTHON.format(log=log, too_old=int(too_old)), encoding="utf-8")
    python.chmod(0o755)
    return python, log


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_setup_is_done_once(checkout: Path, tmp_path: Path) -> None:
    python, log = fake_python(tmp_path)

    def calls(target: str) -> list[str]:
        log.write_text("", encoding="utf-8")
        done = make(checkout, target, f"PYTHON={python}")
        assert done.returncode == 0, done.stderr
        return [line.partition(" ")[2] for line in log.read_text(encoding="utf-8").splitlines()]

    first = calls("quickstart")
    assert "-m venv .venv" in first
    extras = ".[hf,serve,constrain,client,rag]"
    assert any("pip install" in call and "-c constraints.txt" in call and extras in call for call in first)
    assert first[-1] == "quickstart"
    assert calls("quickstart") == ["quickstart"]
    tests = calls("test")
    assert any("pip install" in call and ".[dev]" in call for call in tests) and "-m venv .venv" not in tests
    assert calls("test") == [tests[-1]]
    assert calls("quickstart") == ["quickstart"], "the set-up for tests holds what the quickstart needs"
    with (checkout / "constraints.txt").open("a", encoding="utf-8") as constraints:
        constraints.write("# changed\n")
    assert any("pip install" in call for call in calls("quickstart"))


def test_a_python_that_is_missing_or_too_old_is_said_in_one_line(checkout: Path, tmp_path: Path) -> None:
    missing = make(checkout, "quickstart", "PYTHON=no-such-python")
    assert missing.returncode != 0
    assert "error: no no-such-python here; install Python 3.11 or newer" in missing.stderr
    python, _ = fake_python(tmp_path, too_old=True)
    old = make(checkout, "quickstart", f"PYTHON={python}")
    assert old.returncode != 0
    assert "is Python 3.9.1; Python 3.11 or newer is needed" in old.stderr
    assert not (checkout / ".venv").exists()


def test_constraints_lock_what_the_extras_ask_for() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", line) for line in lines), "a name and a release, nothing else"
    locked = dict(line.split("==") for line in lines)
    assert list(locked) == sorted(locked)
    assert locked["torch"] == "2.13.0"
    wanted = [
        *PROJECT["dependencies"],
        *(item for extra in PROJECT["optional-dependencies"].values() for item in extra),
    ]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=]", item)[0]).lower() for item in wanted}
    assert names - {PROJECT["name"]} <= locked.keys()


def test_ci_runs_check_and_test() -> None:
    script = ROOT / ".ci" / "run"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    assert text.splitlines()[-2:] == ["make check", "make test"]
    assert script.stat().st_mode & 0o111


@pytest.mark.full
@pytest.mark.network
def test_quickstart_from_a_fresh_clone(tmp_path: Path) -> None:
    """Real: its own virtual environment, an empty HOME, a few seconds of training; the second call sets nothing up."""
    clone, home = tmp_path / "clone", tmp_path / "home"
    home.mkdir()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home)}
    python = shutil.which("python3") or "python3"
    arguments = "--set training.seconds=3 --set data.max_documents=300 --json"
    command = ["make", "quickstart", f"PYTHON={python}", f"ARGS={arguments}"]
    first = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert '"status": "finished"' in first.stdout and "Setting up .venv" in first.stderr
    second = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert '"name": "quickstart-2"' in second.stdout and "Setting up" not in second.stderr
