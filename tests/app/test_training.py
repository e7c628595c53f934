"""Whole runs from Python: names, recipes, resuming, what an observer is told."""

from pathlib import Path
from typing import Any

import pytest

import llm_journey
from llm_journey.app import training
from llm_journey.app.quickstart import StageTimes, run_quickstart
from llm_journey.app.recipes import find_recipe, recipe_for_source
from llm_journey.app.runs import find_run
from llm_journey.core.errors import BadInputError
from llm_journey.training.observer import Observer
from llm_journey.training.recipe import Recipe, load_recipe


class Recorder(Observer):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.messages: list[str] = []
        self.steps: list[int] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def step(self, row: dict[str, Any]) -> None:
        self.steps.append(row["step"])


def test_train_returns_the_run(home: Path, tiny_recipe: Path, corpus: Path) -> None:
    watching = Recorder()
    run = llm_journey.train(tiny_recipe, overrides=["training.steps=8"], name="from-python", observer=watching)
    assert (run.name, run.status, run.failures) == ("from-python", "finished", {})
    assert run.figures["bits_per_byte"] > 0 and run.report is not None
    assert watching.steps[-1] == 8
    assert watching.stages.index("training") < watching.stages.index("comparing with the baselines")
    assert watching.stages[-1] == "writing the report"
    assert load_recipe(run.directory).name == "from-python"
    assert run.model().name == "from-python"

    tokens = run.figures["tokens"]
    longer = llm_journey.train("from-python", overrides=["training.steps=12"], resume=True)
    assert longer.directory == run.directory
    assert longer.figures["tokens"] == tokens * 12 / 8


def test_a_recipe_object_takes_no_overrides(empty_home: Path, tiny_recipe: Path) -> None:
    with pytest.raises(BadInputError, match=r"dataclasses\.replace"):
        llm_journey.train(load_recipe(tiny_recipe), overrides=["seed=1"])


def test_recipes_are_found_by_name_file_and_run(shared_home: Path, tiny_recipe: Path) -> None:
    assert find_recipe("quickstart").data.source == "wiki-summaries"
    assert find_recipe(str(tiny_recipe), ["seed=5"]).seed == 5
    assert find_recipe("rivers").model.width == 16
    assert find_recipe(str(shared_home / "runs" / "rivers")).model.width == 16
    with pytest.raises(BadInputError, match=r"unknown recipe 'nothing': give one of chat, cranfield, dates, distill, "):
        find_recipe("nothing")


def test_a_folder_that_is_called_like_a_recipe_is_not_passed_over(
    shared_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("small", "rivers"):
        (tmp_path / name).mkdir()
        with pytest.raises(BadInputError, match=f"for the folder, write ./{name}"):
            recipe_for_source(name)
        assert recipe_for_source(f"./{name}").data.source == f"./{name}"
    assert recipe_for_source("tiny").name == "tiny"


def test_a_source_by_itself_is_prepared_like_the_quickstart(shared_home: Path, corpus: Path) -> None:
    recipe = recipe_for_source(str(corpus), ["data.held_out=0.5"])
    assert (recipe.data.source, recipe.data.held_out) == (str(corpus), 0.5)
    assert recipe.tokenizer == find_recipe("quickstart").tokenizer
    assert recipe_for_source("rivers").model.width == 16


def test_quickstart_puts_everything_together(empty_home: Path, corpus: Path) -> None:
    """On a small corpus and for a few steps; README's test runs the real one."""
    small = [
        *(f"data.source={corpus}", "data.held_out=0.2", "tokenizer.vocab_size=300", "training.steps=6"),
        *("model.width=16", "model.num_layers=1", "model.num_heads=2", "model.context=32", "training.validations=1"),
    ]
    summary = run_quickstart(overrides=small, chat=False, observer=Observer())
    described = summary.describe()
    assert described["name"] == "quickstart" and described["failures"] == {}
    assert [sample["prompt"] for sample in described["samples"]] == [
        "The city of",
        "In mathematics,",
        "She was born in",
    ]
    assert {"preparing the text", "training", "comparing with the baselines", "writing samples"} <= set(summary.stages)
    assert sum(summary.stages.values()) == pytest.approx(summary.seconds, abs=1.0)
    bits = described["figures"]["bits_per_byte"]
    assert described["beaten"] == [name for name, value in described["baselines"].items() if value > bits]
    assert Path(described["report"]).is_file() and (Path(described["model"]) / "README.md").is_file()
    for command in described["next"]:
        assert command.startswith("journey ")


def test_stage_times_pass_everything_on() -> None:
    watching = Recorder()
    times = StageTimes(watching)
    times.stage("one")
    times.message("hello")
    times.step({"step": 3})
    times.stage("two")
    times.stage("one")
    assert (watching.stages, watching.messages, watching.steps) == (["one", "two", "one"], ["hello"], [3])
    assert list(times.finish()) == ["one", "two"]


def test_a_run_that_failed_before_its_first_step_frees_its_name(
    empty_home: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llm_journey.training.run.peak_flops", stop)
        with pytest.raises(KeyboardInterrupt):
            llm_journey.train(tiny_recipe)
    assert not (empty_home / "runs" / "rivers").exists()
    with pytest.raises(BadInputError, match="unknown run"):
        find_run("rivers")


@pytest.mark.parametrize(("load", "said"), [(2.6, True), (0.4, False)])
def test_a_busy_machine_is_named_before_a_budget_of_seconds(
    load: float, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = Recorder()
    monkeypatch.setattr(training, "usable_cores", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    training._warn_where_busy(watching)
    assert (
        watching.messages
        == [f"this machine is busy (load {load} on 2 cores): the budget will see fewer tokens"][: int(said)]
    )


def test_the_api_is_documented() -> None:
    for function in (llm_journey.load, llm_journey.train):
        assert function.__doc__ is not None and "Raises" in function.__doc__
    assert isinstance(find_recipe("quickstart"), Recipe)
