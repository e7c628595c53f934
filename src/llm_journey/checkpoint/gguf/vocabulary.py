"""The tokenizer inside a GGUF file, both ways: `tokenizer.ggml.*` and `tokenizer.chat_template`.

Byte-level BPE only (llama.cpp's model "gpt2"). A split pattern is not stored but named (`tokenizer.ggml.pre`); the
names are llama.cpp's, and each stands for a pattern compiled into it. What GGUF has no key for: that text is brought
to form NFC first. We write one of our own; without it Qwen's files, which ask for it, are taken to do so. llama.cpp
itself does not do it, which a certificate says (app.exports).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.bpe import Pair
from llm_journey.tokenizer.byte_level import from_characters, to_characters
from llm_journey.tokenizer.chat_template import TURN_TOKENS
from llm_journey.tokenizer.tokenizer import Roles

# Kinds of token (llama.h, llama_token_type): control tokens steer, user-defined ones are text that is never split.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_MAX_TOKENS = 300_000  # published vocabularies reach 262,144
_SPECIAL = (UNKNOWN, CONTROL, USER_DEFINED)
# tokenizer.ggml.pre -> (our pattern, whether a word that is a token is taken as it is). The first name of each pair
# is the one written. llama-vocab.cpp, in which several names share one pattern.
_PRE: dict[str, tuple[str, bool]] = {
    "gpt-2": ("gpt2", False),
    "phi-2": ("gpt2", False),
    "mpt": ("gpt2", False),
    "olmo": ("gpt2", False),
    "smollm": ("gpt2_digits", False),
    "starcoder": ("gpt2_digits", False),
    "refact": ("gpt2_digits", False),
    "command-r": ("gpt2_digits", False),
    "qwen2": ("qwen2", False),
    "deepseek-r1-qwen": ("qwen2", False),
    "dbrx": ("cl100k", False),
    "smaug-bpe": ("cl100k", False),
    "llama-bpe": ("cl100k", True),
    "llama3": ("cl100k", True),
    "llama-v3": ("cl100k", True),
}
_COMPOSING = "qwen2"
_COMPOSE_KEY = "llm_journey.tokenizer.compose"


def write_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The metadata of `tokenizer` for a model that embeds `vocab_size` ids; ids without a token become unused ones.

    Raises BadInputError where llama.cpp cannot do what the tokenizer does.
    """
    if tokenizer.vocab_size > vocab_size:
        raise BadInputError(f"the tokenizer has {tokenizer.vocab_size} ids, the model embeds only {vocab_size}")
    if tokenizer.roles.end is None:
        raise BadInputError("this tokenizer names no end token; llama.cpp would take the token of id 11 for it")
    asked = (tokenizer.pattern, tokenizer.whole_words_first)
    pre = next((name for name, kind in _PRE.items() if kind == asked), None)
    if pre is None:
        raise BadInputError(
            f"llama.cpp has no pre-tokenizer for the pattern {tokenizer.pattern!r}"
            + (" with whole words first" if tokenizer.whole_words_first else "")
        )
    tokens = [f"[PAD{token}]" for token in range(vocab_size)]
    types = np.full(vocab_size, UNUSED, dtype=np.int32)
    for data, token in tokenizer.vocabulary.items():
        tokens[token], types[token] = to_characters(data), NORMAL
    for name, token in tokenizer.special_tokens.items():
        tokens[token], types[token] = name, USER_DEFINED if name in tokenizer.visible_tokens else CONTROL
    spelled = {token: to_characters(data) for data, token in tokenizer.vocabulary.items()}
    values: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [f"{spelled[left]} {spelled[right]}" for left, right in tokenizer.merges],
        **_role_ids(tokenizer),
        _COMPOSE_KEY: tokenizer.compose,
        "tokenizer.ggml.add_bos_token": tokenizer.adds_begin,
        "tokenizer.ggml.add_eos_token": tokenizer.adds_end,
    }
    if tokenizer.chat_template is not None:
        values["tokenizer.chat_template"] = tokenizer.chat_template
    return values


def read_vocabulary(metadata: Mapping[str, Any], vocab_size: int, where: str) -> Tokenizer:
    """The tokenizer of a file whose model embeds `vocab_size` ids. Raises BadInputError naming `where` and the key."""
    reader = _Reader(metadata, where)
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise reader.error("model", f"is {str(model)[:40]!r}; only byte-level BPE ('gpt2') is supported")
    pre = metadata.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in _PRE:
        raise reader.error("pre", f"is {str(pre)[:40]!r}; known split patterns: {', '.join(_PRE)}")
    tokens, types = reader.texts("tokens"), reader.token_types()
    if len(tokens) > _MAX_TOKENS:
        raise reader.error("tokens", f"lists {len(tokens)} tokens; at most {_MAX_TOKENS} can be")
    if len(tokens) != vocab_size:
        raise reader.error("tokens", f"lists {len(tokens)} tokens, the model embeds {vocab_size}: they do not belong")
    pattern, whole_words_first = _PRE[pre]
    roles = reader.roles(tokens)
    special_tokens, visible_tokens = _special(tokens, types, roles, reader)
    vocabulary = _ordinary(tokens, types, special_tokens, reader)
    template = metadata.get("tokenizer.chat_template")
    try:
        return Tokenizer(
            vocabulary,
            _merges(reader.texts("merges"), vocabulary),
            special_tokens=special_tokens,
            pattern=pattern,
            roles=roles,
            chat_template=template if isinstance(template, str) else None,
            whole_words_first=whole_words_first,
            compose=reader.flag(_COMPOSE_KEY, default=pattern == _COMPOSING),
            visible_tokens=visible_tokens,
            # llama.cpp's own answers where a file leaves it open (llama-vocab.cpp, llm_load_vocab).
            adds_begin=reader.flag(
                "tokenizer.ggml.add_bos_token", default=whole_words_first and roles.begin is not None
            ),
            adds_end=reader.flag("tokenizer.ggml.add_eos_token", default=False),
        )
    except BadInputError as error:
        raise BadInputError(f"{where}: its tokenizer: {error}") from None


class _Reader:
    """Access to the keys behind `tokenizer.ggml.`; errors name the file and the key."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self._metadata, self._where = metadata, where

    def error(self, key: str, what: str) -> BadInputError:
        """The error for something wrong with a key."""
        return BadInputError(f"{self._where}: key 'tokenizer.ggml.{key}' {what}")

    def texts(self, key: str) -> list[str]:
        """A list of texts."""
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, list):
            raise self.error(key, "is missing or no list of texts")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """Yes or no; by the whole key."""
        value = self._metadata.get(key, default)
        if not isinstance(value, bool):
            raise BadInputError(f"{self._where}: key '{key}' is {str(value)[:40]}; true or false are allowed")
        return value

    def token_types(self) -> list[int]:
        """The kind of each token."""
        value = self._metadata.get("tokenizer.ggml.token_type")
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            raise self.error("token_type", "is missing or no list of whole numbers")
        if len(value) != len(self.texts("tokens")):
            raise self.error("token_type", f"has {len(value)} entries for {len(self.texts('tokens'))} tokens")
        found: list[int] = value.tolist()
        return found

    def roles(self, tokens: Sequence[str]) -> Roles:
        """The tokens that end, begin and pad a text, by their ids."""
        return Roles(
            end=self._role("eos", tokens), begin=self._role("bos", tokens), padding=self._role("padding", tokens)
        )

    def _role(self, name: str, tokens: Sequence[str]) -> str | None:
        key = f"{name}_token_id"
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(tokens):
            raise self.error(key, f"is {str(value)[:40]}; the tokens' ids are 0 to {len(tokens) - 1}")
        return tokens[value]


def _special(
    tokens: Sequence[str], types: Sequence[int], roles: Roles, reader: _Reader
) -> tuple[dict[str, int], list[str]]:
    """Special tokens with their ids, and those of them that belong to the text. Roles are special, whatever is said."""
    named = {name for name in (roles.end, roles.begin, roles.padding) if name is not None}
    special: dict[str, int] = {}
    visible = []
    for token, (name, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind not in _SPECIAL and name not in named:
            continue
        if name in special:
            raise reader.error("tokens", f"lists the special token {name[:40]!r} twice")
        special[name] = token
        if kind == USER_DEFINED:
            visible.append(name)
    return special, visible


def _ordinary(
    tokens: Sequence[str], types: Sequence[int], special: Mapping[str, int], reader: _Reader
) -> dict[bytes, int]:
    vocabulary: dict[bytes, int] = {}
    for token, (name, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == UNUSED or special.get(name) == token:
            continue
        try:
            data = from_characters(name)
        except KeyError:
            raise reader.error("tokens", f"spells {name[:40]!r} outside the byte alphabet; not byte-level") from None
        if data in vocabulary or name in special:
            raise reader.error("tokens", f"lists {name[:40]!r} twice")
        vocabulary[data] = token
    return vocabulary


def _merges(entries: Sequence[str], vocabulary: Mapping[bytes, int]) -> list[Pair]:
    merges = []
    for number, entry in enumerate(entries):
        left, _, right = entry.partition(" ")
        try:
            merges.append((vocabulary[from_characters(left)], vocabulary[from_characters(right)]))
        except KeyError:
            raise BadInputError(f"merge {number} is no pair of tokens: {entry[:60]!r}") from None
    if len(set(merges)) != len(merges):
        raise BadInputError("a merge stands twice")
    return merges


def _role_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of the roles; the token that ends a chat's turn where the vocabulary has ours."""
    roles = tokenizer.roles
    named = {"bos": roles.begin, "eos": roles.end, "padding": roles.padding}
    if TURN_TOKENS[1] in tokenizer.special_tokens:
        named["eot"] = TURN_TOKENS[1]
    return {
        f"tokenizer.ggml.{key}_token_id": tokenizer.special_tokens[name]
        for key, name in named.items()
        if name is not None
    }
