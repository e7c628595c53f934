"""Objectives: what each loss is, that it can be learned, that runs of each resume, what a recipe must agree on."""

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_runs import Recorder, rows, steps

from llm_journey.checkpoint.model_folder import load_model
from llm_journey.core.errors import BadInputError
from llm_journey.datasets.batching import IGNORED, Batch, PairBatch, pad_pairs
from llm_journey.datasets.corruption import restored, sentinel_tokens, unmasked
from llm_journey.evaluation.exact_match import exact_match, pair_figures
from llm_journey.model.config import TransformerConfig
from llm_journey.model.encoder import Encoder
from llm_journey.model.encoder_decoder import EncoderDecoder
from llm_journey.model.kinds import make_model
from llm_journey.training import objectives
from llm_journey.training.inputs import prepare_inputs
from llm_journey.training.loaders import make_loader, sentinel_ids
from llm_journey.training.objectives import (
    OBJECTIVES,
    likeliest_followers,
    masked_tokens,
    unigram_token,
    written_targets,
)
from llm_journey.training.recipe import Recipe, recipe_from
from llm_journey.training.run import train

END = "<|endoftext|>"
SHAPE = {"width": 16, "num_layers": 1, "num_heads": 2, "context": 64, "dropout": 0.1}
STEPS = {"steps": 8, "batch_size": 4, "log_every": 1, "validations": 2, "checkpoints": 4}
DATES = {"source": "dates", "max_documents": 120, "held_out": 0.1}
SPECIAL = {"masked": [END, "[MASK]"], "span": [END, *sentinel_tokens(8)], "seq2seq": [END], "next_token": [END]}
KIND = {"masked": "encoder", "span": "encoder_decoder", "seq2seq": "encoder_decoder", "next_token": "decoder"}


def _mapping(objective: str, source: Path | None = None, **changes: Any) -> dict[str, Any]:
    data = DATES if objective == "seq2seq" else {"source": str(source), "held_out": 0.2}
    special = SPECIAL[objective]
    mapping = {
        "name": objective.replace("_", "-"),
        "objective": objective,
        "data": data,
        "tokenizer": {"vocab_size": 256 + len(special), "special_tokens": special},
        "model": {**SHAPE, "kind": KIND[objective]},
        "training": STEPS,
    }
    return {key: {**value, **changes[key]} if key in changes else value for key, value in mapping.items()}


def _recipe(objective: str, source: Path | None = None, **changes: Any) -> Recipe:
    return recipe_from(_mapping(objective, source, **changes), "test")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNEY_HOME", str(tmp_path / "home"))


def _model(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = TransformerConfig(
        **{"vocab_size": 30, "width": 16, "num_layers": 2, "num_heads": 2, "context": 16, "kind": kind, **changes}
    )
    model = make_model(config)
    for parameter in model.parameters():  # the zeros of the first step would hide what a branch does
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("head", [{}, {"head_bias": True, "head_transform": True, "mlp": "gelu"}])
def test_masked_loss_is_the_mean_over_the_hidden_tokens(head: dict[str, Any]) -> None:
    model = _model("encoder", **head)
    ids = np.random.default_rng(0).integers(0, 30, size=(3, 10))
    targets = np.full_like(ids, IGNORED)
    targets[[0, 0, 2], [1, 7, 9]] = [4, 5, 6]
    logits = model(torch.from_numpy(ids))
    expected = -sum(logits[b, t].log_softmax(-1)[target] for b, t, target in ((0, 1, 4), (0, 7, 5), (2, 9, 6))) / 3
    found = masked_tokens(model, model.hidden, Batch(ids, targets))
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("head", [{}, {"head_bias": True}])
def test_the_loss_of_a_padded_batch_is_that_of_its_pairs(head: dict[str, Any]) -> None:
    """Teacher forcing: token n from the source and the n tokens before it. Padding changes nothing."""
    model = _model("encoder_decoder", **head)
    generator = np.random.default_rng(1)
    pairs = [
        (generator.integers(2, 30, size=a), generator.integers(2, 30, size=b)) for a, b in ((3, 7), (9, 2), (5, 5))
    ]
    total, count = 0.0, 0
    for source, target in pairs:
        inputs = torch.tensor([[0, *target[:-1].tolist()]])
        logits = model(torch.from_numpy(source)[None], inputs)[0]
        total += F.cross_entropy(logits, torch.from_numpy(target), reduction="sum").item()
        count += len(target)
    batch = pad_pairs([source for source, _ in pairs], [target for _, target in pairs], begin_id=0, pad_id=1)
    assert batch.num_targets() == count and batch.num_tokens() == count + 17
    assert written_targets(model, model.hidden, batch).item() == pytest.approx(total / count, abs=1e-5)


def test_masking_and_spans_come_from_the_same_text_as_next_token(texts: Path) -> None:
    """A masked batch is the plain loader's with tokens hidden; the end token between documents is never hidden."""
    recipe = _recipe("masked", texts)
    inputs = prepare_inputs(recipe)
    loader = make_loader(recipe, inputs.train, inputs.tokenizer)
    plain = make_loader(_recipe("next_token", texts), inputs.train)
    seen = []
    for _ in range(12):
        batch, expected = loader.next_batch(), plain.next_batch()
        assert isinstance(batch, Batch) and isinstance(expected, Batch)
        assert np.array_equal(unmasked(batch), expected.inputs)
        assert not (batch.targets == inputs.tokenizer.end_id).any()
        assert batch.num_tokens() == batch.inputs.size > batch.num_targets()
        seen.append(batch.inputs.tobytes())
    assert len(set(seen)) == 12


def test_spans_come_from_the_same_text_as_next_token(texts: Path) -> None:
    recipe = _recipe("span", texts)
    inputs = prepare_inputs(recipe)
    loader = make_loader(recipe, inputs.train, inputs.tokenizer)
    plain = make_loader(_recipe("next_token", texts), inputs.train)
    sentinels, end = sentinel_ids(inputs.tokenizer), inputs.tokenizer.end_id
    for _ in range(6):
        batch, expected = loader.next_batch(), plain.next_batch()
        assert isinstance(batch, PairBatch) and isinstance(expected, Batch)
        for row, text in enumerate(expected.inputs):
            source = batch.source[row][batch.source_mask[row]]
            target = batch.targets[row][batch.targets[row] != IGNORED]
            assert source[-1] == target[-1] == end and batch.inputs[row, 0] == end
            assert np.array_equal(restored(source[:-1], target[:-1], sentinels), text)


@pytest.mark.parametrize("objective", ["masked", "span", "seq2seq"])
def test_any_objective_runs_and_resumes_as_if_never_stopped(objective: str, texts: Path, tmp_path: Path) -> None:
    recipe = _recipe(objective, texts)
    whole = train(recipe, tmp_path / "whole", judge=pair_figures)
    assert whole.status == "finished"
    stop = Recorder(lambda step: (_ for _ in ()).throw(KeyboardInterrupt) if step == 7 else None)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", observer=stop, judge=pair_figures)
    resumed = train(recipe, tmp_path / "cut", resume=True, judge=pair_figures)
    assert resumed.status == "finished" and steps(tmp_path / "cut") == steps(tmp_path / "whole")
    same = ("validation_loss", "masked_accuracy", "token_accuracy", "span_accuracy", "exact_match")
    assert [resumed.figures.get(key) for key in same] == [whole.figures.get(key) for key in same]
    first, second = (load_model(tmp_path / name / "model")[0].state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_validation_says_of_each_objective(texts: Path, tmp_path: Path) -> None:
    expected = {
        "masked": {"masked_accuracy", "unigram_accuracy"},
        "span": {"token_accuracy", "span_accuracy", "unigram_accuracy", "bigram_accuracy"},
        "seq2seq": {"token_accuracy", "exact_match"},
    }
    for objective, keys in expected.items():
        train(_recipe(objective, texts), tmp_path / objective, judge=pair_figures)
        last = [row for row in rows(tmp_path / objective) if "validation_loss" in row][-1]
        assert keys == set(last) - {"step", "tokens", "seconds", "validation_loss", "perplexity"}
        assert all(0 <= last[key] <= 1 for key in keys)
        assert last["perplexity"] == pytest.approx(math.exp(last["validation_loss"]))
        information = json.loads((tmp_path / objective / "run.json").read_text(encoding="utf-8"))
        assert keys <= information["figures"].keys()


def test_unigram_accuracy_by_hand(texts: Path) -> None:
    """The share of hidden tokens that are the training text's commonest, counted here from the text itself."""
    recipe = _recipe("masked", texts)
    inputs = prepare_inputs(recipe)
    counts = np.bincount(inputs.train.read(0, inputs.train.num_tokens))
    order = [token for token in np.argsort(-counts).tolist() if token != inputs.tokenizer.end_id]
    assert unigram_token(inputs.train) == order[0]
    found = OBJECTIVES["masked"].figures(recipe, make_model(recipe.with_vocabulary(258).model), inputs)
    text = inputs.validation.read(0, inputs.validation.num_tokens)
    share = (text == order[0]).sum() / (text != inputs.tokenizer.end_id).sum()
    assert found["unigram_accuracy"] == pytest.approx(share, abs=0.12)  # a sample of 15%: about 250 tokens


def test_the_likeliest_follower_by_hand(texts: Path) -> None:
    inputs = prepare_inputs(_recipe("span", texts))
    ids, end = inputs.train.read(0, inputs.train.num_tokens).tolist(), inputs.tokenizer.end_id
    counts: dict[int, Counter[int]] = {}
    for token, following in pairwise(ids):
        if following != end:
            counts.setdefault(token, Counter())[following] += 1
    found = likeliest_followers(inputs.train)
    for token, row in counts.items():
        assert row[int(found[token])] == max(row.values())
    silent = set(range(inputs.train.vocab_size)) - counts.keys()
    assert silent and {int(found[token]) for token in silent} == {unigram_token(inputs.train)}


def test_a_text_that_repeats_itself_is_guessed_from_the_token_before(tmp_path: Path) -> None:
    """In a cycle of letters the token before decides: the second guess is never wrong, the first once in eight."""
    folder = tmp_path / "cycle"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.txt").write_text(("abcdefgh" * 12)[number % 8 : 80 + number], encoding="utf-8")
    data = {"quality": {"enabled": False}}
    training = {"steps": 150, "batch_size": 8, "validations": 1}
    recipe = _recipe("span", folder, training=training, model={"dropout": 0.0, "context": 32}, data=data)
    figures = train(recipe, tmp_path / "run").figures
    assert figures["bigram_accuracy"] > 0.9, "a document's first letter follows an end token"
    assert figures["unigram_accuracy"] == pytest.approx(1 / 8, abs=0.05)
    assert figures["span_accuracy"] > 0.4, "far above the first guess already; the rest takes longer"
    assert figures["token_accuracy"] > figures["span_accuracy"], "where a sentinel comes is easier"


def test_an_encoder_learns_what_stands_at_the_masks(tmp_path: Path) -> None:
    """Text of a fixed cycle: each letter follows from its neighbours, so nearly every mask can be filled."""
    folder = tmp_path / "cycle"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.txt").write_text(("abcdefgh" * 12)[number % 8 : 80 + number], encoding="utf-8")
    training = {"steps": 120, "batch_size": 8, "validations": 1}
    data = {"quality": {"enabled": False}}
    recipe = _recipe("masked", folder, training=training, model={"dropout": 0.0, "context": 32}, data=data)
    figures = train(recipe, tmp_path / "run").figures
    assert figures["masked_accuracy"] > 0.7 and figures["unigram_accuracy"] < 0.2


def test_exact_match_counts_whole_answers_alone(tmp_path: Path) -> None:
    """A trained model's share is that of answers written here one by one; a random one has none."""
    recipe = _recipe("seq2seq", training={"steps": 1})
    inputs = prepare_inputs(recipe)
    assert inputs.validation_targets is not None
    model = make_model(recipe.with_vocabulary(inputs.tokenizer.vocab_size).model)
    assert isinstance(model, EncoderDecoder)
    assert exact_match(model, inputs.validation, inputs.validation_targets) == 0.0
    # Learn three pairs by heart: then these three are exact, and only these.
    known = [0, 3, 5]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batch = pad_pairs(
        [inputs.validation.document(n) for n in known],
        [inputs.validation_targets.document(n) for n in known],
        begin_id=inputs.tokenizer.end_id,
        pad_id=inputs.tokenizer.end_id,
    )
    for _ in range(200):
        optimizer.zero_grad()
        written_targets(model.eval(), model.hidden, batch).backward()
        optimizer.step()
    share = exact_match(model, inputs.validation, inputs.validation_targets)
    assert 3 / inputs.validation.num_documents <= share < 1
    assert exact_match(model, inputs.validation, inputs.validation_targets, most=1) == 1.0
    assert exact_match(model, inputs.validation, inputs.validation_targets, num_beams=3, most=1) == 1.0


@pytest.mark.parametrize(
    ("objective", "changes", "reason"),
    [
        ("masked", {"model": {"kind": "decoder"}}, "objective masked trains model.kind encoder, not decoder"),
        ("span", {"model": {"kind": "encoder"}}, "objective span trains model.kind encoder_decoder, not encoder"),
        (
            "masked",
            {"tokenizer": {"special_tokens": [END, "<x>"]}},
            r"needs \[MASK\] among tokenizer.special_tokens",
        ),
        ("masked", {"training": {"order": "packed"}}, "takes running text; set training.order"),
        (
            "masked",
            {"training": {"sample_prompts": ["no mask"]}},
            r"each of training.sample_prompts must hold \[MASK\]",
        ),
        ("masked", {"training": {"corruption_rate": 1.5}}, "corruption_rate must lie between 0 and 1"),
        ("seq2seq", {"data": {"source": "wiki-summaries"}}, "is no task; known: dates, or a file of pairs"),
        ("seq2seq", {"training": {"stream": "x"}}, "leave out training.stream"),
    ],
)
def test_recipes_that_do_not_agree_with_themselves(
    objective: str, changes: dict[str, Any], reason: str, texts: Path
) -> None:
    with pytest.raises(BadInputError, match=reason):
        _recipe(objective, texts, **changes)


def test_what_the_data_must_offer(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="sentinels"):
        train(_recipe("span", texts, tokenizer={"special_tokens": [END, "<x>"]}), tmp_path / "span")
    with pytest.raises(BadInputError, match=r"the longest source .* the context is 20; set model.context higher"):
        train(_recipe("seq2seq", model={"context": 20}), tmp_path / "long")
    with pytest.raises(BadInputError, match="batch_size 500 is more than the 120 pairs"):
        train(_recipe("seq2seq", training={"batch_size": 500}), tmp_path / "many")
    assert not (tmp_path / "many" / "checkpoints").exists()


def test_a_run_of_other_pairs_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another seed makes other dates: the recipe differs. The same recipe over changed data: the fingerprint does."""
    recipe = _recipe("seq2seq", training={"steps": 2})
    train(recipe, tmp_path / "run")
    with pytest.raises(BadInputError, match=r"data\.split_seed"):
        train(_recipe("seq2seq", training={"steps": 4}, data={"split_seed": 1}), tmp_path / "run", resume=True)
    from llm_journey.training import tasks

    task = tasks.TASKS["dates"]
    other = tasks.Task(task.title, 2, lambda seed, held_out, number: task.pairs(seed + 1, held_out, number))
    monkeypatch.setitem(tasks.TASKS, "dates", other)
    with pytest.raises(BadInputError, match="the train fingerprint was"):
        train(_recipe("seq2seq", training={"steps": 4}), tmp_path / "run", resume=True)


def test_a_persons_own_pairs_are_learned_and_a_changed_file_is_not_resumed(tmp_path: Path) -> None:
    """Words and their reversals from a file: held out by source, scored by exact match as a generated task is."""
    file = tmp_path / "reversed.tsv"
    words = [f"{chr(97 + number % 26)}{number:03}" for number in range(200)]
    rows = ["source\ttarget", *(f"{word}\t{word[::-1]}" for word in words)]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    data = {"source": str(file), "max_documents": None}
    recipe = _recipe("seq2seq", data=data, training={"steps": 2})
    inputs = prepare_inputs(recipe)
    assert inputs.validation_targets is not None and inputs.train_targets is not None
    read = []
    for sources, targets in ((inputs.train, inputs.train_targets), (inputs.validation, inputs.validation_targets)):
        texts = [inputs.tokenizer.decode(sources.document(n)[:-1].tolist()) for n in range(sources.num_documents)]
        answers = [inputs.tokenizer.decode(targets.document(n)[:-1].tolist()) for n in range(sources.num_documents)]
        assert answers == [text[::-1] for text in texts]
        read += texts
    assert sorted(read) == sorted(words) and inputs.validation.num_documents > 5
    figures = train(recipe, tmp_path / "run", judge=pair_figures).figures
    assert figures["exact_match"] == 0.0 and 0 < figures["token_accuracy"] < 1
    file.write_text("\n".join(rows[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(BadInputError, match="fingerprint was"):
        train(_recipe("seq2seq", data=data, training={"steps": 4}), tmp_path / "run", resume=True)
    file.unlink()
    with pytest.raises(BadInputError, match="no such file"):
        train(recipe, tmp_path / "other")


def test_validation_leaves_the_model_in_training(texts: Path) -> None:
    recipe = _recipe("masked", texts)
    inputs = prepare_inputs(recipe)
    model = make_model(recipe.with_vocabulary(258).model).train()
    assert isinstance(model, Encoder)
    first = objectives.OBJECTIVES["masked"].figures(recipe, model, inputs)
    assert first == objectives.OBJECTIVES["masked"].figures(recipe, model, inputs) and model.training
