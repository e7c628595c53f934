"""Tokenizers and chat templates, on the text of Python's own documentation and on characters from everywhere."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from pydoc_data import topics
from typing import Any

from llm_journey.compression.edge_tokenizer import Tokenizer as EdgeTokenizer
from llm_journey.parity.differences import num_differing
from llm_journey.parity.equality import Equality
from llm_journey.tokenizer import Tokenizer, TokenizerConfig, io
from llm_journey.tokenizer.byte_level import to_characters
from llm_journey.tokenizer.chat_template import encode_chat, render, render_chat
from llm_journey.tokenizer.pretokenize import PATTERNS, split
from llm_journey.tokenizer.train import train_tokenizer
from llm_journey.tokenizer.wordpiece import WordPiece

TEXTS = [
    *(topics.topics[name] for name in sorted(topics.topics)),
    "Ünïcödé, naïve café; Straße, ΑΣ ΟΔΟΣ, עברית, العربية ١٢٣, हिन्दी, ไทย, 日本語テキスト、中文, 한국어,\n"
    "👩‍👩‍👧‍👦 🇫🇷 ½ Ⅻ",
    "def f(x):\n\tif x  >  1:\n\t\treturn\tx\r\n\r\n  # 12345 67_890\n\n\n   'S 's 'LL 'll 're'VE",
]
MESSAGES = [
    {"role": "system", "content": "You are of help."},
    {"role": "user", "content": "Is 3 < 5 & 7 > 2?\n\n'Yes' or \"no\" — 日本"},
    {"role": "assistant", "content": "  Yes.  "},
    {"role": "user", "content": "Why?"},
]
# What templates in use do: a first message looked at, blocks on lines of their own, JSON, a clock, a namespace.
_TEMPLATE = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set state = namespace(system=messages[0]['content'] | trim) %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set state = namespace(system="none") %}
{%- endif %}
<<{{ state.system }}>>
{% for message in messages %}
    {% if message.role == 'user' %}
[INST] {{ message | tojson }} [/INST]
    {% else %}
{{ message['content'] | trim }}{{ eos_token }}
    {% endif %}
{% endfor %}
{%- if add_generation_prompt %}{{ strftime_now("%Y") }} {% endif %}
"""
_SIZE = 2000


@cache
def trained(pattern: Any = "gpt2") -> Tokenizer:
    """A vocabulary of 2,000 tokens learned from the texts above."""
    return train_tokenizer(TEXTS, TokenizerConfig(vocab_size=_SIZE, pattern=pattern), processes=1)


@contextmanager
def _saved(tokenizer: Tokenizer) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as temporary:
        io.save(tokenizer, Path(temporary))
        yield Path(temporary)


def published_pre_tokenizer(pattern: str) -> Any:
    """What tokenizers builds from the published form of a pattern."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if pattern == "gpt2":
        return ByteLevel(add_prefix_space=False)
    if pattern == "gpt2_digits":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    published = Split(Regex(PATTERNS[pattern].published), "isolated")
    return Sequence([published, ByteLevel(add_prefix_space=False, use_regex=False)])


def _splits(planted: bool, *, pattern: str) -> float:
    """How many texts are cut otherwise; the planted error joins the first two pieces of one."""
    peer = published_pre_tokenizer(pattern)
    ours = [[to_characters(word.encode()) for word in split(text, pattern)] for text in TEXTS]
    if planted:
        ours[0] = [ours[0][0] + ours[0][1], *ours[0][2:]]
    return num_differing(ours, ([word for word, _ in peer.pre_tokenize_str(text)] for text in TEXTS))


def _merges(planted: bool, *, pattern: str) -> float:
    """How many merges differ from those of tokenizers' trainer, learned from the same text."""
    from tokenizers import Tokenizer as Peer
    from tokenizers import models, pre_tokenizers, trainers

    special = list(TokenizerConfig().special_tokens)
    peer: Any = Peer(models.BPE())
    peer.pre_tokenizer = published_pre_tokenizer(pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    peer.train_from_iterator(TEXTS, trainer)
    model = json.loads(peer.to_str())["model"]
    ids, shift = model["vocab"], len(special)
    ours = trained(pattern).merges
    if planted:
        ours = [ours[1], ours[0], *ours[2:]]
    return num_differing(ours, [(ids[left] - shift, ids[right] - shift) for left, right in model["merges"]])


def _encoding(planted: bool, *, pattern: str) -> float:
    """How many texts our tokenizer.json encodes otherwise in tokenizers, or decodes to something else there."""
    from tokenizers import Tokenizer as Peer

    ours = trained(pattern)
    with _saved(ours) as folder:
        peer: Any = Peer.from_file(str(folder / "tokenizer.json"))
    found = ours.encode_batch([text + "\u00a0" * planted for text in TEXTS])
    expected = [peer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    return num_differing(found, expected) + num_differing(
        map(ours.decode, expected), (peer.decode(ids, skip_special_tokens=False) for ids in expected)
    )


def _edge(planted: bool, *, pattern: str) -> float:
    """How many texts the tokenizer of an edge folder, plain Python, encodes otherwise than tokenizers."""
    from tokenizers import Tokenizer as Peer

    with _saved(trained(pattern)) as folder:
        peer: Any = Peer.from_file(str(folder / "tokenizer.json"))
        mine = EdgeTokenizer(folder / "tokenizer.json")
    found = [mine.encode(text + "\u00a0" * planted) for text in TEXTS]
    return num_differing(found, [peer.encode(text, add_special_tokens=False).ids for text in TEXTS])


def _read(planted: bool) -> float:
    """A tokenizer.json that tokenizers trained and wrote, special tokens at both ends of it, read by us."""
    from tokenizers import Tokenizer as Peer
    from tokenizers import models, pre_tokenizers, trainers

    peer: Any = Peer(models.BPE())
    peer.pre_tokenizer = published_pre_tokenizer("cl100k")
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    peer.train_from_iterator(TEXTS[:30], trainer)
    peer.add_special_tokens(["<|later|>"])
    with tempfile.TemporaryDirectory() as temporary:
        peer.save(str(Path(temporary) / "tokenizer.json"))
        ours = io.load(Path(temporary))
    texts = [*TEXTS, "a<|later|> b<|endoftext|>"]
    found = [ours.encode(text, allow_special=not planted) for text in texts]
    return num_differing(found, (peer.encode(text, add_special_tokens=False).ids for text in texts))


def _lacking(planted: bool) -> float:
    """A vocabulary without five of the bytes (SmolLM2's lacks 21): what is left of texts that hold them."""
    from tokenizers import Tokenizer as Peer

    whole, lacking = trained(), (b"\x04", b"\x1d", b"\xc0", b"\xf1", b"\xff")
    kept = {data: token for data, token in whole.vocabulary.items() if data not in lacking}
    ours = Tokenizer(kept, whole.merges, special_tokens=whole.special_tokens, pattern="gpt2")
    with _saved(ours) as folder:
        peer: Any = Peer.from_file(str(folder / "tokenizer.json"))
    texts = ["the other one", "th\x04e other\x1d\x04 one", "\x04", " \x04 x", "\U00041234 of", "a\x1d.\x1d1"]
    found = [(whole if planted else ours).encode(text) for text in texts]
    return num_differing(found, (peer.encode(text, add_special_tokens=False).ids for text in texts))


def _folder(planted: bool) -> float:
    """Our folder in AutoTokenizer: ids of texts that name special tokens, and what it takes them back to."""
    from transformers import AutoTokenizer

    ours, opener = trained("cl100k"), AutoTokenizer
    with _saved(ours) as folder:
        peer: Any = opener.from_pretrained(folder, local_files_only=True)
    texts = [*TEXTS[:40], *TEXTS[-2:], "<|im_start|>user\nHi<|im_end|>\n"]
    found = [ours.encode(text, allow_special=not planted) for text in texts]
    expected = [peer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return num_differing(found, expected) + num_differing(map(ours.decode, found), map(peer.decode, expected))


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
    return num_differing(ours, map(encoding.encode_ordinary, TEXTS))


def words_and_pieces() -> dict[str, int]:
    """A WordPiece vocabulary of the words of some texts, and of their endings."""
    words = sorted({word for text in TEXTS[:40] for word in text.split() if word.isalpha()})
    words = [*words, *(word.lower() for word in words)]
    pieces = [f"##{word[cut:]}" for word in words for cut in (2, 3) if len(word) > cut]
    letters = [chr(code) for code in range(33, 127)]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return {name: number for number, name in enumerate(dict.fromkeys([*names, *words, *pieces]))}


def _wordpiece(planted: bool, *, lower_case: bool) -> float:
    """How many texts get other ids than in BertTokenizerFast, whose own files we open."""
    import transformers

    library: Any = transformers
    vocabulary = words_and_pieces()
    peer = library.BertTokenizerFast(vocab=dict(vocabulary), do_lower_case=lower_case)
    with tempfile.TemporaryDirectory() as temporary:
        peer.save_pretrained(temporary)
        ours = WordPiece.load(Path(temporary))
    texts = [text.replace("the", "in", 1) if planted else text for text in TEXTS]
    return num_differing(map(ours.encode, texts), (peer(text)["input_ids"] for text in TEXTS))


def _chat(planted: bool, *, template: str | None) -> float:
    """How many of four conversations render otherwise than by transformers' apply_chat_template."""
    from transformers import AutoTokenizer

    ours, opener = trained(), AutoTokenizer
    with _saved(ours) as folder:
        peer: Any = opener.from_pretrained(folder, local_files_only=True)
    conversations = [MESSAGES[:stop] for stop in range(1, len(MESSAGES) + 1)]
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, "chat_template": template}
    if template is None:
        found = [render_chat(ours, messages, add_generation_prompt=not planted) for messages in conversations]
    else:
        names = {"bos_token": ours.roles.begin, "eos_token": ours.roles.end}
        found = [
            render(template, messages, variables=names, add_generation_prompt=not planted) for messages in conversations
        ]
    return num_differing(found, (peer.apply_chat_template(messages, **options) for messages in conversations))


def _chat_ids(planted: bool) -> float:
    """How many of four conversations, by the folder's own template, become other ids in transformers."""
    from transformers import AutoTokenizer

    ours, opener = trained(), AutoTokenizer
    with _saved(ours) as folder:
        peer: Any = opener.from_pretrained(folder, local_files_only=True)
    conversations = [MESSAGES[:stop] for stop in range(1, len(MESSAGES) + 1)]
    found = [encode_chat(ours, messages, add_generation_prompt=not planted) for messages in conversations]
    expected = (
        list(peer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        for messages in conversations
    )
    return num_differing(found, expected)


def _row(component: str, reference: str, compared: str, difference: Callable[[bool], float]) -> Equality:
    return Equality(
        component=component,
        reference=reference,
        compared=compared,
        tolerance=0.0,
        reason="id for id, byte for byte",
        difference=difference,
    )


EQUALITIES = (
    *(
        _row(
            f"split pattern {pattern}",
            "tokenizers",
            "how many texts are cut otherwise, the published pattern",
            partial(_splits, pattern=pattern),
        )
        for pattern in PATTERNS
    ),
    *(
        row
        for pattern in ("gpt2", "cl100k")
        for row in (
            _row(
                f"byte-level BPE, training, {pattern}",
                "tokenizers",
                "how many merges differ, its BpeTrainer",
                partial(_merges, pattern=pattern),
            ),
            _row(
                f"byte-level BPE, encoding and decoding, {pattern}",
                "tokenizers",
                "how many texts differ, our tokenizer.json",
                partial(_encoding, pattern=pattern),
            ),
            _row(
                f"tokenizer of an edge folder, {pattern}",
                "tokenizers",
                "how many texts differ, our tokenizer.json",
                partial(_edge, pattern=pattern),
            ),
        )
    ),
    _row(
        "byte-level BPE, a file of other makers", "tokenizers", "how many texts differ, its own tokenizer.json", _read
    ),
    _row("byte-level BPE, bytes that a vocabulary lacks", "tokenizers", "how many texts differ", _lacking),
    _row("byte-level BPE, folder", "transformers", "how many texts differ, AutoTokenizer on our folder", _folder),
    _row("byte-level BPE, rank file", "tiktoken", "how many texts differ, our ranks", _ranks),
    *(
        _row(
            f"WordPiece, {name}",
            "transformers",
            "how many texts differ, BertTokenizerFast",
            partial(_wordpiece, lower_case=lower_case),
        )
        for name, lower_case in (("lower case", True), ("case kept", False))
    ),
    *(
        _row(
            f"chat template, {name}",
            "transformers",
            "how many conversations differ, apply_chat_template",
            partial(_chat, template=template),
        )
        for name, template in (("our own", None), ("with blocks, JSON and a clock", _TEMPLATE))
    ),
    _row("chat template, ids", "transformers", "how many conversations differ, our folder's own template", _chat_ids),
)
