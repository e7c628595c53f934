"""Token shards: what is written is what is read, damage is refused by name, nothing is left half-written."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.core import files
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.datasets.shards import TokenShards, write_shards

END = 256


def encode_bytes(texts: list[str]) -> list[list[int]]:
    return [list(text.encode("utf-8")) for text in texts]


def write(directory: Path, texts: list[str], *, split: str = "train", shard_tokens: int = 7, **changes: int) -> None:
    sizes = {"vocab_size": 257, "end_id": END, **changes}
    write_shards(texts, encode_bytes, directory, split=split, shard_tokens=shard_tokens, **sizes)


@settings(max_examples=15, deadline=None)
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=12), shard_tokens=st.integers(5, 40))
def test_every_token_and_document_reads_back(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], shard_tokens: int
) -> None:
    texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    directory = tmp_path_factory.mktemp("shards")
    write(directory, texts, shard_tokens=shard_tokens)
    shards = TokenShards.open(directory, "train", verify=True)
    rows = [[*text.encode("utf-8"), END] for text in texts]
    whole = [token for row in rows for token in row]
    assert shards.read(0, shards.num_tokens).tolist() == whole
    assert [shards.document(number).tolist() for number in range(shards.num_documents)] == rows
    assert shards.document_lengths().tolist() == [len(row) for row in rows]
    assert shards.document_starts.tolist() == np.cumsum([0, *map(len, rows)])[:-1].tolist()
    assert shards.num_bytes == sum(len(text.encode("utf-8")) for text in texts)
    middle = len(whole) // 2
    assert shards.read(middle, len(whole)).tolist() == whole[middle:]
    assert len(list(directory.glob("train-0*.bin"))) == -(-len(whole) // shard_tokens)


def test_the_dtype_follows_the_vocabulary(tmp_path: Path) -> None:
    write(tmp_path / "small", ["ab"], vocab_size=1 << 16)
    write(tmp_path / "large", ["ab"], vocab_size=(1 << 16) + 1, end_id=1 << 16)
    assert (tmp_path / "small/train-00000.bin").read_bytes() == b"a\0b\0\0\1"
    assert (tmp_path / "large/train-00000.bin").read_bytes() == b"a\0\0\0b\0\0\0\0\0\1\0"
    assert TokenShards.open(tmp_path / "large", "train").read(2, 3).tolist() == [1 << 16]


def test_two_splits_share_a_folder(tmp_path: Path) -> None:
    write(tmp_path, ["one", "two"])
    write(tmp_path, ["three"], split="validation")
    assert TokenShards.open(tmp_path, "train").num_documents == 2
    assert bytes(TokenShards.open(tmp_path, "validation").document(0)[:-1].astype(np.uint8)) == b"three"


def test_the_fingerprint_is_the_content(tmp_path: Path) -> None:
    write(tmp_path / "a", ["one", "two"])
    write(tmp_path / "b", ["one", "two"])
    write(tmp_path / "c", ["one", "twO"])
    write(tmp_path / "d", ["one", "two"], vocab_size=300)
    prints = [TokenShards.open(tmp_path / name, "train").fingerprint for name in "abcd"]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_rewriting_removes_the_old_shards(tmp_path: Path) -> None:
    write(tmp_path, ["a" * 50])
    write(tmp_path, ["b"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "train-00000.bin",
        "train-documents.bin",
        "train.json",
    ]
    assert TokenShards.open(tmp_path, "train", verify=True).num_tokens == 2


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def broken(texts: list[str]) -> list[list[int]]:
        if "boom" in texts:
            raise RuntimeError("tokenizer failed")
        return encode_bytes(texts)

    texts = ["a" * 100] * 1024 + ["boom"]
    with pytest.raises(RuntimeError, match="tokenizer failed"):
        write_shards(texts, broken, tmp_path, split="train", vocab_size=257, end_id=END, shard_tokens=5000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, failing, full)
    with pytest.raises(JourneyError, match=r"cannot be written \(No space left on device\); free disk space"):
        write(tmp_path, ["some text"])
    assert list(tmp_path.iterdir()) == []


def test_a_split_never_written_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no finished 'train' token shards here; prepare the data again"):
        TokenShards.open(tmp_path, "train")
    with pytest.raises(BadInputError, match="holds no document"):
        write(tmp_path, [])
    with pytest.raises(BadInputError, match="outside its vocabulary of 100"):
        write(tmp_path, ["zzz"], vocab_size=100, end_id=0)


def test_a_flipped_byte_is_found_by_verify(tmp_path: Path) -> None:
    write(tmp_path, ["hello world"])
    path = tmp_path / "train-00001.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    TokenShards.open(tmp_path, "train")  # the size alone does not show it
    with pytest.raises(JourneyError, match=r"train-00001\.bin is damaged: its SHA-256"):
        TokenShards.open(tmp_path, "train", verify=True)


@pytest.mark.parametrize("name", ["train-00000.bin", "train-documents.bin"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, ["hello world"])
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    with pytest.raises(JourneyError, match=f"{name} is damaged"):
        TokenShards.open(tmp_path, "train")


def rewrite_index(directory: Path, **changes: object) -> None:
    """An index with changed keys and a fingerprint that fits them: what a hostile folder would hold."""
    path = directory / "train.json"
    index = {**json.loads(path.read_text()), **changes}
    index.pop("fingerprint")
    path.write_text(json.dumps({**index, "fingerprint": files.sha256_json(index)}))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_tokens": 10**12},
        {"num_documents": 5},
        {"num_tokens": -1},
        {"shard_tokens": 1},
        {"shards": []},
        {"shards": None},
        {"documents": {"file": "train-documents.bin"}},
        {"dtype": "|O8"},
        {"shards": [{"file": "../../etc/passwd", "bytes": 14, "sha256": "0"}]},
    ],
)
def test_a_lying_index_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    """CVE-2024-37032 among them: a shard name that leads out of the folder."""
    write(tmp_path, ["hello world"])
    rewrite_index(tmp_path, **changes)
    with pytest.raises(JourneyError, match=r"damaged|outside"):
        TokenShards.open(tmp_path, "train")


def test_a_changed_index_or_a_pickle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ["hello world"])
    path = tmp_path / "train.json"
    path.write_text(path.read_text().replace('"num_bytes": 11', '"num_bytes": 12'))
    with pytest.raises(JourneyError, match="fingerprint does not match"):
        TokenShards.open(tmp_path, "train")
    path.write_bytes(pickle.dumps({"format": "llm-journey-shards-1"}))
    with pytest.raises(JourneyError, match="it is no JSON"):
        TokenShards.open(tmp_path, "train")


def test_reading_outside_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, ["hello"])
    shards = TokenShards.open(tmp_path, "train")
    for start, stop in [(-1, 2), (0, 7), (3, 2)]:
        with pytest.raises(IndexError):
            shards.read(start, stop)
    with pytest.raises(IndexError):
        shards.document(1)
