"""Preparation: what comes in, what is dropped and why, a split that leaks nothing and moves nobody."""

import gzip
import json
import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.core import config as recipes
from llm_journey.core import files
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.datasets import prepare
from llm_journey.datasets.prepare import (
    DataConfig,
    PreparationReport,
    iterate_rows,
    iterate_texts,
    prepare_documents,
    read_report,
)
from llm_journey.text.deduplication import jaccard
from llm_journey.text.quality import QualityConfig

WORDS = [
    "harbour",
    "lantern",
    "granite",
    "meadow",
    "copper",
    "willow",
    "thunder",
    "velvet",
    "orchard",
    "canyon",
    "falcon",
]


def article(number: int, length: int = 40) -> str:
    generator = random.Random(number)
    return f"Article {number}: " + " ".join(generator.choices(WORDS, k=length)) + "."


def write_corpus(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def run(tmp_path: Path, texts: list[str] | None = None, out: str = "out", **options: object) -> PreparationReport:
    source = tmp_path / "corpus.jsonl"
    if texts is not None:
        write_corpus(source, texts)
    config = DataConfig(**{"source": str(source), **options})  # type: ignore[arg-type]
    return prepare_documents(config, tmp_path / out, resolve=Path)


def splits(directory: Path) -> tuple[list[str], list[str]]:
    return list(iterate_texts(directory, "train")), list(iterate_texts(directory, "validation"))


def test_counts_add_up_and_the_texts_are_the_kept_ones(tmp_path: Path) -> None:
    texts = [article(number) for number in range(300)]
    spoiled = ["too short", "", "1 2 3 4 5 6 7 8", article(5), article(6).upper(), article(7).replace(" ", "  ")]
    report = run(tmp_path, texts + spoiled, held_out=0.1)
    assert report.documents_in == 305  # the empty row gives no document
    assert report.dropped == {"too short": 1, "odd word lengths": 1}
    assert report.duplicates == 3
    assert report.near_duplicates == 0
    train, validation = splits(tmp_path / "out")
    assert sorted(train + validation) == sorted(texts)
    assert (report.train_documents, report.validation_documents) == (len(train), len(validation))
    assert 15 <= len(validation) <= 50
    assert report.bytes == sum(len(text.encode("utf-8")) for text in texts)
    assert ("documents in", 305) in report.rows()
    assert ("dropped: too short", 1) in report.rows()
    assert not list((tmp_path / "out").glob("kept*"))


def test_dropped_samples_say_why(tmp_path: Path) -> None:
    run(tmp_path, [article(1), article(2), article(1), "no", *["no."] * 30], deduplication="exact")
    rows = [json.loads(line) for line in (tmp_path / "out/dropped.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[0] == {"id": "corpus.jsonl#3", "reason": "duplicate (of corpus.jsonl#1)", "text": article(1)}
    assert rows[1] == {"id": "corpus.jsonl#4", "reason": "too short (1 words)", "text": "no"}
    assert len(rows) == 21  # twenty samples of a rule at most


def test_near_duplicates_go_before_the_split(tmp_path: Path) -> None:
    """No held-out document also stands in the training text, not even nearly."""
    texts = [article(number, 80) for number in range(60)]
    copies = [text.replace("harbour", "harbor", 1) for text in texts]
    report = run(tmp_path, texts + copies, held_out=0.3, deduplication="minhash")
    assert report.near_duplicates + report.duplicates == 60
    train, validation = splits(tmp_path / "out")
    assert len(train) + len(validation) == 60
    assert max(jaccard(text, other) for text in validation for other in train) < 0.8


@pytest.mark.parametrize("deduplication", ["none", "exact"])
def test_equal_texts_never_part(tmp_path: Path, deduplication: str) -> None:
    texts = [article(number % 50) for number in range(200)]
    run(tmp_path, texts, held_out=0.4, deduplication=deduplication)
    train, validation = splits(tmp_path / "out")
    assert set(train).isdisjoint(validation)
    assert len(train) + len(validation) == (200 if deduplication == "none" else 50)


@settings(max_examples=15, deadline=None)
@given(old=st.sets(st.integers(0, 500), min_size=40, max_size=60), new=st.sets(st.integers(501, 900), max_size=60))
def test_adding_documents_moves_no_old_one(
    tmp_path_factory: pytest.TempPathFactory, old: set[int], new: set[int]
) -> None:
    tmp_path = tmp_path_factory.mktemp("stable")
    run(tmp_path, [article(number) for number in sorted(old)], out="before", held_out=0.5)
    mixed = sorted(old | new, key=lambda number: number * 7919 % 997)
    run(tmp_path, [article(number) for number in mixed], out="after", held_out=0.5)
    before, after = splits(tmp_path / "before"), splits(tmp_path / "after")
    assert set(before[0]) <= set(after[0])
    assert set(before[1]) <= set(after[1])


def test_the_seed_chooses_another_split(tmp_path: Path) -> None:
    texts = [article(number) for number in range(100)]
    run(tmp_path, texts, out="a", held_out=0.3)
    run(tmp_path, texts, out="b", held_out=0.3, split_seed=1)
    assert set(splits(tmp_path / "a")[1]) != set(splits(tmp_path / "b")[1])


@pytest.mark.parametrize("held_out", [0.001, 0.999])
def test_a_small_corpus_has_both_splits(tmp_path: Path, held_out: float) -> None:
    report = run(tmp_path, [article(1), article(2), article(3)], held_out=held_out)
    assert min(report.train_documents, report.validation_documents) == 1
    if report.validation_documents == 1:
        assert "1 of 3 documents held out" in report.notices[0]


def test_one_document_is_split_by_position_and_says_so(tmp_path: Path) -> None:
    text = "\n\n".join(article(number) for number in range(50))
    path = tmp_path / "book.txt"
    path.write_text(text, encoding="utf-8")
    report = run(tmp_path, source=str(path), held_out=0.1)
    assert report.notices == ("the corpus is one text, so the last 10.0% of it is held out (split by position)",)
    (train,), (validation,) = splits(tmp_path / "out")
    assert train == text[: int(len(text) * 0.9)]  # nanoGPT's cut
    assert train + validation == text


def test_a_long_file_in_pieces_is_still_one_text(tmp_path: Path) -> None:
    text = "\n\n".join(article(number, 2000) for number in range(400))
    assert len(text) > 5 << 20
    path = tmp_path / "long.txt"
    path.write_text(text, encoding="utf-8")
    report = run(tmp_path, source=str(path), held_out=0.05, cleaning=False, quality=QualityConfig(enabled=False))
    assert "split by position" in report.notices[0]
    train, validation = splits(tmp_path / "out")
    assert len(train) > 4
    assert "".join(train) + "".join(validation) == text
    assert len("".join(train)) == int(len(text) * 0.95)


def test_position_split_of_several_documents(tmp_path: Path) -> None:
    texts = [article(number) for number in range(10)]
    report = run(tmp_path, texts, split="position", held_out=0.25)
    assert report.notices == ()
    train, validation = splits(tmp_path / "out")
    whole = "".join(texts)
    assert "".join(train) == whole[: int(len(whole) * 0.75)]
    assert "".join(train) + "".join(validation) == whole


def test_the_same_preparation_is_reused_and_another_is_not(tmp_path: Path) -> None:
    texts = [article(number) for number in range(30)]
    first = run(tmp_path, texts)
    again = run(tmp_path)
    assert not first.reused
    assert again.reused
    assert (again.rows(), again.seconds) == (first.rows(), first.seconds)
    os.utime(tmp_path / "corpus.jsonl", (0, 0))
    assert run(tmp_path).reused  # the content counts, not the time
    assert not run(tmp_path, held_out=0.2).reused
    assert not run(tmp_path, [*texts, article(99)], held_out=0.2).reused
    assert run(tmp_path, held_out=0.2).reused


def test_a_damaged_preparation_is_made_anew(tmp_path: Path) -> None:
    run(tmp_path, [article(number) for number in range(30)])
    (tmp_path / "out/train.jsonl.gz").write_bytes(b"damaged")
    assert not run(tmp_path).reused
    (tmp_path / "out/preparation.json").write_text("{}", encoding="utf-8")
    assert not run(tmp_path).reused
    assert len(splits(tmp_path / "out")[0]) > 20


def test_a_very_large_source_is_recognised_by_sizes_and_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_HASHED_BYTES", 100)
    monkeypatch.setattr(files, "sha256_file", lambda path: "0" * 64)
    run(tmp_path, [article(number) for number in range(30)])
    assert run(tmp_path).reused
    os.utime(tmp_path / "corpus.jsonl", (0, 0))
    assert not run(tmp_path).reused


def test_the_files_depend_on_nothing_but_the_text(tmp_path: Path) -> None:
    texts = [article(number) for number in range(30)]
    run(tmp_path, texts, out="a")
    run(tmp_path, texts, out="b")
    for name in ("train.jsonl.gz", "validation.jsonl.gz", "dropped.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no text could be read"),
        (["", " "], "no text could be read"),
        (["too short", "x"], r"all 2 documents were dropped \(too short 2\); --set data.quality.enabled=false"),
    ],
)
def test_an_empty_corpus_leaves_nothing_behind(tmp_path: Path, texts: list[str], message: str) -> None:
    with pytest.raises(BadInputError, match=message) as raised:
        run(tmp_path, texts)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_filters_off_keep_short_texts(tmp_path: Path) -> None:
    report = run(tmp_path, ["too short", "x"], quality=QualityConfig(enabled=False))
    assert report.dropped == {}
    assert report.train_documents == report.validation_documents == 1


def test_a_text_too_short_to_cut(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="1 characters are too few to hold out"):
        run(tmp_path, ["x"], quality=QualityConfig(enabled=False))


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    run(tmp_path, [article(number) for number in range(30)], out="old")
    before = sorted(tmp_path.rglob("*"))
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, name, full)
            for out in ("new", "old"):
                with pytest.raises(JourneyError, match=r"cannot be written \(No space left on device\)"):
                    run(tmp_path, out=out, held_out=0.3)
    assert sorted(tmp_path.rglob("*")) == before
    assert run(tmp_path, out="old").reused


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "out" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work", encoding="utf-8")
    with pytest.raises(BadInputError, match="already there and no prepared corpus"):
        run(tmp_path, [article(1), article(2)])
    assert precious.read_text(encoding="utf-8") == "years of work"


def test_problems_and_progress_are_reported(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus" / "good.jsonl", [article(number) for number in range(600)])
    (tmp_path / "corpus" / "junk.txt").write_bytes(b"\0" * 100)
    (tmp_path / "corpus" / "old.txt").write_bytes(b"Caf\xe9 " + article(1000).encode())
    calls: list[tuple[int, int]] = []
    report = prepare_documents(
        DataConfig(source=str(tmp_path / "corpus")),
        tmp_path / "out",
        resolve=Path,
        on_progress=lambda read, kept: calls.append((read, kept)),
    )
    assert calls == [(256, 256), (512, 512), (601, 601)]
    assert [(problem.path, problem.skipped) for problem in report.problems] == [("junk.txt", True), ("old.txt", False)]
    assert ("files not read", 1) in report.rows()


def test_names_and_globs_as_sources(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "a" / "named.jsonl", [article(number) for number in range(20)])
    asked: list[str] = []

    def resolve(name: str) -> Path:
        asked.append(name)
        return path

    by_name = prepare_documents(DataConfig(source="my-corpus"), tmp_path / "out", resolve=resolve)
    by_glob = prepare_documents(DataConfig(source=f"{tmp_path}/*/*.jsonl"), tmp_path / "glob", resolve=resolve)
    assert asked == ["my-corpus"]
    assert (by_name.source, by_name.documents_in, by_glob.documents_in) == ("my-corpus", 20, 20)


def test_a_pipe_in_the_folder_blocks_nothing(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus" / "good.jsonl", [article(number) for number in range(20)])
    os.mkfifo(tmp_path / "corpus" / "pipe.txt")
    reports: list[PreparationReport] = []
    worker = threading.Thread(
        target=lambda: reports.append(run(tmp_path, source=str(tmp_path / "corpus"))), daemon=True
    )
    worker.start()
    worker.join(timeout=20)
    assert reports
    assert reports[0].documents_in == 20


def test_max_documents_and_hostile_text(tmp_path: Path) -> None:
    texts = [article(number) for number in range(20)]
    assert run(tmp_path, texts, max_documents=7).documents_in == 7
    rows = [json.dumps({"text": f"{text} \ud83d end"}) for text in texts]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    for number, cleaning in enumerate((True, False)):
        run(tmp_path, out=f"surrogates-{number}", cleaning=cleaning)
        assert all("\ud83d" not in text for part in splits(tmp_path / f"surrogates-{number}") for text in part)


def test_reading_what_was_never_prepared(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no prepared 'train' text here; run `journey data prepare` first"):
        iterate_texts(tmp_path, "train")
    with pytest.raises(BadInputError, match="run `journey data prepare` first"):
        read_report(tmp_path)
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(b'{"id": "a"}\n'))
    with pytest.raises(JourneyError, match="damaged"):
        list(iterate_rows(tmp_path, "train"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": 0}, "held_out 0.* must lie between 0 and 1"),
        ({"similarity": 2.0}, "similarity 2.0 must lie"),
        ({"max_documents": 0}, "max_documents 0 must be at least 1"),
        ({"source": ""}, "source is empty"),
        ({"deduplication": "fuzzy"}, "key 'deduplication' = 'fuzzy'"),
        ({"quality": {"minwords": 3}}, r"unknown key 'quality\.minwords'"),
        ({"sauce": "x"}, "unknown key 'sauce'; allowed: source, text_key"),
    ],
)
def test_a_wrong_setting_names_its_key(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        recipes.validate(DataConfig, {"source": "x", **changes}, "recipe.yaml")


@pytest.mark.full
def test_ten_thousand_articles_in_seconds(tmp_path: Path) -> None:
    report = run(tmp_path, [article(number, 70) for number in range(10_000)], deduplication="minhash")
    assert report.documents_in == 10_000
    assert report.seconds < 20
