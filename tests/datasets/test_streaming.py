"""The token stream through Hugging Face datasets: offline, on local files, resumable, shared between processes."""

import gzip
import json
import sys
from collections import Counter

import numpy as np
import pytest

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.datasets.streaming import StreamingLoader, _described, local_files

END = 0


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("JOURNEY_HOME", str(tmp_path / "home"))


def encode(texts):
    return [[int(word) for word in text.split()] for text in texts]


def make_documents(count, first=1):
    """Texts of numbers without a number in common."""
    lengths = np.random.default_rng(count).integers(1, 12, count)
    ends = first + np.cumsum(lengths)
    return [
        " ".join(map(str, range(end - length, end)))
        for length, end in zip(lengths.tolist(), ends.tolist(), strict=True)
    ]


def write_jsonl(path, documents, key="text"):
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in documents))


@pytest.fixture
def folder(tmp_path):
    documents = make_documents(50)
    (tmp_path / "data").mkdir()
    for number in range(3):
        write_jsonl(tmp_path / "data" / f"part-{number}.jsonl", documents[number::3])
    return tmp_path / "data"


def make_loader(source, **changes):
    arguments = {"end_id": END, "batch_size": 2, "context": 6, "seed": 0, "block_documents": 8}
    return StreamingLoader(source, encode, **{**arguments, **changes})


def take(loader, count):
    batches = [loader.next_batch() for _ in range(count)]
    assert all(np.array_equal(batch.inputs[:, 1:], batch.targets[:, :-1]) for batch in batches)
    return [
        (*inputs.tolist(), int(targets[-1]))
        for batch in batches
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True)
    ]


def read_epoch(loader):
    """The tokens of the first epoch, from a loader of one row of one token."""
    tokens = []
    while loader.epoch == 0:
        tokens.append(int(loader.next_batch().inputs[0, 0]))
    return tokens


def all_tokens(documents):
    return Counter(token for text in documents for token in [*map(int, text.split()), END])


def test_an_epoch_has_every_document_whole_and_every_token_once(folder):
    loader = make_loader(folder, batch_size=1, context=1)
    documents = make_documents(50)
    total = sum(all_tokens(documents).values())
    tokens = [int(loader.next_batch().inputs[0, 0]) for _ in range(total)]
    assert Counter(tokens) == all_tokens(documents)
    assert {part.strip() for part in f" {' '.join(map(str, tokens))} ".split(" 0 ") if part.strip()} == set(documents)


def test_epochs_and_seeds_differ_in_order_and_repeat_exactly(folder):
    total = sum(all_tokens(make_documents(50)).values())

    def epochs(seed):
        loader = make_loader(folder, batch_size=1, context=1, seed=seed)
        return take(loader, total), take(loader, total)

    first, second = epochs(0)
    assert first != second and (first, second) == epochs(0) and first != epochs(1)[0]


@pytest.mark.parametrize("done", [0, 1, 5, 13, 26, 27, 28, 40, 61])
@pytest.mark.parametrize("block_documents", [8, 25, 1000])
def test_incident_4_a_stream_resumes_anywhere(folder, done, block_documents):
    uninterrupted = make_loader(folder, block_documents=block_documents)
    take(uninterrupted, done)
    state = json.loads(json.dumps(uninterrupted.state()))
    assert len(state["carry"]) <= 6
    resumed = make_loader(folder, block_documents=block_documents)
    resumed.restore(state)
    assert resumed.epoch == uninterrupted.epoch
    assert take(resumed, 30) == take(uninterrupted, 30)
    assert resumed.state() == uninterrupted.state()


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_read_disjoint_parts_that_cover_the_whole(folder, world_size):
    parts = []
    for rank in range(world_size):
        loader = make_loader(folder, batch_size=1, context=1, world_size=world_size, rank=rank)
        parts.append(Counter(read_epoch(loader)))
        resumed = make_loader(folder, world_size=world_size, rank=rank)
        take(resumed, 3)
        again = make_loader(folder, world_size=world_size, rank=rank)
        again.restore(resumed.state())
        assert take(again, 5) == take(resumed, 5)
    seen = sum(parts, Counter())
    expected = all_tokens(make_documents(50))
    del seen[END], expected[END]
    assert set(seen) == set(expected) and max(seen.values()) == 1


def test_every_format_gives_the_same_stream(tmp_path):
    import pyarrow
    import pyarrow.parquet

    documents = make_documents(20)
    write_jsonl(tmp_path / "a.jsonl", documents)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    pyarrow.parquet.write_table(pyarrow.table({"text": documents}), tmp_path / "a.parquet")
    streams = [take(make_loader(tmp_path / f"a.{kind}"), 20) for kind in ("jsonl", "jsonl.gz", "txt", "parquet")]
    assert all(stream == streams[0] for stream in streams)


def test_a_glob_and_a_file_are_sources_too(folder):
    pattern = make_loader(str(folder / "part-*.jsonl"))
    assert take(pattern, 10) == take(make_loader(folder), 10)
    assert local_files(str(folder / "part-1.jsonl")) == [folder / "part-1.jsonl"]


def test_memory_stays_with_the_block(tmp_path):
    import tracemalloc

    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for number in range(20_000):
            file.write(json.dumps({"text": " ".join(["7"] * 150) + f" {number}"}) + "\n")
    loader = make_loader(path, batch_size=16, context=64, block_documents=50)
    take(loader, 2)
    tracemalloc.start()
    for _ in range(600):
        loader.next_batch()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 600 * 16 * 64 * 8 > 4_900_000 > 4 * peak


def test_incident_6_another_stream_is_refused_naming_both(folder, tmp_path):
    loader = make_loader(folder)
    take(loader, 2)
    state = loader.state()
    write_jsonl(folder / "part-3.jsonl", ["1 2 3"])
    with pytest.raises(BadInputError, match="data fingerprint") as caught:
        make_loader(folder).restore(state)
    assert state["fingerprint"] in str(caught.value)


def test_a_change_in_the_middle_of_a_file_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("llm_journey.datasets.streaming._SAMPLED_BYTES", 16)
    path = tmp_path / "texts.jsonl"
    for whole in (1 << 20, 4):  # read whole, and sampled
        monkeypatch.setattr("llm_journey.datasets.streaming._HASHED_BYTES", whole)
        path.write_bytes(b"a" * 9000)
        before = _described(path)
        assert _described(path) == before
        path.write_bytes(b"a" * 4000 + b"b" * 1000 + b"a" * 4000)
        assert _described(path) != before


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rank": 1}, "rank 1"), ({"row": -1}, "no count"), ({"carry": list(range(9))}, "carry"), ({"row": 999}, "row")],
)
def test_a_state_of_another_process_or_a_damaged_one_is_refused(folder, change, message):
    loader = make_loader(folder)
    take(loader, 2)
    with pytest.raises(BadInputError, match=message):
        make_loader(folder).restore({**loader.state(), **change})


def test_a_context_longer_than_the_data_is_refused_with_both_numbers(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["1 2 3", "4 5"])
    take(make_loader(tmp_path / "a.jsonl", context=6), 3)
    with pytest.raises(BadInputError, match=r"context of 7 tokens is longer than the data.*has 7 tokens.* 8"):
        make_loader(tmp_path / "a.jsonl", context=7).next_batch()


def test_what_cannot_be_streamed_is_one_line(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "a.jsonl", ["1 2"], key="body")
    with pytest.raises(BadInputError, match="has no 'text'; its rows have body"):
        make_loader(tmp_path / "a.jsonl").next_batch()
    write_jsonl(tmp_path / "n.jsonl", [12])
    with pytest.raises(BadInputError, match="holds int, not text"):
        make_loader(tmp_path / "n.jsonl").next_batch()
    (tmp_path / "junk.parquet").write_bytes(b"\x00junk" * 50)
    with pytest.raises(JourneyError, match=r"junk\.parquet cannot be") as caught:
        make_loader(tmp_path / "junk.parquet").next_batch()
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInputError, match="no such file"):
        make_loader(tmp_path / "missing.jsonl")
    with pytest.raises(BadInputError, match="nothing to stream"):
        make_loader(tmp_path / "*.csv")
    with pytest.raises(BadInputError, match="several kinds"):
        make_loader(tmp_path)
    with pytest.raises(BadInputError, match="block_documents 0"):
        make_loader(tmp_path / "a.jsonl", block_documents=0)
    with pytest.raises(JourneyError, match="nobody/nothing cannot be streamed"):
        make_loader("nobody/nothing").next_batch()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(JourneyError, match=r"pip install 'llm-journey\[data\]'"):
        make_loader(tmp_path / "a.jsonl").next_batch()
