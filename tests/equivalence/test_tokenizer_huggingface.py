"""Our tokenizer against Hugging Face's and tiktoken's: the same splits, merges, ids, files."""

import json
import sys
import unicodedata
from functools import cache
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from llm_journey.tokenizer import Tokenizer, TokenizerConfig, io
from llm_journey.tokenizer.byte_level import ID_TO_BYTE, to_characters
from llm_journey.tokenizer.chat_template import render_chat
from llm_journey.tokenizer.pretokenize import PATTERNS, split
from llm_journey.tokenizer.tokenizer import Roles
from llm_journey.tokenizer.train import train_tokenizer

TEXTS = [topics.topics[name] for name in sorted(topics.topics)]
# Other languages, marks, emoji, every kind of white space: what English text does not try.
FOREIGN = [
    "Ünïcödé, naïve café; Straße ẞ İstanbul ſtand",
    "Русский текст и українська мова, ΑΣ ΟΔΟΣ, עברית, العربية ١٢٣, हिन्दी १२, ไทย, 日本語テキスト、中文, 한국어",
    "👩‍👩‍👧‍👦 🇫🇷 e\u0301 a\u0308\u0301 ½ Ⅻ ²³ \u200b\u200d\ufeff \x00\x01\x1c\x1f\x85\xa0\u2003\u2028\u3000 x",
    "def f(x):\n\tif x  >  1:\n\t\treturn\tx\r\n\r\n  # 12345 67_890\n\n\n   'S 's 'LL 'll 're'VE 'ſ ''d",
]
# Characters assigned in this Python's Unicode version: later ones are classed by each engine's own tables.
TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=("Cs", "Cn")),
        st.sampled_from("aB ét\n\r\t'sſdLl1٣½.,!-_\x1c\x85\xa0\u2028\u3000\u0301"),
    ),
    max_size=40,
)


@cache
def trained(pattern: str) -> Tokenizer:
    return train_tokenizer(TEXTS, TokenizerConfig(vocab_size=2000, pattern=pattern), processes=1)  # type: ignore[arg-type]


@cache
def opened(pattern: str, directory: Path) -> tokenizers.Tokenizer:
    io.save(trained(pattern), directory)
    return tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.fixture(scope="module", params=["gpt2", "cl100k"])
def pattern(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pre_tokenizer(pattern: str) -> Any:
    """The pre-tokenizer that Hugging Face builds from the published form of a pattern."""
    if pattern == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern == "gpt2_digits":
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    expression = tokenizers.Regex(PATTERNS[pattern].published)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(expression, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def tiktoken_splits(text: str, expression: str) -> list[str]:
    """Where tiktoken's engine cuts: a vocabulary of all substrings makes each pre-token one token."""
    data = text.encode()
    ranks = {bytes([byte]): index for index, byte in enumerate(ID_TO_BYTE)}
    for start in range(len(data)):
        for end in range(start + 2, len(data) + 1):
            ranks.setdefault(data[start:end], len(ranks))
    encoding = tiktoken.Encoding("all", pat_str=expression, mergeable_ranks=ranks, special_tokens={})
    return [encoding.decode_single_token_bytes(token).decode() for token in encoding.encode_ordinary(text)]


@pytest.mark.parametrize("name", sorted(PATTERNS))
@given(text=TEXT)
@settings(max_examples=200, deadline=None)
def test_splits_equal_hugging_faces_on_the_published_pattern(name: str, text: str) -> None:
    expected = [word for word, _ in pre_tokenizer(name).pre_tokenize_str(text)]
    assert [to_characters(word.encode()) for word in split(text, name)] == expected


@pytest.mark.parametrize("name", sorted(PATTERNS))
@pytest.mark.parametrize("text", [*FOREIGN, *TEXTS[:8]])
def test_splits_equal_hugging_faces_on_real_text(name: str, text: str) -> None:
    expected = [word for word, _ in pre_tokenizer(name).pre_tokenize_str(text)]
    assert [to_characters(word.encode()) for word in split(text, name)] == expected


@pytest.mark.parametrize("name", sorted(PATTERNS))
@given(text=TEXT)
@settings(max_examples=100, deadline=None)
def test_splits_equal_tiktokens(name: str, text: str) -> None:
    assert split(text, name) == tiktoken_splits(text, PATTERNS[name].source)


@given(text=TEXT)
@settings(max_examples=100, deadline=None)
def test_gpt2_splits_equal_tiktokens_own_spelling(text: str) -> None:
    own = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
    assert split(text, "gpt2") == tiktoken_splits(text, own)


@pytest.mark.parametrize("category", [r"\s", r"\p{L}", r"\p{N}"])
def test_the_engines_class_every_assigned_character_alike(category: str) -> None:
    import regex

    characters = [
        chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) not in ("Cn", "Cs")
    ]
    text = "".join(characters)
    ours = regex.sub(category, "", text)
    removed = pre_tokenizers.Split(tokenizers.Regex(category), "removed").pre_tokenize_str(text)
    assert "".join(word for word, _ in removed) == ours
    ranks = {bytes([byte]): index for index, byte in enumerate(ID_TO_BYTE)}
    # tiktoken drops what its pattern does not match.
    encoding = tiktoken.Encoding("bytes", pat_str=category, mergeable_ranks=ranks, special_tokens={})
    assert encoding.decode(encoding.encode_ordinary(text)) == "".join(regex.findall(category, text))


def test_merges_equal_hugging_faces_trainer(pattern: str) -> None:
    peer = tokenizers.Tokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizer(pattern)
    special = list(TokenizerConfig().special_tokens)
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    peer.train_from_iterator(TEXTS, trainer)
    model = json.loads(peer.to_str())["model"]
    ids = model["vocab"]
    assert [(ids[left] - 3, ids[right] - 3) for left, right in model["merges"]] == trained(pattern).merges


@pytest.mark.parametrize("text", [*FOREIGN, *TEXTS])
def test_saved_files_encode_alike_in_tokenizers(
    pattern: str, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    peer = opened(pattern, tmp_path_factory.getbasetemp() / pattern)
    assert peer.encode(text, add_special_tokens=False).ids == trained(pattern).encode(text, allow_special=True)


@given(text=TEXT)
@settings(max_examples=200, deadline=None)
def test_any_text_encodes_alike_in_tokenizers(
    pattern: str, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    peer = opened(pattern, tmp_path_factory.getbasetemp() / pattern)
    ids = peer.encode(text, add_special_tokens=False).ids
    assert ids == trained(pattern).encode(text, allow_special=True)
    assert peer.decode(ids, skip_special_tokens=False) == trained(pattern).decode(ids) == text


def test_saved_files_open_in_transformers(pattern: str, tmp_path: Path) -> None:
    import transformers

    ours = trained(pattern)
    io.save(ours, tmp_path)
    for peer in (
        transformers.AutoTokenizer.from_pretrained(tmp_path),
        transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path),
    ):
        assert len(peer) == ours.vocab_size
        assert peer.eos_token_id == peer.bos_token_id == peer.pad_token_id == ours.end_id
        for text in [*FOREIGN, TEXTS[0], "<|im_start|>user\nHi<|im_end|>\n"]:
            ids = ours.encode(text, allow_special=True)
            assert peer(text, add_special_tokens=False)["input_ids"] == ids
            assert peer(text)["input_ids"] == ours.frame(ids) == [ours.end_id, *ids]
            assert peer.decode(ids) == ours.decode(ids) == text
        added = {token.content: token.special for token in peer.added_tokens_decoder.values()}
        assert added == dict.fromkeys(ours.special_tokens, True)
        assert peer.decode(ours.encode("a<|im_end|>b", allow_special=True), skip_special_tokens=True) == "ab"
        messages = [{"role": "user", "content": "Hi"}]
        expected = peer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert render_chat(ours, messages, add_generation_prompt=True) == expected


@pytest.mark.parametrize("special_first", [True, False])
def test_files_written_by_hugging_face_load_here(pattern: str, special_first: bool, tmp_path: Path) -> None:
    peer = tokenizers.Tokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizer(pattern)
    special = ["<|endoftext|>", "<unused>"] if special_first else []
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    peer.train_from_iterator(TEXTS[:30], trainer)
    peer.add_special_tokens(["<|endoftext|>", "<|later|>"])
    peer.add_tokens(["<think>"])
    peer.save(str(tmp_path / "tokenizer.json"))
    ours = io.load(tmp_path)
    assert ours.vocab_size == peer.get_vocab_size()
    assert ours.visible_tokens == {"<think>"}
    for text in [*FOREIGN, TEXTS[40], "a<|later|> b<think><|endoftext|>"]:
        assert ours.encode(text, allow_special=True) == peer.encode(text).ids
    assert all(ours.id_to_bytes(token) == name.encode() for name, token in ours.special_tokens.items())


@pytest.mark.parametrize("end", ["<|endoftext|>", "<|im_end|>"])
@pytest.mark.parametrize("adds", [(False, False), (True, False), (False, True), (True, True)])
def test_what_stands_around_a_text(adds: tuple[bool, bool], end: str, tmp_path: Path) -> None:
    """tokenizers adds the same, to one text and to a pair of them."""
    base = trained("gpt2")
    ours = Tokenizer(
        base.vocabulary,
        base.merges,
        special_tokens=base.special_tokens,
        pattern="gpt2",
        roles=Roles(end=end, begin="<|endoftext|>"),
        adds_begin=adds[0],
        adds_end=adds[1],
    )
    io.save(ours, tmp_path)
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    first, second = (ours.frame(ours.encode(text)) for text in ("a mill", "a river"))
    assert peer.encode("a mill").ids == first
    assert peer.encode("a mill", "a river").ids == first + second
    assert len(first) == len(ours.encode("a mill")) + sum(adds)
    loaded = io.load(tmp_path)
    assert (loaded.adds_begin, loaded.adds_end, loaded.roles) == (*adds, ours.roles)


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("processor", ["none", "byte-level", "template"])
def test_the_post_processor_alone_decides(processor: str, said: bool, tmp_path: Path) -> None:
    """transformers 5 overlooks add_bos_token where there is a tokenizer.json, and so do we; older folders of ours say
    nothing, which means that nothing is added."""
    import transformers

    io.save(trained("gpt2"), tmp_path)
    for name, change in (("tokenizer.json", {"post_processor": None}), ("tokenizer_config.json", {})):
        content = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        if name == "tokenizer_config.json":
            change = {"add_bos_token": said}
        elif processor == "template":
            change = {}
        elif processor == "byte-level":
            change = {"post_processor": {"type": "ByteLevel", "trim_offsets": True}}
            change["post_processor"] |= {"add_prefix_space": False, "use_regex": True}
        (tmp_path / name).write_text(json.dumps(content | change), encoding="utf-8")
    ours = io.load(tmp_path)
    peer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert peer("a mill")["input_ids"] == ours.frame(ours.encode("a mill"))
    assert ours.adds_begin == (processor == "template")


def test_ranks_open_in_tiktoken(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiktoken.load import load_tiktoken_bpe

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    ours = trained(pattern)
    io.to_tiktoken_ranks(ours, tmp_path / "ranks.tiktoken")
    ranks = load_tiktoken_bpe(str(tmp_path / "ranks.tiktoken"))
    encoding = tiktoken.Encoding(
        "ours", pat_str=PATTERNS[pattern].source, mergeable_ranks=ranks, special_tokens=ours.special_tokens
    )
    for text in [*FOREIGN, *TEXTS[:5], "<|im_start|>user"]:
        assert encoding.encode(text, allowed_special="all") == ours.encode(text, allow_special=True)
        assert encoding.encode(text, disallowed_special=()) == ours.encode(text)
    loaded = io.from_tiktoken_ranks(tmp_path / "ranks.tiktoken", pattern=pattern, special_tokens=ours.special_tokens)
    assert loaded.merges == ours.merges


def test_bytes_that_a_vocabulary_lacks(tmp_path: Path) -> None:
    """They are left out, and what stood around them comes together, as in tokenizers (SmolLM2's file lacks 21)."""
    whole, lacking = trained("gpt2"), (0x04, 0x1D, 0xC0, 0xF1, 0xFF)
    kept = {data: token for data, token in whole.vocabulary.items() if not (len(data) == 1 and data[0] in lacking)}
    ours = Tokenizer(kept, whole.merges, special_tokens=whole.special_tokens, pattern="gpt2")
    io.save(ours, tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (
        "the other one",
        "th\x04e other\x1d\x04 one",
        "\x04",
        " \x04 x",
        "\U00041234 of \U00052345",
        "a\x1d.\x1d1",
    ):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text
    assert ours.decode(ours.encode("th\x04e")) == "the"
    assert ours.decode_bytes(ours.encode_bytes(b"th\xffe \xc0")) == b"the "
    assert io.load(tmp_path).encode("th\x04e") == ours.encode("th") + ours.encode("e")
