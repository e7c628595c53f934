"""What follows training, and that no failure in it costs the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

import llm_journey
from command_line import Journey
from llm_journey.app import measure as measuring
from llm_journey.app.runs import TrainedRun, find_run
from llm_journey.core.errors import JourneyError
from llm_journey.training.observer import Observer
from llm_journey.training.recipe import Recipe, recipe_from


def out_of_memory(*arguments: Any, **options: Any) -> NoReturn:
    raise MemoryError


def test_evaluations_that_run_out_of_memory_cost_no_model(
    home: Path, journey: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nanochat#446: a finished run was lost because its evaluation ran out of memory."""
    targets = ("evaluation.baselines.measure", "checkpoint.verify.compare_with_transformers")
    with monkeypatch.context() as patch:
        for target in (*targets, "reports.run_report.write_report"):
            patch.setattr(f"llm_journey.{target}", out_of_memory)
        outcome = journey("train", "rivers", "--name", "second", "--json")
    assert outcome.code == 1
    run = find_run("second")
    assert run.status == "finished"
    failed = ("comparing with the baselines", "opening the model with transformers", "writing the report")
    assert [run.failures[name] for name in failed] == ["MemoryError"] * 3
    assert "journey report second --measure" in outcome.err
    assert run.model().generate("The", max_new_tokens=2, seed=0) is not None
    again = journey("report", "second", "--measure", "--json")
    assert (again.code, again.json["failures"]) == (0, {})
    assert run.failures == {} and run.report is not None and "gzip" in run.baselines


def test_a_validation_that_runs_out_of_memory_costs_no_model(
    home: Path, journey: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nanochat#446, the last validation: the model lies saved, and the message says where and how to go on."""
    from llm_journey.training import objectives

    calls: list[int] = []

    def fail_at_the_end(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return validate(*arguments)

    validate: Callable[..., Any] = objectives.validate
    with monkeypatch.context() as patch:
        patch.setattr(objectives, "validate", fail_at_the_end)
        outcome = journey("train", "rivers", "--name", "second")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("error: the model is trained and saved in ")
    assert "journey train second --resume" in outcome.err
    assert llm_journey.load("second").generate("The", max_new_tokens=2, seed=0) is not None
    assert journey("train", "second", "--resume").code == 0
    assert find_run("second").status == "finished"


def test_an_export_over_its_bound_is_a_failure(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_journey.checkpoint.verify.compare_with_transformers", lambda *_: 0.5)
    failures = measuring.measure(find_run("rivers"))
    assert list(failures) == ["opening the model with transformers"]
    assert "over the bound 1e-04" in failures["opening the model with transformers"]
    assert find_run("rivers").figures["logit_difference"] == 0.5


def test_without_transformers_the_rest_is_measured(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = find_run("rivers")
    (run.directory / "model" / "README.md").unlink()
    information = measuring.RunFolder.open(run.directory)
    information.update(figures={"logit_difference": None})
    find_spec = measuring.importlib.util.find_spec
    monkeypatch.setattr(
        measuring.importlib.util, "find_spec", lambda name: None if name == "transformers" else find_spec(name)
    )
    assert measuring.measure(run) == {}
    assert not (run.directory / "model" / "README.md").exists()
    assert run.report is not None


def test_the_card_is_filled_and_the_recipe_lies_beside_it(shared_home: Path) -> None:
    model = find_run("rivers").directory / "model"
    card = (model / "README.md").read_text(encoding="utf-8")
    assert "Opened with transformers in float32" in card
    assert "never trained on" in card and "Kneser-Ney 5-gram" in card
    assert (model / "recipe.yaml").read_text(encoding="utf-8").startswith("name: rivers")


def test_a_catalog_source_brings_its_licence() -> None:
    data, data_licence, licence = measuring._data_in_words(_recipe("wiki-summaries"), 474)
    assert data.startswith("Trained on 474 documents of `wiki-summaries` (") and "Wikipedia" in data
    assert (data_licence, licence) == ("CC BY-SA 4.0", "cc-by-sa-4.0")
    assert measuring._data_in_words(_recipe("/home/me/notes"), 9)[1:] == ("not stated by its owner", "other")


def test_the_card_names_the_stream_that_was_trained_on() -> None:
    recipe = _recipe("wiki-summaries", stream="/home/me/huge.jsonl")
    assert measuring._data_in_words(recipe, 9) == (
        "Trained on the stream `huge.jsonl`",
        "not stated by its owner",
        "other",
    )
    assert "never trained on" not in measuring._held_out_in_words(recipe)
    assert "`wiki-summaries`" in measuring._held_out_in_words(recipe)


def test_measuring_that_is_interrupted_says_how_to_go_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    works = {name: lambda _: None for name in measuring._MEASUREMENTS}
    monkeypatch.setattr(measuring, "_MEASUREMENTS", {**works, "writing the model card": interrupted})
    heard: list[str] = []
    observer = Observer()
    observer.message = heard.append  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        measuring.measure(find_run("rivers"), observer)
    assert heard == ["the model is saved; measure it with: journey report rivers --measure"]
    failures = measuring.RunFolder.open(home / "runs" / "rivers").information["failures"]
    assert failures == {"writing the model card": "interrupted", "writing the report": "interrupted"}


def _recipe(source: str, **training: Any) -> Recipe:
    return recipe_from({"data": {"source": source}, "training": {"steps": 1, **training}}, "test")


def test_data_that_was_cleaned_away_is_prepared_again(home: Path, journey: Journey) -> None:
    folder = measuring.RunFolder.open(home / "runs" / "rivers")
    before = folder.information["baselines"]
    cleaned = {name: path.replace("trained", "gone") for name, path in folder.information["paths"].items()}
    folder.update(paths=cleaned, baselines={})
    assert journey("clean", "--only", "prepared", "--yes").code == 0
    assert measuring.measure(find_run("rivers")) == {}
    assert find_run("rivers").baselines == before


def test_data_that_changed_since_the_run_is_refused(home: Path) -> None:
    """A model's figures and its baselines speak of the same text, or nothing is said (NeMo-RL#2519)."""
    folder = measuring.RunFolder.open(home / "runs" / "rivers")
    folder.update(fingerprints={**folder.information["fingerprints"], "validation": "another"})
    failures = measuring.measure(find_run("rivers"))
    assert "the validation data changed since this run (another, now " in failures["comparing with the baselines"]


def test_describe_error_is_one_line() -> None:
    assert measuring.describe_error(JourneyError("no\nnetwork")) == "no network"
    assert measuring.describe_error(MemoryError()) == "MemoryError"
    assert measuring.describe_error(ValueError("a\n b")) == "ValueError: a b"


def test_a_run_shows_itself_in_a_notebook(shared_home: Path) -> None:
    html = find_run("rivers")._repr_html_()
    assert html.startswith("<table>") and "Bits per byte" in html
    assert "<script" not in TrainedRun(shared_home / "runs" / "rivers")._repr_html_()
