"""A student learns from a teacher: begun from its layers, or new with its tokenizer; resumed bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Recorder, steps, validations, write_texts

from gguf_files import random_model, tiny_tokenizer
from llm_journey.checkpoint.decoders import read_decoder
from llm_journey.checkpoint.model_folder import load_decoder, save_model
from llm_journey.core.errors import BadInputError
from llm_journey.training.distillation import shallower
from llm_journey.training.recipe import Recipe, recipe_from
from llm_journey.training.run import train


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "model"
    save_model(random_model(tied_embeddings=True, num_layers=3), folder, tokenizer=tiny_tokenizer())
    return folder


def texts(folder: Path) -> Path:
    (folder / "texts").mkdir()
    return write_texts(folder / "texts")


def recipe(teacher: Path, source: Path, **choices: Any) -> Recipe:
    mapping = {
        "name": "student",
        "data": {"source": str(source), "held_out": 0.2},
        "distill": {"teacher": str(teacher), "weight": 0.5} | choices.pop("distill", {}),
        "training": {
            "steps": 6,
            "batch_size": 4,
            "context": 32,
            "log_every": 1,
            "validations": 1,
            "checkpoints": 6,
            "optimizer": {"name": "adamw", "learning_rate": 0.01},
        }
        | choices.pop("training", {}),
    }
    return recipe_from(mapping | choices, "test")


@pytest.mark.parametrize("begun", ["new", "of two layers", "lora"])
def test_a_student_learns_and_resumes_bit_for_bit(begun: str, teacher: Path, tmp_path: Path) -> None:
    choices: dict[str, Any] = {
        "new": {"model": {"width": 32, "num_layers": 1, "num_heads": 2, "context": 32}},
        "of two layers": {"base": str(teacher), "distill": {"layers": 2}},
        "lora": {"base": str(teacher), "method": "lora", "adapter": {"rank": 2}},
    }[begun]
    wanted = recipe(teacher, texts(tmp_path), **choices)
    places = {"base": None if begun == "new" else teacher, "teacher": teacher}
    whole = train(wanted, tmp_path / "whole", **places)

    def stop(number: int) -> None:
        if number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(wanted, tmp_path / "cut", observer=Recorder(stop), **places)
    resumed = train(wanted, tmp_path / "cut", resume=True, **places)
    assert steps(resumed.directory) == steps(whole.directory)
    assert validations(resumed.directory) == validations(whole.directory)
    model, tokenizer = load_decoder(whole.directory / "model")
    assert tokenizer is not None and tokenizer.fingerprint == tiny_tokenizer().fingerprint
    assert model.config.num_layers == {"new": 1, "of two layers": 2, "lora": 3}[begun]
    other = tmp_path / "other"
    save_model(random_model(tied_embeddings=True, num_layers=3, seed=9), other, tokenizer=tiny_tokenizer())
    with pytest.raises(BadInputError, match=r"teacher fingerprint .* the model that it learns from changed"):
        train(wanted, tmp_path / "cut", resume=True, base=places["base"], teacher=other)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(teacher: Path, tmp_path: Path) -> None:
    """With the teacher's term alone, the loss of a student equal to it is 0, and it stays as it is."""
    wanted = recipe(
        teacher,
        texts(tmp_path),
        base=str(teacher),
        distill={"weight": 1.0, "temperature": 2.0},
        training={"precision": "fp32", "optimizer": {"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.0}},
    )
    found = train(wanted, tmp_path / "run", base=teacher, teacher=teacher)
    assert all(abs(row["loss"]) < 1e-6 for row in steps(found.directory))


def test_layers_are_taken_evenly(teacher: Path) -> None:
    whole = read_decoder(teacher).decoder
    student = shallower(read_decoder(teacher).decoder, 2)
    assert [block.attention.layer_index for block in student.blocks] == [0, 1]
    for ours, theirs in ((0, 0), (1, 2)):
        pairs = zip(student.blocks[ours].parameters(), whole.blocks[theirs].parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    with pytest.raises(BadInputError, match=r"distill.layers is 4, the base has 3"):
        shallower(read_decoder(teacher).decoder, 4)


def test_what_does_not_fit(teacher: Path, tmp_path: Path) -> None:
    source = texts(tmp_path)
    model = {"width": 32, "num_layers": 1, "num_heads": 2, "context": 32}
    for choices, reason in (
        ({"distill": {"weight": 0}}, "weight must lie"),
        ({"distill": {"temperature": 0}}, "temperature must lie"),
        ({"distill": {"layers": 2}}, "counts the blocks of base"),
        ({"training": {"label_smoothing": 0.1}}, "leave out training.label_smoothing"),
        ({"method": "prompt", "stage": "sft", "base": str(teacher)}, "one tokenizer on both sides"),
    ):
        with pytest.raises(BadInputError, match=reason):
            recipe(teacher, source, **choices)
    long = recipe(teacher, source, model={**model, "context": 1024}, training={"context": 1024})
    with pytest.raises(BadInputError, match=r"rows have 1024 tokens, distill.teacher .* set training.context"):
        train(long, tmp_path / "long", teacher=teacher)
    other = tmp_path / "other"
    tokenizer = tiny_tokenizer()
    tokenizer.special_tokens["<|more|>"] = tokenizer.vocab_size
    save_model(random_model(tied_embeddings=True), other, tokenizer=tokenizer)
    with pytest.raises(BadInputError, match="has another tokenizer than base"):
        train(recipe(other, source, base=str(teacher)), tmp_path / "run", base=teacher, teacher=other)
    assert not (tmp_path / "run").exists()
