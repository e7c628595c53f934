"""journey generate and chat: the options that say what an answer may be, and how fast it comes."""

import json
from pathlib import Path

import pytest

from command_line import Journey

pytestmark = pytest.mark.usefixtures("shared_home")


def test_choices_and_regexes(journey: Journey) -> None:
    chosen = journey("generate", "rivers", "The ", "--choice", "river", "--choice", "town", "--set", "seed=1")
    assert chosen.code == 0 and chosen.out in ("The river\n", "The town\n")
    matched = journey("chat", "rivers", "Hi", "--regex", "[0-9]{3}", "--json")
    assert matched.code == 0 and len(json.loads(matched.out)["text"]) == 3 and int(json.loads(matched.out)["text"]) >= 0


def test_a_schema_from_a_file(journey: Journey, tmp_path: Path) -> None:
    path = tmp_path / "town.json"
    path.write_text('{"type": "object", "properties": {"old": {"type": "boolean"}}, "required": ["old"]}')
    outcome = journey("generate", "rivers", "x", "--schema", path, "--set", "max_new_tokens=25", "--json")
    assert json.loads(json.loads(outcome.out)["text"])["old"] in (True, False)


def test_guessing_is_shown(journey: Journey) -> None:
    plain, guessed = (
        journey("generate", "rivers", "The river", "--set", "temperature=0", "--json", *more)
        for more in ((), ("--draft", "rivers"))
    )
    plain, guessed = json.loads(plain.out), json.loads(guessed.out)
    assert guessed["text"] == plain["text"] and 0 < guessed["acceptance_rate"] <= 1
    assert guessed["kept"] / guessed["guessed"] == pytest.approx(guessed["acceptance_rate"], abs=1e-4)
    assert "guessed" not in plain
    lookup = journey("generate", "rivers", "a b a b a b", "--set", "speculate=lookup", "--set", "seed=1", "--json")
    assert json.loads(lookup.out)["guessed"] > 0


def test_logprobs_are_printed(journey: Journey) -> None:
    options = ("--set", "logprobs=2", "--set", "max_new_tokens=3", "--regex", ".{9}")  # or the first may be the end
    outcome = journey("generate", "rivers", "The", *options, "--json")
    found = json.loads(outcome.out)["logprobs"]
    assert 0 < len(found) <= 3 and all(len(each["top"]) == 2 and each["logprob"] <= 0 for each in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--regex", "foo**"), "the regex 'foo**' is wrong: multiple repeat at position 4"),
        (("--schema", "nowhere.json"), "nowhere.json: no such file"),
        (("--regex", "a", "--choice", "b"), "give one of schema, regex, choices; given: regex, choices"),
        (("--precision", "int5"), "unknown precision 'int5'"),
        (("--set", "stop=[]", "--set", "typical_p=2"), "typical_p must be above 0"),
        (("--draft", "nothing"), "unknown model 'nothing'"),
    ],
)
def test_wrong_options_are_one_line(journey: Journey, options: tuple[str, ...], message: str) -> None:
    outcome = journey("generate", "rivers", "The", *options)
    assert outcome.code == 2 and outcome.out == ""
    assert message in outcome.err and outcome.err.count("\n") == 1


def test_compile_is_asked_of_the_engine(journey: Journey, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("llm_journey.generation.runner.Runner.compile", lambda _, **options: asked.append(options))
    monkeypatch.setattr("llm_journey.generation.runner.Runner.use_kept", lambda _, **__: asked.append("kept"))
    for flags in (["--compile"], ["--no-compile"], []):
        assert journey("generate", "rivers", "The", "--set", "max_new_tokens=2", *flags).code == 0
    assert asked[0]["several"] is False and asked[1:] == ["kept"]


def test_a_beam_search_is_asked_for_by_its_settings(journey: Journey) -> None:
    done = journey("generate", "rivers", "The", "--set", "num_beams=3", "--set", "max_new_tokens=4", "--json")
    assert done.code == 0 and len(done.json["candidates"]) == 3
    found = [each["log_probability"] for each in done.json["candidates"]]
    assert found == sorted(found, reverse=True) and done.json["text"] == done.json["candidates"][0]["text"]
    assert journey("generate", "rivers", "The", "--set", "num_beams=0").code == 2
    drafted = journey("generate", "rivers", "The", "--set", "num_beams=2", "--draft", "rivers")
    assert drafted.code == 2 and "no draft model" in drafted.err
