"""Encoders and encoder-decoders by name: masks filled, texts rewritten, from the command line and from Python."""

import json
import math
import random
from pathlib import Path

import pytest
import torch

import llm_journey
from command_line import Journey
from llm_journey.app.encoders import MaskFiller, Rewriter, _with_special, encoder_ids
from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer.tokenizer import from_merges

MASKED = """\
name: masks
objective: masked
data: {source: SOURCE, held_out: 0.2, quality: {enabled: false}}
tokenizer: {vocab_size: 300, special_tokens: ["<|endoftext|>", "[MASK]"]}
model: {kind: encoder, width: 32, num_layers: 2, num_heads: 2, context: 32, qk_norm: true}
training:
  batch_size: 8
  steps: 150
  validations: 2
  checkpoints: 1
  sample_prompts: ["one two [MASK] four"]
"""
DATES = """\
name: days
objective: seq2seq
data: {source: dates, max_documents: 200}
tokenizer: {vocab_size: 257, special_tokens: ["<|endoftext|>"]}
model:
  {kind: encoder_decoder, width: 16, num_layers: 1, num_heads: 2, context: 64, norm: layernorm, norm_placement: post,
   norm_epsilon: 1.0e-5, positions: sinusoidal_halves, mlp: relu, bias: true, head_bias: true}
training: {batch_size: 8, steps: 6, validations: 2, checkpoints: 1, sample_prompts: ["3 March 1998"]}
"""
_WORDS = "one two three four five six seven eight nine ten".split()  # noqa: SIM905


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory):
    """A JOURNEY_HOME with two runs: an encoder that counts, an encoder-decoder that has hardly begun."""
    from llm_journey.app.training import train_and_measure

    folder = tmp_path_factory.mktemp("encoders")
    texts = folder / "texts"
    texts.mkdir()
    generator = random.Random(0)
    for number in range(40):
        start = generator.randint(0, 9)
        words = [_WORDS[(start + place) % 10] for place in range(30 + number)]
        (texts / f"{number}.txt").write_text(" ".join(words), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOURNEY_HOME", str(folder / "home"))
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        for text in (MASKED.replace("SOURCE", str(texts)), DATES):
            recipe = folder / "recipe.yaml"
            recipe.write_text(text, encoding="utf-8")
            run = train_and_measure(str(recipe))
            assert (run.status, run.failures) == ("finished", {})
        torch.set_num_threads(before)
        yield folder / "home"


def test_a_run_of_each_leaves_a_card_and_a_report_with_its_figures(home: Path) -> None:
    masks, days = home / "runs" / "masks", home / "runs" / "days"
    card = (masks / "model" / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: fill-mask" in card and "masked tokens right" in card and "An encoder-only" in card
    figures = json.loads((days / "run.json").read_text(encoding="utf-8"))["figures"]
    assert figures["logit_difference"] <= 1e-4, "a Marian-type model, which transformers opened"
    card = (days / "model" / "README.md").read_text(encoding="utf-8")
    assert "text2text-generation" in card and "exact match" in card and "1 layers that read and 1 that write" in card
    assert "Bits per byte" not in card and "held-out pairs, whose answers were never trained on" in card
    report = (masks / "report.html").read_text(encoding="utf-8")
    assert "of the masked tokens" in report and "always the commonest token" in report and "bits per byte" not in report
    assert "held-out answers without a fault" in (days / "report.html").read_text(encoding="utf-8")
    samples = [json.loads(line) for line in (masks / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert samples[-1]["text"].startswith("one two ") and "[MASK]" not in samples[-1]["text"]


def test_masks_are_filled_from_both_sides(journey: Journey) -> None:
    done = journey("generate", "masks", "four five [MASK] seven eight nine [MASK] one two", "--json")
    assert done.code == 0 and len(done.json["masks"]) == 2 and all(len(mask) == 5 for mask in done.json["masks"])
    shares = [guess["probability"] for guess in done.json["masks"][0]]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
    filled = journey("generate", "masks", "four five [MASK] seven eight nine [MASK] one two").out
    assert filled == done.json["text"] + "\n" and "[MASK]" not in filled
    assert filled.startswith("four five ") and filled.endswith(" one two\n")
    fewer = journey("generate", "masks", "one [MASK]", "--set", "top=2", "--json")
    assert len(fewer.json["masks"][0]) == 2


def test_fill_is_the_models_own_distribution() -> None:
    model = llm_journey.load("masks")
    assert isinstance(model, MaskFiller)
    mask = model.tokenizer.special_tokens["[MASK]"]
    end = model.tokenizer.special_tokens["<|endoftext|>"]
    ids = [end, *model.tokenizer.encode("one two"), mask, *model.tokenizer.encode(" four"), end]
    logits = model.encoder(torch.tensor([ids]))[0, ids.index(mask)]
    logits[[mask, end]] = -math.inf  # a special token is no answer; its share is not handed to the others
    best = model.fill("one two [MASK] four", top=1)[0][0]
    assert best.text == model.tokenizer.decode([int(logits.argmax())])
    expected = model.encoder(torch.tensor([ids]))[0, ids.index(mask)].softmax(-1)[int(logits.argmax())]
    assert best.probability == pytest.approx(expected.item(), abs=1e-6)
    assert dict(model.rows())["Does"] == "fills each [MASK] of a text" and "masks" in model._repr_html_()


def test_a_text_is_rewritten_by_beams(journey: Journey) -> None:
    done = journey("generate", "days", "3 March 1998", "--json")
    candidates = done.json["candidates"]
    assert done.code == 0 and len(candidates) == 4 and done.json["text"] == candidates[0]["text"]
    assert [item["score"] for item in candidates] == sorted((item["score"] for item in candidates), reverse=True)
    assert journey("generate", "days", "3 March 1998").out == done.json["text"] + "\n"
    short = journey("generate", "days", "3 March 1998", "--set", "num_beams=2", "--set", "max_new_tokens=3", "--json")
    assert len(short.json["candidates"]) == 2 and all(len(item["text"]) <= 3 for item in short.json["candidates"])
    model = llm_journey.load("days")
    assert isinstance(model, Rewriter) and model.generate("3 March 1998") == done.json["text"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("masks", "no mask here"), "the text has no [MASK]"),
        (("masks", "[MASK] " * 40), "the model's context holds 32"),
        (("masks", "[MASK]", "--set", "top=0"), "top must be at least 1"),
        (("masks", "[MASK]", "--set", "temperature=1"), "takes --set top=NUMBER alone"),
        (("days", ""), "the text is empty"),
        (("days", "x" * 100), "the model's context holds 64"),
        (("days", "3 March", "--set", "num_beams=0"), "num_beams must lie in 1 to 256"),
        (("days", "3 March", "--set", "beams=2"), "unknown key 'beams'"),
    ],
)
def test_bad_input(journey: Journey, arguments: tuple[str, ...], reason: str) -> None:
    done = journey("generate", *arguments)
    assert done.code == 2 and reason in done.err and done.out == ""


def test_they_do_not_chat(journey: Journey) -> None:
    done = journey("chat", "days", "hello")
    assert done.code == 2 and "kind" in done.err


def test_sentinels_of_a_span_model_are_tokens_and_nothing_else_is() -> None:
    """<extra_id_0> says where a span is missing; any other special token in a text is text."""
    tokenizer = from_merges([], pattern="gpt2", special_tokens=["<|endoftext|>", "<extra_id_0>", "<extra_id_1>"])
    names = [f"<extra_id_{number}>" for number in range(8)]
    found = _with_special(tokenizer, "a <extra_id_1>b<|endoftext|>\n\t <extra_id_0><extra_id_7>", names)
    assert found == [
        *tokenizer.encode("a"),
        258,
        *tokenizer.encode("b<|endoftext|>"),
        257,
        *tokenizer.encode("<extra_id_7>"),
    ]
    assert tokenizer.end_id not in found


def test_white_space_before_a_mask_is_the_masks_to_fill() -> None:
    tokenizer = from_merges([], pattern="gpt2", special_tokens=["<|endoftext|>", "[MASK]"])
    expected = [256, *tokenizer.encode("a"), 257, *tokenizer.encode(" b"), 256]
    for text in ("a[MASK] b", "a [MASK] b", "a\u2003\n [MASK] b"):
        assert encoder_ids(tokenizer, text) == expected


def test_no_special_token_can_be_smuggled_in() -> None:
    model = llm_journey.load("masks")
    assert isinstance(model, MaskFiller)
    end = model.tokenizer.special_tokens["<|endoftext|>"]
    assert model.ids("<|endoftext|> [MASK]").count(end) == 2
    with pytest.raises(BadInputError, match=r"no \[MASK\]"):
        model.fill("[ MASK ]")
