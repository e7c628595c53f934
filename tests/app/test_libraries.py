"""`journey index` and `journey ask` on a folder of one's own, and what is wrong said in a line."""

import json
from pathlib import Path

import pytest

from command_line import Journey
from gguf_files import random_model, tiny_tokenizer
from llm_journey.app.libraries import index_source, open_library
from llm_journey.checkpoint.model_folder import save_model
from llm_journey.core.errors import BadInputError


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "bridge.txt").write_text("The old bridge was built by Romans.", encoding="utf-8")
    (folder / "river.md").write_text("# Rivers\nThe river runs north, past three mills.", encoding="utf-8")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 nothing of a PDF")
    return folder


def test_index_search_and_bring_up_to_date(empty_home: Path, notes: Path, journey: Journey) -> None:
    done = journey("index", notes, "--embedder", "none", "--json")
    assert done.code == 0, done.err
    assert (done.json["name"], done.json["documents"], done.json["added"]) == ("notes", 2, 2)
    assert [path for path, _ in done.json["problems"]] == ["broken.pdf"]
    (notes / "bridge.txt").write_text("The new bridge is made of steel.", encoding="utf-8")
    (notes / "river.md").unlink()
    again = journey("index", notes, "--json").json
    assert (again["changed"], again["removed"], again["unchanged"], again["vectors"]) == (1, 1, 0, 0)
    library = open_library()
    assert library.name == "notes" and library.retriever_name == "bm25"
    ((passage, score),) = library.search("Who built bridges?")
    assert passage.text == "The new bridge is made of steel." and passage.source == "bridge.txt" and score > 0
    assert library.search("whales") == []


def test_ask(empty_home: Path, notes: Path, tmp_path: Path, journey: Journey) -> None:
    """A model of random weights says nothing; whatever it says, sources are passages that it was shown."""
    save_model(random_model(context=2048), tmp_path / "model", tokenizer=tiny_tokenizer())
    assert journey("index", notes, "--embedder", "none").code == 0
    done = journey("ask", "Who built the bridge?", "--model", tmp_path / "model", "--json")
    assert done.code == 0, done.err
    assert done.json["sources"][0]["text"] == "The old bridge was built by Romans."
    assert all(each["source"] in (None, 1, 2) for each in done.json["sentences"])
    unknown = journey("ask", "whales?", "--model", tmp_path / "model")
    assert unknown.code == 0 and "I do not know" in unknown.out


def test_what_is_wrong(empty_home: Path, notes: Path, tmp_path: Path, journey: Journey) -> None:
    for arguments, reason in (
        (("ask", "Who?"), "nothing is indexed yet"),
        (("index", tmp_path / "nowhere"), "nowhere"),
        (("index", notes, "--set", "size=3"), "size must lie in 20"),
        (("index", notes, "--name", "../out"), "leads outside"),
    ):
        done = journey(*arguments)
        assert done.code == 2 and reason in done.err, done.err
    index_source(str(notes), embedder="none")
    other = tmp_path / "other" / "notes"
    other.mkdir(parents=True)
    (other / "a.txt").write_text("text", encoding="utf-8")
    with pytest.raises(BadInputError, match=r"library 'notes' holds .*; give this one another --name"):
        index_source(str(other))
    for choices, reason in (
        ({"name": "nothing"}, "unknown library 'nothing'; known: notes"),
        ({"retriever": "dense"}, "has no vectors"),
    ):
        with pytest.raises(BadInputError, match=reason):
            open_library(**choices)
    with pytest.raises(BadInputError, match="unknown retriever 'magic'"):
        open_library(retriever="magic")


def test_judging_a_retriever(tmp_path: Path, journey: Journey) -> None:
    (tmp_path / "qrels").mkdir()
    rows = [
        {"_id": str(number), "title": "", "text": f"text about {word}"}
        for number, word in enumerate(("bridges", "rivers"))
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "a river"}\n', encoding="utf-8")
    (tmp_path / "qrels" / "test.tsv").write_text("q\t1\t1\n", encoding="utf-8")
    done = journey("eval", "retrieval", "--beir", tmp_path, "--retriever", "bm25", "--json")
    assert done.code == 0, done.err
    (result,) = done.json["results"]
    assert done.json["ndcg@10"] == result["ndcg@10"]
    assert (result["ndcg@10"], result["recall@100"], result["mrr@10"], result["precision@10"]) == (1, 1, 1, 0.1)
    assert journey("eval", "retrieval", "--beir", tmp_path, "--retriever", "magic").code == 2
