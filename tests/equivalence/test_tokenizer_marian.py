"""A published Marian folder's text side (source.spm, target.spm, vocab.json): ours = transformers' MarianTokenizer.

The SentencePiece models are trained here, on made-up sentences of two languages; the model is random.
"""

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import llm_journey
from command_line import Journey
from llm_journey.app.encoders import Rewriter
from llm_journey.app.exports import export_model
from llm_journey.checkpoint.model_folder import load_tokenizer
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.tokenizer.marian_pieces import MarianPieces

sentencepiece = pytest.importorskip("sentencepiece")
transformers: Any = pytest.importorskip("transformers")

TEXTS = (
    "The river is old.", "  two  spaces ", "Ünïcödé ﬁ ①", ">>fra<< the old bridge", ">>fra<<", ">>none<< river",
    ">> not a code", "a</s>b <pad> <unk>", "日本 and emoji 🙂", "tab\tand\nline", "x",
)  # fmt: skip
_ENGLISH = "the a river city king old stone red house near of in was built by".split()  # noqa: SIM905
_FRENCH = "le la rivière ville roi vieux pierre rouge maison près de dans fut bâtie par".split()  # noqa: SIM905


def _train(words: list[str], seed: int) -> bytes:
    generator = random.Random(seed)
    sentences = [" ".join(generator.choices(words, k=8)) + "." for _ in range(300)]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=written, vocab_size=60, hard_vocab_limit=False,
        minloglevel=2, bos_id=-1,
    )  # fmt: skip
    return written.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the published ones are: config.json, model.safetensors, source.spm, target.spm, vocab.json."""
    path = tmp_path_factory.mktemp("marian") / "opus"
    path.mkdir()
    pieces = ["</s>", "<unk>"]
    for name, words, seed in (("source", _ENGLISH, 0), ("target", _FRENCH, 1)):
        data = _train(words, seed)
        (path / f"{name}.spm").write_bytes(data)
        model = sentencepiece.SentencePieceProcessor(model_proto=data)
        pieces += [model.id_to_piece(token) for token in range(model.vocab_size())]
    pieces = [*dict.fromkeys(piece for piece in pieces if piece not in ("<s>",)), ">>fra<<", "<pad>"]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    (path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "MarianTokenizer", "source_lang": "eng", "target_lang": "fra"}), encoding="utf-8"
    )
    torch.manual_seed(0)
    size, pad, end = len(pieces), vocabulary["<pad>"], vocabulary["</s>"]
    model = transformers.MarianMTModel(
        transformers.MarianConfig(
            vocab_size=size,
            decoder_vocab_size=size,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=64,
            pad_token_id=pad,
            eos_token_id=end,
            decoder_start_token_id=pad,
            forced_eos_token_id=None,
            scale_embedding=True,
            share_encoder_decoder_embeddings=True,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
        model.final_logits_bias.normal_()
        model.final_logits_bias[0, pad] = 4.0  # never trained, so it may say anything; it must not be written
        model.final_logits_bias[0, end] += 1.0
    model.generation_config.bad_words_ids = [[pad]]
    model.save_pretrained(path)
    return path


def test_the_same_ids_both_ways(folder: Path) -> None:
    ours, theirs = load_tokenizer(folder), transformers.MarianTokenizer.from_pretrained(folder)
    assert isinstance(ours, MarianPieces)
    assert ours.vocab_size == theirs.vocab_size
    specials = set(ours.special_tokens.values())
    for text in TEXTS:
        plain = text.replace("</s>", "").replace("<pad>", "").replace("<unk>", "")  # theirs makes tokens of these
        assert [*ours.encode(plain), ours.end_id] == theirs(plain)["input_ids"], text
        assert theirs(text_target=plain)["input_ids"][:-1] == ours.encode_target(plain) or plain.startswith(">>")
    assert not set(ours.encode("a</s>b <pad>")) & (specials - {ours.special_tokens["<unk>"]}), "text stays text"
    generator = random.Random(2)
    for _ in range(50):
        ids = [generator.randrange(ours.vocab_size) for _ in range(12)]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_text_to_text_as_transformers_and_never_padding(folder: Path) -> None:
    ours = llm_journey.load(str(folder))
    assert isinstance(ours, Rewriter)
    tokenizer = transformers.MarianTokenizer.from_pretrained(folder)
    model = transformers.MarianMTModel.from_pretrained(folder, dtype=torch.float32).eval()
    answers = set()
    for text in ("The river is old.", ">>fra<< the old bridge", "stone by stone the house was built"):
        for beams in (1, 4):
            written = model.generate(
                **tokenizer([text], return_tensors="pt"), num_beams=beams, do_sample=False, max_new_tokens=12,
                length_penalty=0.0, early_stopping="never" if beams > 1 else None,
            )  # fmt: skip
            settings = {"num_beams": beams, "max_new_tokens": 12, "length_penalty": 0.0}
            (found, *_) = ours.rewrite(text, settings=settings)
            assert found.text == tokenizer.decode(written[0], skip_special_tokens=True)
            answers.add(found.text)
    assert len(answers) >= 3, "answers that are all alike would prove little"


def test_by_command_and_as_an_export(folder: Path, journey: Journey, tmp_path: Path) -> None:
    assert journey("generate", folder, "The river is old.").code == 0
    assert journey("tokenizer", "show", folder).code == 0
    certificate = export_model(str(folder), "hf", tmp_path / "out").certificate
    assert certificate["same_ids"] == 1.0 and certificate["largest_logit_difference"] <= 1e-4
    for name in ("source.spm", "target.spm", "vocab.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_without_the_package_the_fix_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journey: Journey
) -> None:
    """What the folder is made of can still be read; text cannot go in."""
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(
        JourneyError, match=r"sentencepiece, which is not installed; pip install 'llm-journey\[marian\]'"
    ):
        MarianPieces.load(folder).encode("a")
    assert MarianPieces.load(folder).vocab_size > 60
    done = journey("generate", folder, "The river is old.")
    assert done.code == 1 and "llm-journey[marian]" in done.err and done.out == ""
    assert journey("models", "show", folder).code == 0
    done = journey("models", "import", folder, "--to", tmp_path / "new")
    assert done.code == 0


def _damage(folder: Path, name: str, content: bytes | None) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("source.spm", b"no model", "not a SentencePiece model"),
        ("source.spm", b"", "not a SentencePiece model"),
        ("target.spm", None, r"target\.spm: cannot be read"),
        ("vocab.json", b'{"a": 0, "</s>": 1, "<unk>": 2}', "lacks '<pad>'"),
        ("vocab.json", b'{"a": 1, "</s>": 1, "<unk>": 2, "<pad>": 3}', "two pieces share one id"),
        ("vocab.json", b'{"a": "x", "</s>": 1, "<unk>": 2, "<pad>": 3}', "has no whole number"),
        ("vocab.json", b'{"</s>": 0, "<unk>": 1, "<pad>": 9999}', "they do not belong together"),
        ("tokenizer_config.json", b'{"separate_vocabs": true}', "separate_vocabs"),
        ("tokenizer_config.json", b'{"eos_token": "<end>"}', "lacks '<end>'"),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes | None, reason: str, folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    _damage(copy, name, content)
    with pytest.raises(BadInputError, match=reason):
        model = llm_journey.load(str(copy))
        assert isinstance(model, Rewriter)
        model.generate("The river.")
