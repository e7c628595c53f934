"""Tokenizers and chat templates, on the text of Python's own documentation and on characters from everywhere."""

import json
import tempfile
from functools import cache
from pathlib import Path
from pydoc_data import topics
from typing import Any

from llm_journey.parity.equality import Equality
from llm_journey.tokenizer import Tokenizer, TokenizerConfig, io
from llm_journey.tokenizer.chat_template import DEFAULT_TEMPLATE, render
from llm_journey.tokenizer.pretokenize import PATTERNS
from llm_journey.tokenizer.train import train_tokenizer
from llm_journey.tokenizer.wordpiece import WordPiece

TEXTS = [
    *(topics.topics[name] for name in sorted(topics.topics)),
    "Ünïcödé, naïve café; Straße, ΑΣ ΟΔΟΣ, עברית, العربية ١٢٣, हिन्दी, ไทย, 日本語テキスト、中文, 한국어,\n"
    "👩‍👩‍👧‍👦 🇫🇷 ½ Ⅻ",
    "def f(x):\n\tif x  >  1:\n\t\treturn\tx\r\n\r\n  # 12345 67_890\n\n\n   'S 's 'LL 'll 're'VE",
]
_SIZE = 2000
_MESSAGES = [
    {"role": "system", "content": "You are of help."},
    {"role": "user", "content": "Is 3 < 5 & 7 > 2?\n\n'Yes' or \"no\" — 日本"},
    {"role": "assistant", "content": "  Yes.  "},
    {"role": "user", "content": "Why?"},
]


@cache
def trained() -> Tokenizer:
    """A vocabulary of 2,000 tokens learned from the texts above."""
    return train_tokenizer(TEXTS, TokenizerConfig(vocab_size=_SIZE, pattern="gpt2"), processes=1)


def _merges(planted: bool) -> float:
    """How many merges differ from those of tokenizers' trainer, learned from the same text."""
    from tokenizers import Tokenizer as Peer
    from tokenizers import models, pre_tokenizers, trainers

    special = list(TokenizerConfig().special_tokens)
    peer: Any = Peer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZE, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    peer.train_from_iterator(TEXTS, trainer)
    model = json.loads(peer.to_str())["model"]
    ids, shift = model["vocab"], len(special)
    theirs = [(ids[left] - shift, ids[right] - shift) for left, right in model["merges"]]
    ours = trained().merges
    if planted:
        ours = [ours[1], ours[0], *ours[2:]]
    differing = sum(one != other for one, other in zip(ours, theirs, strict=False))
    return float(differing + abs(len(ours) - len(theirs)))


def _encoding(planted: bool) -> float:
    """How many texts our tokenizer.json encodes otherwise in tokenizers than in ours."""
    from tokenizers import Tokenizer as Peer

    with tempfile.TemporaryDirectory() as temporary:
        io.save(trained(), Path(temporary))
        peer: Any = Peer.from_file(str(Path(temporary) / "tokenizer.json"))
    texts = [text + "\u00a0" * planted for text in TEXTS]
    ours = trained().encode_batch(texts)
    return float(
        sum(ids != peer.encode(text, add_special_tokens=False).ids for ids, text in zip(ours, TEXTS, strict=True))
    )


def _ranks(planted: bool) -> float:
    """How many texts our rank file encodes otherwise in tiktoken than in ours."""
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "ranks.tiktoken"
        io.to_tiktoken_ranks(trained(), path)
        ranks = load_tiktoken_bpe(str(path))
    encoding = tiktoken.Encoding("ours", pat_str=PATTERNS["gpt2"].source, mergeable_ranks=ranks, special_tokens={})
    ours = trained().encode_batch([text + "." * planted for text in TEXTS])
    return float(sum(encoding.encode_ordinary(text) != ids for text, ids in zip(TEXTS, ours, strict=True)))


def _wordpiece(planted: bool) -> float:
    """How many texts get other ids than from BertTokenizerFast with the same vocabulary."""
    import transformers

    words = sorted({word for text in TEXTS[:40] for word in text.lower().split() if word.isalpha()})
    pieces = [f"##{word[cut:]}" for word in words for cut in (2, 3) if len(word) > cut]
    letters = [chr(code) for code in range(33, 127)]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys([*names, *words, *pieces]))}
    library: Any = transformers
    peer = library.BertTokenizerFast(vocab=dict(vocabulary))
    if planted:
        vocabulary["the"], vocabulary["in"] = vocabulary["in"], vocabulary["the"]
    ours = WordPiece(vocabulary)
    return float(
        sum(ours.encode(text, add_special=False) != peer.encode(text, add_special_tokens=False) for text in TEXTS)
    )


def _chat(planted: bool) -> float:
    """How many of four conversations render otherwise than by transformers' apply_chat_template."""
    import transformers

    library: Any = transformers
    with tempfile.TemporaryDirectory() as temporary:
        io.save(trained(), Path(temporary))
        peer = library.PreTrainedTokenizerFast(tokenizer_file=str(Path(temporary) / "tokenizer.json"))
    differing = 0
    for stop in range(1, len(_MESSAGES) + 1):
        messages = _MESSAGES[:stop]
        expected = peer.apply_chat_template(
            messages, chat_template=DEFAULT_TEMPLATE, tokenize=False, add_generation_prompt=True
        )
        found = render(DEFAULT_TEMPLATE, messages, add_generation_prompt=not planted)
        differing += found != expected
    return float(differing)


def _row(component: str, reference: str, compared: str, difference: Any) -> Equality:
    return Equality(
        component=component,
        reference=reference,
        compared=compared,
        tolerance=0.0,
        reason="id for id, byte for byte",
        difference=difference,
    )


EQUALITIES = (
    _row("byte-level BPE, training", "tokenizers", "how many merges differ, its BpeTrainer", _merges),
    _row("byte-level BPE, encoding", "tokenizers", "how many texts differ, our tokenizer.json", _encoding),
    _row("byte-level BPE, rank file", "tiktoken", "how many texts differ, our ranks", _ranks),
    _row("WordPiece", "transformers", "how many texts differ, BertTokenizerFast", _wordpiece),
    _row("chat templates", "transformers", "how many conversations differ, apply_chat_template", _chat),
)
