"""Counting in several processes gives what counting in one gives, whatever the chunks."""

import threading
from collections import Counter
from pathlib import Path
from pydoc_data import topics

import pytest

from llm_journey.core.errors import JourneyError
from llm_journey.tokenizer import bpe, word_counts

TEXTS = [*topics.topics.values(), "", "lone \ud800 surrogate", "nul \x00 and no-break\xa0space"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_counts.chunks, "__defaults__", (20_000,))


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k"])
@pytest.mark.parametrize("processes", [1, 3])
def test_equal_to_the_oracle(pattern: str, processes: int) -> None:
    characters: list[int] = []
    counts = word_counts.count_words(TEXTS, pattern, processes=processes, on_progress=characters.append)
    assert counts == bpe.count_words(TEXTS, pattern)
    assert characters[-1] == sum(map(len, TEXTS)) and characters == sorted(characters)


def test_one_huge_document_is_shared_out_too() -> None:
    text = "\n".join(TEXTS[:-2])
    assert len(list(word_counts.chunks([text]))) > 10
    assert word_counts.count_words([text], "gpt2", processes=2) == bpe.count_words([text], "gpt2")


def test_children_do_take_part_and_send_back_early(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    take = word_counts._Child.take

    def note(child: word_counts._Child, chunk: list[str]) -> bool:
        taken.append(take(child, chunk))
        return taken[-1]

    monkeypatch.setattr(word_counts._Child, "take", note)
    assert word_counts.count_words(TEXTS, "gpt2", processes=2) == bpe.count_words(TEXTS, "gpt2")
    assert any(taken)


def test_a_childs_reply_holds_counts_only_where_there_are_many() -> None:
    import io
    import json

    requests = b"".join(json.dumps(line).encode() + b"\n" for line in (["a b a"], ["c"], "finish"))
    replies = io.BytesIO()
    word_counts._serve("gpt2", io.BytesIO(requests), replies)
    lines = [json.loads(line) for line in replies.getvalue().splitlines()]
    assert lines == [{}, {}, {"a": 1, " b": 1, " a": 1, "c": 1}]


def test_a_child_that_dies_is_an_error_not_a_wrong_count(monkeypatch: pytest.MonkeyPatch) -> None:
    start = word_counts._Child.__init__

    def start_and_kill(child: word_counts._Child, pattern: str) -> None:
        start(child, pattern)
        child._process.kill()

    monkeypatch.setattr(word_counts._Child, "__init__", start_and_kill)
    with pytest.raises(JourneyError, match="fewer processes"):
        word_counts.count_words(TEXTS, "gpt2", processes=2)


def test_children_end_with_an_error_of_the_caller() -> None:
    started: list[word_counts._Child] = []

    def failing() -> object:
        yield from TEXTS
        raise RuntimeError("the source broke")

    class Noted(word_counts._Child):
        def __init__(self, pattern: str) -> None:
            super().__init__(pattern)
            started.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_counts, "_Child", Noted)
        with pytest.raises(RuntimeError, match="the source broke"):
            word_counts.count_words(failing(), "gpt2", processes=3)  # type: ignore[arg-type]
    assert len(started) == 2
    assert all(child._process.returncode is not None for child in started)


@pytest.mark.parametrize("closed_first", [False, True])
def test_a_dead_child_is_closed_whenever_it_died(closed_first: bool) -> None:
    """The closing message itself may be the one that cannot be written: nothing waits for another then."""
    child = word_counts._Child("gpt2")
    child._process.kill()
    child._process.wait()
    if not closed_first:
        child.take(["some text"])
    closed = threading.Event()

    def close() -> None:
        child.close()
        closed.set()

    threading.Thread(target=close, daemon=True).start()
    assert closed.wait(10)


def test_modules_in_the_current_folder_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "regex.py").write_text("raise SystemExit('ran a stranger')")
    monkeypatch.chdir(tmp_path)
    assert word_counts.count_words(TEXTS, "gpt2", processes=2) == bpe.count_words(TEXTS, "gpt2")


def test_a_small_corpus_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_counts, "_Child", None)
    assert word_counts.count_words(["a b", "b"], "gpt2", processes=8) == Counter({"a": 1, " b": 1, "b": 1})
