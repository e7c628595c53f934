"""Runs that train on a stream: resumed where they stood, held-out documents left out."""

import json
import signal
from pathlib import Path

import pytest
from tiny_runs import Recorder, make_recipe, steps

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.prepare import iterate_texts
from llm_journey.training.inputs import held_out_hashes, prepare_inputs
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
    held_out = held_out_hashes(inputs)
    assert held_out
    recipe = recipe.with_vocabulary(inputs.tokenizer.vocab_size)
    seen: dict[bool, str] = {}
    for leave_out in (True, False):
        loader = make_loader(recipe, inputs.train, inputs.tokenizer, None, held_out if leave_out else frozenset())
        batches = [loader.next_batch() for _ in range(150)]
        ids = [token for batch in batches for token in batch.inputs.ravel().tolist()]
        seen[leave_out] = inputs.tokenizer.decode(ids)
    for text in iterate_texts(inputs.prepared, "validation"):
        assert text not in seen[True] and text in seen[False]
    for text in iterate_texts(inputs.prepared, "train"):
        assert text in seen[True]
