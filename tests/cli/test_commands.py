"""Each command on a small trained run: what it prints for people and for scripts, and where."""

import json
from pathlib import Path

import pytest

from command_line import Journey, files_under


def test_runs_list_gives_names_paths_states_and_figures(shared_home: Path, journey: Journey) -> None:
    (run,) = journey("runs", "list", "--json").json
    assert (run["name"], run["status"]) == ("rivers", "finished")
    assert run["path"] == str(shared_home / "runs" / "rivers")
    figures = run["figures"]
    for name in ("validation_loss", "perplexity", "bits_per_byte", "tokens", "tokens_per_second", "mfu", "parameters"):
        assert figures[name] > 0, name
    assert figures["logit_difference"] <= 1e-4
    assert {"gzip", "xz", "xz_primed", *(f"kneser_ney_{order}" for order in range(1, 6))} == run["baselines"].keys()
    table = journey("runs", "list").out
    assert "rivers" in table and f"{figures['bits_per_byte']:.3f}" in table


def test_runs_list_without_runs(empty_home: Path, journey: Journey) -> None:
    assert journey("runs", "list", "--json").json == []
    outcome = journey("runs", "list")
    assert (outcome.code, outcome.out) == (0, "")
    assert "journey quickstart" in outcome.err
    assert not empty_home.exists()


def test_runs_show(shared_home: Path, journey: Journey) -> None:
    shown = journey("runs", "show", "rivers", "--json").json
    assert shown["recipe"]["model"]["width"] == 16
    assert shown["failures"] == {}
    assert Path(shown["report"]).is_file()
    text = journey("runs", "show", "rivers").out
    assert "Bits per byte" in text and "width: 16" in text


def test_a_run_can_be_named_by_its_folder(shared_home: Path, journey: Journey) -> None:
    assert journey("runs", "show", shared_home / "runs" / "rivers", "--json").json["name"] == "rivers"


def test_an_unknown_run_lists_close_ones(shared_home: Path, journey: Journey) -> None:
    outcome = journey("runs", "show", "rivrs")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "error: unknown run 'rivrs'; did you mean rivers?\n"


def test_runs_compare(home: Path, journey: Journey, tmp_path: Path) -> None:
    more = journey("train", "rivers", "--set", "training.steps=20", "--name", "longer")
    assert more.code == 0, more.err
    page = tmp_path / "page.html"
    compared = journey("runs", "compare", "rivers", "longer", "--json", "--to", page).json
    assert [run["name"] for run in compared["runs"]] == ["rivers", "longer"]
    assert compared["recipe_differences"] == {"training.steps": [12, 20]}
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    text = journey("runs", "compare", "rivers", "longer").out
    assert "training.steps" in text and "longer" in text
    assert journey("runs", "compare", "rivers").code == 2


def test_generate_writes_the_text_to_standard_output(shared_home: Path, journey: Journey) -> None:
    arguments = ("generate", "rivers", "The river", "--set", "seed=3", "--set", "max_new_tokens=8")
    plain, as_json = journey(*arguments), journey(*arguments, "--json").json
    assert (plain.code, plain.err) == (0, "")
    assert plain.out == as_json["prompt"] + as_json["text"] + "\n"
    assert as_json["tokens"] <= 8 and as_json["finish_reason"] in {"length", "stop"}
    folder = shared_home / "runs" / "rivers" / "model"
    assert journey("generate", folder, *arguments[2:], "--json").json["text"] == as_json["text"]


def test_generate_refuses_what_does_not_fit_with_both_counts(shared_home: Path, journey: Journey) -> None:
    """ollama#17889: a prompt longer than the context was cut in silence."""
    outcome = journey("generate", "rivers", "river " * 100)
    assert (outcome.code, outcome.out) == (2, "")
    assert "context holds 32" in outcome.err and outcome.err.count("\n") == 1
    assert journey("chat", "rivers", "river " * 100).code == 2


def test_generate_checks_its_settings(shared_home: Path, journey: Journey) -> None:
    outcome = journey("generate", "rivers", "The", "--set", "temprature=1")
    assert outcome.code == 2
    assert "unknown key 'temprature'; allowed: temperature" in outcome.err
    assert journey("generate", "rivers", "The", "--set", "top_p=7").code == 2


def test_chat_once_and_in_turns(
    shared_home: Path, journey: Journey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = journey("chat", "rivers", "Hi", "--set", "max_new_tokens=4", "--json")
    assert once.code == 0, once.err
    assert once.json["messages"] == [{"role": "user", "content": "Hi"}]
    script = tmp_path / "turns.txt"
    script.write_text("a b\n" * 12 + "/new\nHi\n\nnot read\n", encoding="utf-8")
    with script.open(encoding="utf-8") as turns:
        monkeypatch.setattr("sys.stdin", turns)
        outcome = journey("chat", "rivers", "--set", "max_new_tokens=2")
    assert outcome.code == 0, outcome.err
    assert "context holds 32" in outcome.err and "/new starts over" in outcome.err
    assert journey("chat", "rivers", "--json").code == 2


def test_tokenizer_show(shared_home: Path, journey: Journey) -> None:
    facts = journey("tokenizer", "show", "rivers", "--json").json
    assert facts["vocab_size"] == 300
    assert facts["report"]["bytes_per_token"] > 1
    cut = journey("tokenizer", "show", "rivers", "The river", "--json").json["tokens"]
    assert "".join(token["text"] for token in cut) == "The river"
    assert "bytes per token" in journey("tokenizer", "show", "rivers").out
    assert "'ver'" in journey("tokenizer", "show", "rivers", "The river").out


def test_tokenizer_train_writes_a_folder_that_opens(
    empty_home: Path, corpus: Path, journey: Journey, tmp_path: Path
) -> None:
    to = tmp_path / "tokenizer"
    settings = ("--set", "tokenizer.vocab_size=280", "--json")
    trained = journey("tokenizer", "train", corpus, "--to", to, *settings)
    assert trained.code == 0, trained.err
    assert trained.json["vocab_size"] == 280
    expected = {"tokenizer.json", "tokenizer_config.json", "vocabulary.json", "ranks.tiktoken"}
    assert set(files_under(to)) == expected
    assert journey("tokenizer", "show", to, "--json").json["fingerprint"] == trained.json["fingerprint"]
    again = journey("tokenizer", "train", corpus, "--to", to, *settings)
    assert (again.code, again.out) == (2, "")
    assert "give a new folder with --to" in again.err


def test_data_prepare_says_what_became_of_the_text(empty_home: Path, corpus: Path, journey: Journey) -> None:
    arguments = ("data", "prepare", corpus, "--set", "tokenizer.vocab_size=280")
    found = journey(*arguments, "--json").json
    assert found["preparation"]["documents_in"] == 40
    assert found["preparation"]["train_documents"] + found["preparation"]["validation_documents"] == 40
    assert found["bytes_per_token"] > 1
    assert all(path.startswith(str(empty_home)) for path in (found["text"], found["shards"]))
    table = journey(*arguments).out
    for label in ("documents in", "duplicates", "training tokens", "bytes per token"):
        assert label in table


def test_data_show_reads_kept_and_dropped(empty_home: Path, corpus: Path, journey: Journey, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number, path in enumerate(sorted(corpus.iterdir())[:6]):
        (texts / f"{number}.txt").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    (texts / "short.txt").write_text("Too few.", encoding="utf-8")
    settings = ("--set", "tokenizer.vocab_size=280")
    shown = journey("data", "show", texts, "--count", "2", *settings, "--json").json
    assert len(shown["kept"]) == 2
    assert [(item["identifier"], item["reason"]) for item in shown["dropped"]] == [("short.txt", "too short (2 words)")]
    text = journey("data", "show", texts, "--dropped", "too short", *settings).out
    assert "Too few." in text and "kept" not in text
    unknown = journey("data", "show", texts, "--dropped", "too ugly", *settings)
    assert unknown.code == 2 and "was for: too short" in unknown.err


def test_lists_of_data_and_models(empty_home: Path, journey: Journey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNEY_DATA_DIR", raising=False)
    data = {item["name"]: item for item in journey("data", "list", "--json").json}
    assert data["wiki-summaries"]["licence"] == "CC BY-SA 4.0"
    assert data["wiki-summaries"]["state"] == "available"
    assert data["cranfield"]["state"] == "unavailable"
    models = [item["name"] for item in journey("models", "list", "--json").json]
    assert models == ["smollm2-135m-instruct", "all-minilm-l6-v2"]
    assert "CC BY-SA 4.0" in journey("data", "list").out
    assert "Apache-2.0" in journey("models", "list").out
    wrong = journey("models", "pull", "wiki-summaries")
    assert wrong.code == 2 and "journey data pull wiki-summaries" in wrong.err


def test_a_model_that_cannot_be_opened_says_what_can(empty_home: Path, journey: Journey) -> None:
    embeddings = journey("generate", "all-minilm-l6-v2", "Hi")
    assert embeddings.code == 2 and "generates no text" in embeddings.err
    assert journey("generate", "wiki-summaries", "Hi").code == 2
    unknown = journey("generate", "nothing-of-that-name", "Hi")
    assert unknown.code == 2 and unknown.err.count("\n") == 1


def test_report_is_written_again(home: Path, journey: Journey) -> None:
    report = home / "runs" / "rivers" / "report.html"
    report.unlink()
    outcome = journey("report", "rivers")
    assert outcome.out == f"{report}\n"
    assert report.is_file()
    measured = journey("report", "rivers", "--measure", "--json")
    assert measured.code == 0, measured.err
    assert measured.json["failures"] == {}


def test_doctor(shared_home: Path, journey: Journey) -> None:
    outcome = journey("doctor", "--json")
    assert outcome.code == 0, outcome.err
    names = {finding["name"] for finding in outcome.json["findings"]}
    assert {"python", "torch", "cores", "memory", "vector instructions", "C++ compiler", "free disk"} <= names
    assert {"hf", "data", "track", "dev", "cache", "runs"} <= names
    assert str(shared_home) in journey("doctor").out


def test_clean_lists_then_removes(home: Path, journey: Journey) -> None:
    listed = journey("clean", "--dry-run", "--json").json
    assert {item["kind"] for item in listed["items"]} == {"prepared", "checkpoints"}
    before = files_under(home)
    assert journey("clean", "--dry-run").code == 0
    refused = journey("clean")
    assert refused.code == 2 and "--yes" in refused.err
    assert files_under(home) == before
    removed = journey("clean", "--yes", "--json").json
    assert removed["bytes"] == listed["bytes"]
    assert journey("clean", "--dry-run", "--json").json["items"] == []
    assert journey("generate", "rivers", "The", "--set", "max_new_tokens=2").code == 0
    unknown = journey("clean", "--only", "everything", "--dry-run")
    assert unknown.code == 2 and "known: checkpoints, compiled, leftovers, prepared, pulled" in unknown.err


def test_progress_stays_off_standard_output(home: Path, journey: Journey) -> None:
    outcome = journey("train", "rivers", "--name", "second", "--json")
    assert json.loads(outcome.out)["name"] == "second"
    assert "training" in outcome.err
    assert "\x1b" not in outcome.out + outcome.err


def test_nothing_is_written_under_the_home_directory(home: Path, journey: Journey) -> None:
    own = {"llm-journey"}
    for command in (("data", "list"), ("runs", "list"), ("doctor",), ("generate", "rivers", "The")):
        journey(*command)
    written = {part for name in files_under(Path.home()) for part in Path(name).parts}
    assert written.isdisjoint(own)
