"""The recipes of an encoder and of encoder-decoders: what they train opens in transformers, and answers a text alike.

From text to text on both sides, each with its own tokenizer; the same recipes as are shipped, made small.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

import llm_journey
from llm_journey.app.encoders import MaskFiller, Rewriter
from llm_journey.app.exports import export_model
from llm_journey.checkpoint.families import family_of
from llm_journey.core.errors import JourneyError
from llm_journey.training.recipe import load_recipe
from llm_journey.training.run import train

SHAPE = ("model.width=32", "model.num_layers=1", "training.seconds=null", "training.steps=12", "training.batch_size=8",
         "training.validations=1", "training.checkpoints=1")  # fmt: skip
FAMILY = {"mlm-bert": "bert", "dates": "marian", "span": "marian"}
TEXTS = {
    "mlm-bert": ("The [MASK] river is old.", "[MASK]", "a  [MASK] [MASK] the stone[MASK]\n\t[MASK]", "é [MASK] 日本"),
    "dates": ("3 March 1998", "é 日本", " ", "03/04/98 (US)", "the 3rd of\n May,  1971"),
    "span": ("The <extra_id_0> river is<extra_id_1> old.", "no hole", "<extra_id_0> <extra_id_1>", "é <extra_id_3>"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, corpus: Path):
    """A JOURNEY_HOME with a run of each recipe: 12 steps of a model that is 32 wide."""
    folder = tmp_path_factory.mktemp("families")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOURNEY_HOME", str(folder))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for name in FAMILY:
            source = ("data.max_documents=200",) if name == "dates" else (f"data.source={corpus}",)
            if name == "dates":
                source += ("model.num_decoder_layers=1",)
            else:
                source += ("tokenizer.vocab_size=320",)
            train(load_recipe(name, (*SHAPE, *source)), folder / "runs" / name)
        torch.set_num_threads(threads)
        yield folder


@pytest.fixture(scope="module", params=FAMILY)
def opened(request: pytest.FixtureRequest, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(recipe, our model of the export, transformers' tokenizer, transformers' model of it)."""
    transformers: Any = pytest.importorskip("transformers")
    name = request.param
    out = tmp_path_factory.mktemp("exports") / name
    done = export_model(name, "hf", out)
    assert done.certificate["same_ids"] == done.certificate["same_answers"] == 1.0
    kind = transformers.AutoModelForMaskedLM if name == "mlm-bert" else transformers.AutoModelForSeq2SeqLM
    model = kind.from_pretrained(out, dtype=torch.float32).eval()
    assert type(model).__name__ == {"bert": "BertForMaskedLM", "marian": "MarianMTModel"}[FAMILY[name]]
    return name, llm_journey.load(str(out)), transformers.AutoTokenizer.from_pretrained(out), model


def test_shipped_recipes_fit_a_family() -> None:
    for name, family in FAMILY.items():
        assert family_of(load_recipe(name).with_vocabulary(4096).model) == family


def test_the_same_ids_of_a_text(opened: Any) -> None:
    name, ours, tokenizer, _ = opened
    for text in TEXTS[name]:
        assert ours.ids(text) == tokenizer(text)["input_ids"], text


def test_the_same_answer_to_a_text(opened: Any) -> None:
    name, ours, tokenizer, model = opened
    for text in TEXTS[name]:
        encoded = tokenizer([text], return_tensors="pt")
        if isinstance(ours, MaskFiller):
            with torch.inference_mode():
                logits = model(**encoded).logits[encoded["input_ids"] == tokenizer.mask_token_id]
            expected = logits.softmax(-1)
            expected[:, tokenizer.all_special_ids] = 0.0
            values, tokens = expected.topk(3)
            found = ours.fill(text, top=3)
            assert [[item.text for item in row] for row in found] == [
                [tokenizer.decode([token]) for token in row] for row in tokens.tolist()
            ]
            assert [item.probability for row in found for item in row] == pytest.approx(values.flatten().tolist())
            continue
        assert isinstance(ours, Rewriter)
        for beams in (1, 3):
            written = model.generate(
                **encoded, num_beams=beams, do_sample=False, max_new_tokens=12, length_penalty=0.0,
                early_stopping="never" if beams > 1 else None,
            )  # fmt: skip
            ids = written[0, 1:].tolist()
            ids = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
            settings = {"num_beams": beams, "max_new_tokens": 12, "length_penalty": 0.0}
            assert ours.rewrite(text, settings=settings)[0].text == tokenizer.decode(ids), (text, beams)


def test_rows_of_several_lengths_are_padded_to_the_same_answers(opened: Any) -> None:
    """transformers' own padding: the mask that its tokenizer makes says which positions are none."""
    name, ours, tokenizer, model = opened
    if isinstance(ours, MaskFiller):
        pytest.skip("its masks are filled one text at a time")
    texts = list(TEXTS[name])
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    assert not encoded["attention_mask"].all()
    written = model.generate(**encoded, num_beams=1, do_sample=False, max_new_tokens=8)
    for text, row in zip(texts, written[:, 1:].tolist(), strict=True):
        ids = row[: row.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in row else row
        found = ours.rewrite(text, settings={"num_beams": 1, "max_new_tokens": 8})[0].text
        assert found == tokenizer.decode(ids), text


def test_transformers_fills_a_mask_by_its_own_pipeline(home: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    pipeline = transformers.pipeline("fill-mask", model=str(home / "runs" / "mlm-bert" / "model"), top_k=3)
    ours = llm_journey.load("mlm-bert")
    assert isinstance(ours, MaskFiller)
    theirs = {item["token_str"]: item["score"] for item in pipeline("The [MASK] river is old.")}
    for guess in ours.fill("The [MASK] river is old.", top=1)[0]:
        assert theirs[guess.text] == pytest.approx(guess.probability, abs=1e-5)


@pytest.mark.parametrize("name", ["mlm-bert", "dates"])
def test_a_tokenizer_that_says_something_else_is_not_exported(
    name: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted error: the folder's tokenizer.json forgets the end token, so transformers reads other ids."""
    from llm_journey.tokenizer import io

    monkeypatch.setattr(io, "_post_processor", lambda tokenizer: None)
    source = llm_journey.load(name)
    assert isinstance(source, MaskFiller | Rewriter)
    from llm_journey.checkpoint.model_folder import save_model

    save_model(source.network, tmp_path / "model", tokenizer=source.tokenizer)  # type: ignore[arg-type]
    with pytest.raises(JourneyError, match="transformers finds the same ids for 0"):
        export_model(str(tmp_path / "model"), "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
