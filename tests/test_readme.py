"""The README keeps its word: its commands are run, its table is true, its links lead somewhere.

A block under `<!-- run -->` is run here as it stands; under `<!-- run: OPTIONS -->` the options are added to each
`quickstart`, `train` and `data prepare`, so that it takes seconds. All blocks share one JOURNEY_HOME, in their order,
and their commands one process: tests/cli shows that the program itself starts, here it would start twenty times.
"""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from command_line import Journey
from llm_journey.cli.main import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^<!-- run(?:: (?P<options>[^\n]*))? -->\n```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
ROW = re.compile(
    r"^\| (?P<part>.*?) \| (?P<packages>.*?) \| (?P<command>.*?) ?\| (?P<state>works|not yet) \|$", re.MULTILINE
)
SHORTENED = (("quickstart",), ("train",), ("data", "prepare"))


@dataclass(frozen=True)
class Row:
    part: str
    packages: list[str]
    command: list[str]
    works: bool


def table() -> list[Row]:
    rows = []
    for match in ROW.finditer(README):
        packages = re.findall(r"`([\w_]+)`", match["packages"])
        command = match["command"].strip(" `").split()
        rows.append(Row(match["part"], packages, command, match["state"] == "works"))
    return rows


def commands(code: str, options: str | None) -> list[list[str]]:
    """The command lines of a block, shortened where the block says so."""
    found = []
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "journey", line
        shorten = options and any(tuple(words[1 : 1 + len(verb)]) == verb for verb in SHORTENED)
        found.append([*words, *(shlex.split(options) if shorten and options else [])])
    return found


@pytest.mark.network
def test_the_commands_run(
    wiki_summaries: Path,
    corpus: Path,
    tmp_path: Path,
    journey: Journey,
    monkeypatch: pytest.MonkeyPatch,
    _machine_measured: None,
) -> None:
    home = tmp_path / "home"
    target = home / "cache" / "catalog" / "wiki-summaries"
    shutil.copytree(wiki_summaries, target)
    shutil.copytree(corpus, tmp_path / "texts")
    monkeypatch.setenv("JOURNEY_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    blocks = list(BLOCK.finditer(README))
    assert [block["language"] for block in blocks].count("bash") >= 6
    for block in blocks:
        if block["language"] == "python":
            command = [sys.executable, "-c", block["code"]]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, (command, done.stderr)
            continue
        for words in commands(block["code"], block["options"]):
            outcome = journey(*words[1:])
            assert outcome.code == 0 and outcome.out.strip(), (words, outcome.err)


def test_every_journey_command_in_the_text_exists() -> None:
    tree = typer.main.get_command(app)
    mentioned = re.findall(
        r"journey ((?:[a-z]+ ?)+)", " ".join(re.findall(r"`journey [^`]*`|^journey .*$", README, re.MULTILINE))
    )
    assert len(mentioned) > 20
    for words in mentioned:
        command = tree
        for word in words.split():
            if not getattr(command, "commands", None):
                break
            assert word in command.commands, words
            command = command.commands[word]


def test_the_table_covers_the_plan() -> None:
    parts = " ".join(row.part for row in table())
    folders = ("01", "02", "03", "04", "05", "06", "experiments", "research_notes", "datasets", "evaluation")
    assert all(re.search(rf"\*\*{folder}\b", parts) for folder in folders)
    roadmap = ("RLHF", "direct preference optimization", "domain adaptation", "multimodal", "edge devices")
    assert all(re.search(rf"roadmap: [^*]*{line}", parts) for line in roadmap)


@pytest.mark.parametrize("row", table(), ids=lambda row: row.part)
def test_the_table_is_true(row: Row) -> None:
    """What works has its package, its tests and its command; what does not has no command."""
    package = ROOT / "src" / "llm_journey"
    if not row.works:
        assert row.command == []
        return
    for name in row.packages:
        assert (package / name / "__init__.py").is_file(), name
        assert list((ROOT / "tests" / name).glob("test_*.py")), f"{name} has no tests"
    command = typer.main.get_command(app)
    for word in row.command[1:]:
        command = command.commands[word]  # type: ignore[attr-defined]


def test_what_is_not_yet_there_is_not_half_there() -> None:
    """A package that is only named in rows of 'not yet' must not exist: else its row is out of date."""
    works = {name for row in table() if row.works for name in row.packages}
    missing = {name for row in table() for name in row.packages} - works
    assert missing
    for name in missing:
        assert not (ROOT / "src" / "llm_journey" / name).exists(), f"{name} is here; say in the README what works"


def test_links_and_make_targets_are_there() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_layout_names_every_package_and_no_other() -> None:
    """One line each, in an order in which imports point down."""
    section = README[README.index("## Layout") :]
    named = re.findall(r"^  (\w+)/ +\S", section, re.MULTILINE)
    folders = {path.name for path in (ROOT / "src" / "llm_journey").iterdir() if path.is_dir()} - {"__pycache__"}
    assert sorted(named) == sorted(folders)
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    rank = {name: place for place, layer in enumerate(layers) for name in re.findall(r"\w+", layer)}
    places = [rank[name] for name in named if name in rank]
    assert places == sorted(places)
    for folder in ("benchmarks", "docs", "dev", "tests"):
        assert re.search(rf"^{folder}/ +\S", section, re.MULTILINE) and (ROOT / folder).is_dir()
