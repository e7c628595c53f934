"""Runs that train on a stream: resumed where they stood, held-out documents left out."""

import json
import random
import signal
from pathlib import Path

import pytest
from tiny_runs import Recorder, make_recipe, steps

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.held_out import NOTHING, HeldOut
from llm_journey.datasets.prepare import iterate_texts
from llm_journey.training.inputs import held_out_text, prepare_inputs
from llm_journey.training.loaders import make_loader
from llm_journey.training.run import train


def test_a_streamed_run_resumes_where_it_stood(texts: Path, tmp_path: Path) -> None:
    """Training text comes from a stream that is never stored; stopped in mid-stream, it goes on with equal losses."""
    stream = tmp_path / "stream.jsonl"
    rows_of_text = [json.dumps({"text": path.read_text(encoding="utf-8")}) for path in sorted(texts.glob("*.txt"))]
    stream.write_text("\n".join(rows_of_text * 3), encoding="utf-8")
    recipe = make_recipe(texts, stream=str(stream))
    train(recipe, tmp_path / "whole")
    train(
        recipe,
        tmp_path / "parts",
        observer=Recorder(lambda step: signal.raise_signal(signal.SIGINT) if step == 3 else None),
    )
    assert train(recipe, tmp_path / "parts", resume=True).status == "finished"
    assert steps(tmp_path / "parts") == steps(tmp_path / "whole")
    assert steps(train(make_recipe(texts), tmp_path / "prepared").directory) != steps(tmp_path / "whole")
    with pytest.raises(BadInputError, match="no such file"):
        train(make_recipe(texts, stream=str(tmp_path / "none.jsonl")), tmp_path / "none")
    with pytest.raises(BadInputError, match="leave out order"):
        make_recipe(texts, stream=str(stream), order="packed")


def test_a_stream_leaves_held_out_documents_out(texts: Path, tmp_path: Path) -> None:
    """The stream holds every prepared document: those of the validation split never reach a batch."""
    recipe = make_recipe(texts, stream=str(texts / "*.txt"), batch_size=1)
    inputs = prepare_inputs(recipe)
    held_out = held_out_text(inputs)
    assert held_out.hashes
    recipe = recipe.with_vocabulary(inputs.tokenizer.vocab_size)
    seen: dict[bool, str] = {}
    for leave_out in (True, False):
        loader = make_loader(recipe, inputs.train, inputs.tokenizer, None, held_out if leave_out else NOTHING)
        batches = [loader.next_batch() for _ in range(150)]
        ids = [token for batch in batches for token in batch.inputs.ravel().tolist()]
        seen[leave_out] = inputs.tokenizer.decode(ids)
    for text in iterate_texts(inputs.prepared, "validation"):
        assert text not in seen[True] and text in seen[False]
    for text in iterate_texts(inputs.prepared, "train"):
        assert text in seen[True]


@pytest.mark.parametrize("is_one_file", [True, False], ids=["one file, cut", "a folder"])
def test_a_stream_of_paragraphs_leaves_held_out_ones_out(is_one_file: bool, tmp_path: Path) -> None:
    """Of a text file each paragraph streams as a document; prepared, the file is one, or is cut in mid-paragraph."""
    draw = random.Random(0)
    paragraphs = [" ".join(f"w{draw.randrange(900)}" for _ in range(12)) + f" {number}." for number in range(80)]
    if is_one_file:
        source = tmp_path / "one.txt"
        source.write_text("\n\n".join(paragraphs), encoding="utf-8")
    else:
        source = tmp_path / "texts"
        source.mkdir()
        for first in range(0, 80, 4):
            (source / f"{first:02}.txt").write_text("\n\n".join(paragraphs[first : first + 4]), encoding="utf-8")
    recipe = make_recipe(source, stream=str(source), batch_size=1)
    inputs = prepare_inputs(recipe)
    recipe = recipe.with_vocabulary(inputs.tokenizer.vocab_size)
    loader = make_loader(recipe, inputs.train, inputs.tokenizer, None, held_out_text(inputs))
    ids: list[int] = []
    while loader.epoch < 1:
        ids += loader.next_batch().inputs.ravel().tolist()
    seen, held_out = inputs.tokenizer.decode(ids), "\n\n".join(iterate_texts(inputs.prepared, "validation"))
    unseen = [paragraph for paragraph in paragraphs if paragraph not in seen]
    assert all(paragraph in unseen for paragraph in paragraphs if paragraph in held_out)
    cut = held_out.split("\n\n")[0]
    assert cut not in seen
    assert 0 < len(unseen) < 40


def test_what_is_held_out() -> None:
    held_out = HeldOut.of(["half of a sentence.\n\nAnother  PARAGRAPH.", "One more."])
    for text in ("another paragraph.", "One more.", "The first half of a sentence.", "before\n\none MORE.\n \nafter"):
        assert held_out.holds(text)
    for text in ("another", "One more. And more.", "", "half of a sentence. And on."):
        assert not held_out.holds(text)
    assert not NOTHING.holds("")
