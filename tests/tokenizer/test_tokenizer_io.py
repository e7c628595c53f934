"""Tokenizer files: what is saved comes back, other spellings are read, what is wrong is refused by name."""

import copy
import json
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest

from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer import Tokenizer, TokenizerConfig, io
from llm_journey.tokenizer.tokenizer import Roles, from_merges
from llm_journey.tokenizer.train import train_tokenizer

TEXTS = [topics.topics[name] for name in sorted(topics.topics)[:30]]
SAMPLE = "Some text, 1234 of it.\n\n  It's   <|im_end|> é字🙂\ud800"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, TokenizerConfig(vocab_size=700), processes=1)


@pytest.fixture
def content(tokenizer: Tokenizer) -> dict[str, Any]:
    return copy.deepcopy(io.to_huggingface(tokenizer))


def write(directory: Path, content: object, config: object = None) -> Path:
    (directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "qwen2", "gpt2_digits"])
def test_what_is_saved_comes_back(tmp_path: Path, tokenizer: Tokenizer, pattern: str) -> None:
    saved = Tokenizer(
        tokenizer.vocabulary,
        tokenizer.merges,
        special_tokens={**tokenizer.special_tokens, "<think>": 700},
        pattern=pattern,
        roles=Roles(end="<|im_end|>", begin=None, padding="<|endoftext|>"),
        chat_template="{{ messages }}",
        whole_words_first=True,
        compose=True,
        visible_tokens=["<think>"],
    )
    io.save(saved, tmp_path / "new" / "folder")
    loaded = io.load(tmp_path / "new" / "folder")
    assert loaded.fingerprint == saved.fingerprint
    assert loaded.encode(SAMPLE, allow_special=True) == saved.encode(SAMPLE, allow_special=True)
    assert (loaded.roles, loaded.chat_template) == (saved.roles, saved.chat_template)
    assert loaded.visible_tokens == {"<think>"}
    assert loaded.end_id == saved.special_tokens["<|im_end|>"]
    assert io.load(tmp_path / "new" / "folder" / "tokenizer.json").fingerprint == saved.fingerprint


def test_merges_as_strings_and_special_tokens_outside_the_vocabulary(
    tmp_path: Path, tokenizer: Tokenizer, content: dict[str, Any]
) -> None:
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    for name in tokenizer.special_tokens:
        del content["model"]["vocab"][name]
    del content["model"]["ignore_merges"]
    assert io.load(write(tmp_path, content)).fingerprint == tokenizer.fingerprint


def test_special_tokens_first_as_a_hugging_face_trainer_numbers_them(
    tmp_path: Path, tokenizer: Tokenizer, content: dict[str, Any]
) -> None:
    shift = len(tokenizer.special_tokens)
    content["model"]["vocab"] = {
        name: token - 697 if name in tokenizer.special_tokens else token + shift
        for name, token in content["model"]["vocab"].items()
    }
    for entry in content["added_tokens"]:
        entry["id"] -= 697
    content["post_processor"]["special_tokens"]["<|endoftext|>"]["ids"] = [0]
    loaded = io.load(write(tmp_path, content))
    assert loaded.special_tokens == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert loaded.encode(SAMPLE) == [token + shift for token in tokenizer.encode(SAMPLE)]
    assert loaded.decode(loaded.encode(SAMPLE), errors="surrogatepass") == SAMPLE


def test_the_configuration_beside_it_names_roles_and_template(tmp_path: Path, content: dict[str, Any]) -> None:
    content["post_processor"] = None
    config = {
        "eos_token": {"content": "<|im_end|>", "lstrip": False},
        "bos_token": None,
        "chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "chosen"}],
    }
    loaded = io.load(write(tmp_path, content, config))
    assert loaded.roles == Roles(end="<|im_end|>", begin=None, padding=None)
    assert loaded.chat_template == "chosen"
    (tmp_path / "chat_template.jinja").write_text("from a file", encoding="utf-8")
    assert io.load(tmp_path).chat_template == "from a file"


def test_composed_text_is_what_nfc_files_encode(tmp_path: Path, content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "NFC"}
    loaded = io.load(write(tmp_path, content))
    assert loaded.encode("e\u0301") == loaded.encode("é")


def set_in(content: dict[str, Any], path: str, value: object) -> None:
    *parents, last = path.split(".")
    for key in parents:
        content = content[int(key)] if isinstance(content, list) else content[key]
    if value is DELETE:
        del content[last]
    else:
        content[int(last) if isinstance(content, list) else last] = value


DELETE = object()
BAD = [
    ("model", DELETE, "'model' is missing"),
    ("model", [1], "JSON object"),
    ("model.vocab", DELETE, "'vocab' is missing"),
    ("model.merges", DELETE, "'merges' is missing"),
    ("model.merges", {"a": 1}, "JSON array"),
    ("model.type", "Unigram", "not a byte-level BPE"),
    ("model.byte_fallback", True, "not a byte-level BPE"),
    ("model.dropout", 0.1, "dropout"),
    ("model.merges.0", ["no such", "token"], "merge 0 refers to a token"),
    ("model.merges.0", "one two three", "merge 0 is no pair"),
    ("model.merges.3", 7, "merge 3 is no pair"),
    ("model.merges.1", ["ü", "ü"], "merge 1 makes a token"),
    ("model.vocab.!", 1, "share one id"),
    ("model.vocab.!", -4, "negative"),
    ("model.vocab.!", "0", "no whole number"),
    ("model.vocab.!", True, "no whole number"),
    ("model.vocab.!", DELETE, "1 of the 256 bytes"),
    ("model.vocab.字", 5000, "not spelled in the byte alphabet"),
    ("model.vocab.<|im_end|>", 4, "two ids"),
    ("added_tokens.0.id", "x", "lacks its id"),
    ("added_tokens.0", "text", "lacks its id"),
    ("added_tokens.0.rstrip", True, "looks at what stands behind it"),
    ("added_tokens.1.content", "<|endoftext|>", "stands twice"),
    ("pre_tokenizer", None, "known split patterns"),
    ("pre_tokenizer", {"type": "Metaspace"}, "known split patterns"),
    ("pre_tokenizer.add_prefix_space", True, "add_prefix_space"),
    ("pre_tokenizer.use_regex", False, "known split patterns"),
    ("normalizer", {"type": "Lowercase"}, "normalizer"),
    ("post_processor", 7, "none of null, ByteLevel"),
    ("post_processor", {"type": "RobertaProcessing"}, "none of null, ByteLevel"),
    ("post_processor", {"type": "Sequence", "processors": [{"type": "TemplateProcessing"}] * 2}, "none of null"),
    ("post_processor.single", {"A": 1}, "none of null, ByteLevel"),
    ("post_processor.single", [], "no text with tokens around it"),
    ("post_processor.single.0", {"Word": {}}, "no text with tokens around it"),
    ("post_processor.single.1", {"SpecialToken": {"id": "<|endoftext|>"}}, "no text with tokens around it"),
    ("post_processor.special_tokens", {}, "adds '<|endoftext|>', which is no added token of that id"),
    ("post_processor.special_tokens.<|endoftext|>.ids", [5], "no added token of that id"),
    ("post_processor.single.0.SpecialToken", [1], "adds 'None', which is no added token"),
]


def test_two_tokens_before_a_text_are_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    content["post_processor"]["single"].insert(0, content["post_processor"]["single"][0])
    with pytest.raises(BadInputError, match="more than one token before or behind"):
        io.load(write(tmp_path, content))


def test_a_begin_token_that_is_not_the_named_one_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    """Two files that contradict each other; without the second one, the first names the role too."""
    with pytest.raises(BadInputError, match=r"adds '<\|endoftext\|>', but .* names '<\|im_start\|>' as bos_token"):
        io.load(write(tmp_path, content, {"bos_token": "<|im_start|>"}))
    (tmp_path / "tokenizer_config.json").unlink()
    assert io.load(tmp_path).roles.begin == "<|endoftext|>" and io.load(tmp_path).adds_begin
    sequence = [{"type": "ByteLevel"}, content["post_processor"]]
    content["post_processor"] = {"type": "Sequence", "processors": sequence}
    assert io.load(write(tmp_path, content)).adds_begin


def test_a_token_to_add_must_be_there(tokenizer: Tokenizer) -> None:
    for adds in ({"adds_begin": True}, {"adds_end": True}):
        with pytest.raises(BadInputError, match="tokens to texts, but none is named"):
            Tokenizer(
                tokenizer.vocabulary,
                tokenizer.merges,
                special_tokens=tokenizer.special_tokens,
                pattern="gpt2",
                roles=Roles(end=None, begin=None),
                **adds,
            )


@pytest.mark.parametrize(("path", "value", "reason"), BAD)
def test_a_wrong_file_is_refused_in_one_line_that_names_it(
    tmp_path: Path, content: dict[str, Any], path: str, value: object, reason: str
) -> None:
    set_in(content, path, value)
    with pytest.raises(BadInputError, match=reason) as caught:
        io.load(write(tmp_path, content))
    assert str(tmp_path / "tokenizer.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_merge_that_stands_twice_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    content["model"]["merges"].append(content["model"]["merges"][0])
    with pytest.raises(BadInputError, match="stands twice"):
        io.load(write(tmp_path, content))


def test_a_role_that_is_no_token_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="</s>"):
        io.load(write(tmp_path, content, {"eos_token": "</s>"}))


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\xfe\x00", b'{"model": ' + b"[" * 100_000, b"null"])
def test_junk_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(BadInputError, match=r"tokenizer\.json"):
        io.load(tmp_path)


def test_missing_and_oversized_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        io.load(tmp_path / "absent")
    monkeypatch.setattr(io, "MAX_FILE_BYTES", 1 << 20)
    (tmp_path / "tokenizer.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(BadInputError, match="larger than 1 MiB"):
        io.load(tmp_path)


def test_ranks_come_back(tmp_path: Path, tokenizer: Tokenizer) -> None:
    io.to_tiktoken_ranks(tokenizer, tmp_path / "ranks.tiktoken")
    loaded = io.from_tiktoken_ranks(
        tmp_path / "ranks.tiktoken", pattern="gpt2", special_tokens=tokenizer.special_tokens
    )
    assert loaded.fingerprint == tokenizer.fingerprint


def test_ranks_cannot_say_ids_out_of_order(tmp_path: Path) -> None:
    straight = from_merges([(0, 1), (2, 3)], pattern="gpt2", special_tokens=["<|endoftext|>"])
    merges = straight.merges[::-1]
    turned = Tokenizer(straight.vocabulary, merges, special_tokens=straight.special_tokens, pattern="gpt2")
    with pytest.raises(BadInputError, match=r"tokenizer\.json instead"):
        io.to_tiktoken_ranks(turned, tmp_path / "ranks")
    assert not (tmp_path / "ranks").exists()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("only-one-field", "701: not a base64"),
        ("!!!! 701", "701: not a base64"),
        ("YQ== seven", "701: not a base64"),
        ("IQ== 701", "701: the token stands twice"),
        ("eHl6enp5 701", "rank 701 cannot be made"),
        ("emE= 3", "share one id"),
    ],
)
def test_wrong_rank_files_are_refused(tmp_path: Path, tokenizer: Tokenizer, line: str, reason: str) -> None:
    path = tmp_path / "ranks"
    io.to_tiktoken_ranks(tokenizer, path)
    lines = path.read_text().splitlines()
    number = len(lines) + 1
    path.write_text("\n".join([*lines, line]))
    with pytest.raises(BadInputError, match=reason.replace("701:", f"{number}:")):
        io.from_tiktoken_ranks(path, pattern="gpt2", special_tokens={})
