"""Runs by name: found, listed, numbered, held by one process."""

import json
import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from command_line import Journey
from llm_journey.app.runs import find_run, has_run, is_busy, list_runs, new_run_directory, working_on
from llm_journey.core.errors import BadInputError


def make_run(home: Path, name: str, **information: object) -> Path:
    folder = home / "runs" / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"name": name, "status": "finished", **information}), encoding="utf-8")
    return folder


def test_runs_are_listed_oldest_first_and_damaged_ones_left_out(empty_home: Path) -> None:
    make_run(empty_home, "b", created="2026-01-02T00:00:00+00:00")
    make_run(empty_home, "a", created="2026-01-03T00:00:00+00:00")
    (make_run(empty_home, "c") / "run.json").write_text("{", encoding="utf-8")
    (empty_home / "runs" / "no-run").mkdir()
    said: list[str] = []
    assert [run.name for run in list_runs(said.append)] == ["b", "a"]
    (message,) = said
    assert message.startswith("run 'c' is left out: ") and "run.json" in message


def test_a_name_leads_nowhere_else(empty_home: Path, tmp_path: Path) -> None:
    """CVE-2024-37032: names with ../ led outside."""
    make_run(empty_home, "good")
    outside = make_run(tmp_path / "elsewhere", "secret")
    (empty_home / "runs" / "link").symlink_to(outside)
    assert find_run("good").directory.name == "good"
    for name in ("../../elsewhere/runs/nothing", "", ".", "..", "a\x00b", "good/../nothing"):
        assert not has_run(name)
    with pytest.raises(BadInputError, match="leads outside"):
        find_run("link")


def test_taken_names_get_a_number(empty_home: Path) -> None:
    assert new_run_directory("quickstart").name == "quickstart"
    make_run(empty_home, "quickstart")
    assert new_run_directory("quickstart").name == "quickstart-2"
    make_run(empty_home, "quickstart-2")
    assert new_run_directory("quickstart").name == "quickstart-3"


def hold(folder: Path, held: Event, done: Event) -> None:
    with working_on(folder):
        held.set()
        done.wait(30)


def test_one_process_works_on_a_run(empty_home: Path) -> None:
    folder = make_run(empty_home, "shared", status="running")
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(folder, held, done))
    other.start()
    try:
        assert held.wait(30)
        assert is_busy(folder)
        assert find_run("shared").status == "running"
        with pytest.raises(BadInputError, match="another process is working on the run 'shared'"), working_on(folder):
            pass
    finally:
        done.set()
        other.join()
    assert not is_busy(folder)
    assert find_run("shared").status == "interrupted", "a run that was killed does not run"


def test_a_run_without_report_or_figures(empty_home: Path) -> None:
    make_run(empty_home, "bare", status="failed")
    described = find_run("bare").describe()
    assert (described["status"], described["figures"], described["report"]) == ("failed", {}, None)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"bits_per_byte": 1.6224, "validation_loss": 3.1}, "1.622 bits per byte"),
        ({"exact_match": 0.9816, "token_accuracy": 0.99, "validation_loss": 0.1}, "98.2% exact match"),
        ({"masked_accuracy": 0.4, "unigram_accuracy": 0.04}, "40.0% of masked tokens"),
        ({"span_accuracy": 0.25, "token_accuracy": 0.5}, "25.0% of span tokens"),
        ({"validation_loss": 3.1}, "3.100 nats a token"),
        ({}, ""),
    ],
)
def test_a_run_is_listed_by_the_figure_it_is_judged_by(
    figures: dict[str, float], expected: str, empty_home: Path, journey: Journey
) -> None:
    make_run(empty_home, "judged", figures=figures)
    assert find_run("judged").result == expected
    assert expected in journey("runs", "list").out
