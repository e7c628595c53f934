"""The catalog: what it names, how a name becomes a path, what JOURNEY_DATA_DIR means."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.datasets import catalog, hub
from llm_journey.datasets.catalog import CATALOG, list_items, locate, resolve
from llm_journey.datasets.convert import CONVERTERS, convert
from llm_journey.datasets.sources import CatalogFile, Entry, HttpsSource, HubSource, WheelSource

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TESTSETS = [entry for entry in CATALOG.values() if entry.kind == "testset"]


@pytest.fixture(autouse=True)
def empty_home(monkeypatch, tmp_path):
    monkeypatch.setenv("JOURNEY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hugging-face"))
    for name in ("JOURNEY_DATA_DIR", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)


def make_entry(monkeypatch, files, **changes):
    """An entry called `small` in the catalog, whose files have the given content."""
    described = tuple(
        CatalogFile(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()
    )
    entry = Entry(
        **{
            "name": "small",
            "kind": "testset",
            "title": "t",
            "licence": "MIT",
            "files": described,
            "sources": (),
            **changes,
        }
    )
    monkeypatch.setitem(CATALOG, "small", entry)
    return entry


def write_files(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("entry", CATALOG.values(), ids=list(CATALOG))
def test_every_entry_is_whole(entry):
    assert CATALOG[entry.name] is entry and entry.title and entry.licence
    assert entry.sources or "JOURNEY_DATA_DIR only" in entry.note
    pinned = [*entry.files]
    for source in entry.sources:
        pinned += source.files
        match source:
            case HubSource():
                assert re.fullmatch(r"[0-9a-f]{40}", source.revision)
            case HttpsSource():
                assert all(re.match(r"https://\S+/[0-9a-f]{40}/", address) for address, _ in source.downloads)
                pinned += [file for _, file in source.downloads]
                assert source.conversion is None or source.conversion in CONVERTERS
            case WheelSource():
                assert source.wheel.name.endswith(".whl") and source.version in source.wheel.name
                pinned += [source.wheel, *(file for _, file in source.members)]
                assert source.conversion is None or source.conversion in CONVERTERS
    for file in pinned:
        assert file.size > 0 and re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert not file.name.startswith("/") and ".." not in file.name.split("/")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not beside this checkout")
@pytest.mark.parametrize("entry", TESTSETS, ids=[entry.name for entry in TESTSETS])
def test_the_pinned_hashes_are_those_of_the_shared_data_sets(monkeypatch, entry):
    monkeypatch.setenv("JOURNEY_DATA_DIR", str(SHARED))
    path = resolve(entry.name)
    assert path == SHARED / entry.name / (entry.files[0].name if len(entry.files) == 1 else "")


def test_the_data_folder_is_used_first_and_never_written(monkeypatch, tmp_path):
    files = {"a.jsonl": b"{}\n", "sub/b.jsonl": b"[]\n"}
    make_entry(monkeypatch, files)
    write_files(tmp_path / "data" / "small", files)
    write_files(tmp_path / "home" / "cache" / "catalog" / "small", files)
    monkeypatch.setenv("JOURNEY_DATA_DIR", str(tmp_path / "data"))
    for path in [*(tmp_path / "data").rglob("*"), tmp_path / "data"]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted((str(path), path.stat().st_mtime_ns) for path in (tmp_path / "data").rglob("*"))
    assert resolve("small") == tmp_path / "data" / "small"
    assert sorted((str(path), path.stat().st_mtime_ns) for path in (tmp_path / "data").rglob("*")) == before
    monkeypatch.delenv("JOURNEY_DATA_DIR")
    assert resolve("small") == tmp_path / "home" / "cache" / "catalog" / "small"


def test_another_file_in_the_data_folder_is_refused_by_name(monkeypatch, tmp_path):
    make_entry(monkeypatch, {"a.jsonl": b"{}\n"})
    write_files(tmp_path / "data" / "small", {"a.jsonl": b"[]\n"})
    monkeypatch.setenv("JOURNEY_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(BadInputError, match=r"small/a\.jsonl, whose sha256 is not"):
        resolve("small")
    monkeypatch.setenv("JOURNEY_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(BadInputError, match="nowhere, which is no folder"):
        resolve("small")


def test_a_damaged_cached_file_counts_as_missing(monkeypatch, tmp_path):
    files = {"a.jsonl": b"{}\n"}
    entry = make_entry(monkeypatch, files)
    write_files(tmp_path / "home" / "cache" / "catalog" / "small", files)
    assert resolve("small").read_bytes() == b"{}\n"
    write_files(tmp_path / "home" / "cache" / "catalog" / "small", {"a.jsonl": b"{]\n"})
    assert locate(entry) is None


def test_a_model_in_the_hugging_face_cache_is_found_there(monkeypatch, tmp_path):
    files = {"config.json": b"{}"}
    entry = make_entry(monkeypatch, files, kind="model")
    source = HubSource("owner/model", "a" * 40, entry.files)
    make_entry(monkeypatch, files, kind="model", sources=(source,))
    snapshot = tmp_path / "hugging-face" / "hub" / "models--owner--model" / "snapshots" / ("a" * 40)
    blob = snapshot.parents[1] / "blobs" / "b"
    write_files(snapshot.parents[1] / "blobs", {"b": b"{}"})
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to(blob)
    assert resolve("small") == snapshot
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert hub.hub_snapshot(source).is_relative_to(tmp_path / "elsewhere")


def test_paths_and_globs_are_their_own_answer_and_anything_else_lists_the_names(tmp_path):
    assert resolve(str(tmp_path)) == tmp_path
    assert resolve(str(tmp_path / "*.txt")) == tmp_path / "*.txt"
    with pytest.raises(BadInputError, match=r"no file or folder here, nor a catalog item.*wiki-summaries"):
        resolve("no-such-thing")
    for name in ("x" * 5000, "~no-such-user/x", "a\x00b"):
        with pytest.raises(BadInputError, match=r"no usable path|no file or folder"):
            resolve(name)


def test_states_say_where_an_item_is(monkeypatch, tmp_path):
    files = {"a.jsonl": b"{}\n"}
    entry = make_entry(monkeypatch, files)

    def state():
        return next((item.state, item.path) for item in list_items() if item.entry.name == "small")

    assert state() == ("unavailable", None)
    make_entry(monkeypatch, files, sources=(HttpsSource((("https://example.org/a", entry.files[0]),), entry.files),))
    assert state() == ("available", None)
    cached = tmp_path / "home" / "cache" / "catalog" / "small"
    write_files(cached, files)
    assert state() == ("cached", cached)
    write_files(tmp_path / "data" / "small", files)
    monkeypatch.setenv("JOURNEY_DATA_DIR", str(tmp_path / "data"))
    assert state() == ("local", tmp_path / "data" / "small")
    assert {item.entry.kind for item in list_items("model")} == {"model"}


def test_conversions_are_exact(tmp_path):
    def run(name, served, content):
        source, target = tmp_path / name / "in", tmp_path / name / "out"
        write_files(source, {served: content.encode()})
        target.mkdir()
        convert(name, source, target)
        return next(target.iterdir()).read_text(encoding="utf-8").splitlines()

    articles = {"Zürich": {"title": "Zürich", "extract": "A city\u2028in Switzerland.", "topic": "Places"}}
    path = tmp_path / "wiki-summaries" / "out" / "wiki-summaries.jsonl"
    run("wiki-summaries", "summaries_en-us.json", json.dumps(articles))
    assert path.read_bytes() == '{"title": "Zürich", "text": "A city\u2028in Switzerland."}\n'.encode()

    problems = [{"question": f"{number}é?", "answer": f"#### {number}"} for number in range(1319)]
    found = run("gsm8k", "test.jsonl", "".join(json.dumps(problem) + "\n" for problem in problems))
    assert len(set(found)) == 660 and set(found) < {json.dumps(row, ensure_ascii=False) for row in problems}
    assert found[0] == json.dumps(problems[1101], ensure_ascii=False)

    lines = [f'{{"ID": "{number}",  "odd":1}}' for number in range(4507)]
    found = run("halueval", "general_data.json", "\n".join(lines) + "\n")
    assert len(set(found)) == 2250 and set(found) < set(lines)
    assert found[0] == lines[1771]

    task = {"id": "seed_task_0", "name": "n", "instruction": "i", "is_classification": True}
    found = run("self-instruct", "seed_tasks.jsonl", json.dumps({**task, "instances": [{"input": "", "output": "o"}]}))
    assert json.loads(found[0]) == {
        "id": "seed_task_0",
        "instruction": "i",
        "input": "",
        "output": "o",
        "is_classification": True,
    }
    with pytest.raises(BadInputError, match="known: gsm8k"):
        convert("nothing", tmp_path, tmp_path)


def test_an_item_without_a_source_names_the_way_to_use_it(monkeypatch):
    make_entry(monkeypatch, {"a.jsonl": b"{}\n"}, note="served nowhere")
    with pytest.raises(JourneyError, match=r"served nowhere\); set JOURNEY_DATA_DIR to a folder that holds small/"):
        resolve("small")


def test_incident_3_cve_2024_37032_a_name_is_never_a_path_into_the_cache(monkeypatch, tmp_path):
    for name in ("../x", "/etc/passwd/x", "wiki-summaries/../../x", "sha256:../../x", "", "a\nb"):
        with pytest.raises(BadInputError):
            catalog.find(name)
        with pytest.raises(BadInputError):
            catalog.cached_folder(name if name.startswith((".", "/")) else f"{name}/../../../x")
    assert not (tmp_path / "home").exists()
