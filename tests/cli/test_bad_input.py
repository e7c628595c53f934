"""What people get wrong and what machines lack: one line that names the fix, exit code 2 or 1, nothing half-written."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import Journey, Outcome, files_under

TEXT = "The old stone bridge was built by the river in the north of the town. It is known for its great market. "


def refused(outcome: Outcome, code: int, *parts: str) -> None:
    """One line on standard error with all of `parts`, nothing on standard output."""
    lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert (outcome.code, outcome.out, len(lines)) == (code, "", 1), outcome
    assert outcome.err.endswith(lines[0] + "\n")
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in lines[0]


def written(home: Path) -> list[str]:
    """What a command left, but for the empty files that processes lock."""
    return [name for name in files_under(home) if ".locks" not in Path(name).parts]


def test_a_missing_file(empty_home: Path, journey: Journey, tiny_recipe: Path) -> None:
    refused(journey("train", "no-such.yaml"), 2, "no-such.yaml", "no such recipe")
    refused(
        journey("train", tiny_recipe, "--set", "data.source=./nothing-here"), 2, "nothing-here", "no file or folder"
    )
    refused(journey("data", "prepare", "./nothing-here"), 2, "nothing-here")
    refused(journey("generate", "./nothing-here", "The"), 2, "nothing-here")
    assert written(empty_home) == []


def test_an_empty_corpus(empty_home: Path, journey: Journey, tiny_recipe: Path, tmp_path: Path) -> None:
    empty = tmp_path / "texts"
    empty.mkdir()
    train = ("train", tiny_recipe, "--set", f"data.source={empty}")
    refused(journey(*train), 2, "holds no file that can be read", "known kinds")
    (empty / "blank.txt").write_text(" \n", encoding="utf-8")
    refused(journey(*train), 2, "no text could be read")
    (empty / "short.txt").write_text("Too few.", encoding="utf-8")
    refused(journey(*train), 2, "dropped", "data.quality.enabled=false")
    assert written(empty_home) == []


def test_binary_junk(empty_home: Path, journey: Journey, tiny_recipe: Path, tmp_path: Path) -> None:
    junk = tmp_path / "junk.txt"
    junk.write_bytes(bytes(range(256)) * 64)
    refused(journey("train", tiny_recipe, "--set", f"data.source={junk}"), 2, "junk.txt")
    refused(journey("train", junk), 2, "junk.txt")
    assert written(empty_home) == []


def test_junk_and_mixed_encodings_among_good_files(empty_home: Path, journey: Journey, tmp_path: Path) -> None:
    """What cannot be read is named and the rest goes on."""
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "junk.txt").write_bytes(bytes(range(256)) * 64)
    (texts / "utf8.txt").write_text("Un café très ancien près de la rivière. " * 9, encoding="utf-8")
    (texts / "utf16.txt").write_text("Une église du siècle dernier à côté du marché. " * 9, encoding="utf-16")
    (texts / "windows.txt").write_bytes(("La forêt était déjà connue “au nord” de la ville. " * 9).encode("cp1252"))
    (texts / "plain.md").write_text(TEXT * 9, encoding="ascii")
    settings = (
        "--set",
        "tokenizer.vocab_size=270",
        "--set",
        "data.held_out=0.3",
        "--set",
        "data.quality.enabled=false",
    )
    outcome = journey("data", "prepare", texts, *settings)
    assert outcome.code == 0, outcome.err
    assert "junk.txt" in outcome.err
    shown = journey("data", "show", texts, *settings, "--json").json
    kept = {item["identifier"]: item["text"] for item in shown["kept"]}
    assert kept["utf16.txt"].startswith("Une église") and "“au nord”" in kept["windows.txt"]
    assert "junk.txt" not in kept


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("training.stps=5", ("unknown key 'training.stps'", "allowed:", "steps")),
        ("training.steps=soon", ("training.steps", "'soon'", "integer")),
        ("model.positions=polar", ("model.positions", "'polar'", "rope")),
        ("tokenizer.vocab_size=200", ("vocab_size 200 is too small", "256 bytes and 3 special tokens", "259")),
        ("training.optimizer=7", ("training.optimizer",)),
        ("training.steps", ("key.path=value",)),
        ("model.width=63", ("width 63", "num_heads")),
    ],
)
def test_a_recipe_that_is_wrong(
    setting: str, parts: tuple[str, ...], empty_home: Path, journey: Journey, tiny_recipe: Path
) -> None:
    refused(journey("train", tiny_recipe, "--set", setting), 2, *parts)
    assert not empty_home.exists()


def test_a_recipe_file_that_is_wrong(empty_home: Path, journey: Journey, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for text, part in (
        ("data: {source: x}\ntraining: {steps: 1}\nmodle: {}\n", "unknown key 'modle'"),
        ("data: {source: x}\ntraining: [1, 2]\n", "training"),
        ("data: {source: x\n", "not valid YAML"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("training: {steps: 1}\n", "'data' is missing"),
        ("data: {source: x}\ntraining: {batch_size: 2}\n", "a budget is needed"),
    ):
        path.write_text(text, encoding="utf-8")
        refused(journey("train", path), 2, "mine.yaml", part)


def test_a_context_longer_than_the_data(empty_home: Path, journey: Journey, tiny_recipe: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(4):
        (texts / f"{number}.txt").write_text(f"Number {number} of four short texts, all of them.", encoding="utf-8")
    settings = ("--set", f"data.source={texts}", "--set", "model.context=4096")
    refused(journey("train", tiny_recipe, *settings, "--set", "tokenizer.vocab_size=262"), 2, "4096", "context")
    assert [name for name in written(empty_home) if name.startswith("runs")] == []


def test_a_bad_name_for_a_run(empty_home: Path, journey: Journey, tiny_recipe: Path) -> None:
    for name in ("../outside", "a/b", ".hidden", ""):
        refused(journey("train", tiny_recipe, "--name", name), 2, "--name")
    assert not empty_home.exists()


def test_a_name_that_is_taken(shared_home: Path, journey: Journey, tiny_recipe: Path) -> None:
    refused(journey("train", tiny_recipe, "--name", "rivers"), 2, "rivers", "--resume")


def test_resuming_what_is_not_there_or_has_other_settings(home: Path, journey: Journey, tiny_recipe: Path) -> None:
    refused(journey("train", "nothing", "--resume"), 2, "unknown run 'nothing'")
    refused(journey("train", "rivers", "--resume", "--set", "model.width=32"), 2, "cannot resume", "model.width")


def test_no_network(empty_home: Path, tmp_path: Path) -> None:
    """pip finds no index, the hub is off: the error says so, and names the command for a place with a network."""
    environment = {
        **os.environ,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("JOURNEY_DATA_DIR", None)
    for arguments in (["data", "pull", "wiki-summaries"], ["models", "pull", "smollm2-135m-instruct"]):
        command = [sys.executable, "-m", "llm_journey", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        refused(Outcome(done.returncode, done.stdout, done.stderr), 1, f"journey {' '.join(arguments)}", "network")
    assert all("partial" in name or "locks" in name for name in files_under(empty_home))


def test_a_cache_below_a_file_cannot_be_written(
    journey: Journey, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root too, no folder can be made below a file."""
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("JOURNEY_HOME", str(tmp_path / "file"))
    refused(journey("train", tiny_recipe), 1, str(tmp_path / "file"), "JOURNEY_HOME")
    refused(journey("data", "pull", "wiki-summaries"), 1, "JOURNEY_HOME")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder))
    yield folder
    unmount(folder)


@pytest.fixture
def read_only(trained_home: Path, tmp_path: Path) -> Iterator[Path]:
    """The trained home, mounted so that nothing can be written."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    mount("--bind", str(trained_home), str(folder))
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    yield folder
    unmount(folder)


def unmount(folder: Path) -> None:
    """Lazily: memory maps of what failed may still wait to be collected."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mount(*arguments: str) -> None:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command on this machine")
    if done.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")


def test_a_full_disk(small_disk: Path, journey: Journey, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNEY_HOME", str(small_disk))
    refused(journey("train", tiny_recipe), 1, str(small_disk), "space")
    leftovers = [name for name in files_under(small_disk) if ".tmp" in name]
    assert leftovers == []


def test_a_read_only_home_still_serves_what_is_there(
    read_only: Path, journey: Journey, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNEY_HOME", str(read_only))
    before = files_under(read_only)
    assert journey("runs", "list", "--json").json[0]["status"] == "finished"
    assert journey("generate", "rivers", "The", "--set", "max_new_tokens=2").code == 0
    refused(journey("train", tiny_recipe), 1, str(read_only), "JOURNEY_HOME")
    refused(journey("report", "rivers"), 1, str(read_only))
    assert files_under(read_only) == before


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "chat template"),
        ("{% for i in range(100000000) %}x{% endfor %}", "chat template"),
        ("{% for message in messages %}{{ message.content", "chat template"),
    ],
    ids=["CVE-2024-34359", "endless", "broken"],
)
def test_a_hostile_chat_template(template: str, part: str, home: Path, journey: Journey) -> None:
    """CVE-2024-34359: a model's chat template ran code."""
    import json

    path = home / "runs" / "rivers" / "model" / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"chat_template": template}), encoding="utf-8")
    refused(journey("chat", "rivers", "Hi"), 2, part)
    assert journey("generate", "rivers", "The", "--set", "max_new_tokens=2").code == 0


def test_a_damaged_model_is_named(home: Path, journey: Journey) -> None:
    weights = home / "runs" / "rivers" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    refused(journey("generate", "rivers", "The"), 2, "model.safetensors")
