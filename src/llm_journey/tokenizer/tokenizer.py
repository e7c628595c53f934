"""The Tokenizer: text and bytes to ids and back. How ids are found is the core's business (cores); files are io's.

Text that merely looks like a special token is ordinary text unless the caller says otherwise, so that nobody can end
a document or open a chat turn from inside a message.
"""

import codecs
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import regex

from llm_journey.core.errors import BadInputError, unknown_name
from llm_journey.core.files import sha256_json
from llm_journey.core.lineage import usable_cores
from llm_journey.tokenizer.bpe import Pair
from llm_journey.tokenizer.byte_level import ID_TO_BYTE, NUM_BYTES
from llm_journey.tokenizer.config import END_TOKEN
from llm_journey.tokenizer.cores import build_core
from llm_journey.tokenizer.pretokenize import PATTERNS, split

# Bytes that a byte-level vocabulary may lack: none of ASCII's text, and not most of the others.
_MOST_MISSING = 64
# A batch goes to the threads in slices of about this many characters: large enough to forget what a hand-over costs.
_SLICE_CHARACTERS = 1 << 16
# Unicode's White_Space, as tokenizers understands it; str.isspace() counts four separators more.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Which special token ends a text, begins one, fills a row; None where the vocabulary has none for it."""

    end: str | None = END_TOKEN
    begin: str | None = END_TOKEN
    padding: str | None = END_TOKEN


_PARTS: tuple[str, ...] = (
    "vocabulary",
    "merges",
    "special_tokens",
    "pattern",
    "roles",
    "chat_template",
    "whole_words_first",
    "compose",
)
_PARTS += ("visible_tokens", "adds_begin", "adds_end", "takes_space")


class Tokenizer:
    """Byte-level BPE. Any string and any byte string round-trips: see `encode`, `encode_bytes`, `decode_bytes`.

    A vocabulary of other makers may lack bytes that its text had none of (SmolLM2's: 21, control characters and parts
    of rare or impossible characters). Such bytes are left out of a text, as tokenizers and llama.cpp leave them out.
    """

    def __init__(
        self,
        vocabulary: Mapping[bytes, int],
        merges: Sequence[Pair],
        *,
        special_tokens: Mapping[str, int],
        pattern: str,
        roles: Roles | None = None,
        chat_template: str | None = None,
        whole_words_first: bool = False,
        compose: bool = False,
        visible_tokens: Iterable[str] = (),
        adds_begin: bool = False,
        adds_end: bool = False,
        takes_space: Iterable[str] = (),
    ) -> None:
        """`vocabulary` holds the ordinary tokens, `merges` pairs of their ids, earliest first.

        `whole_words_first`: a word that is a token is taken as it is. `compose`: text is brought to Unicode's form NFC
        first (Qwen's files ask for it; such text does not round-trip). `visible_tokens` are those of `special_tokens`
        that belong to the text (`<think>`): only the others steer a chat. `adds_begin`, `adds_end`: whether a model of
        this tokenizer reads a text with the begin token before it, the end token behind it: see `frame`.
        `takes_space`: special tokens that stand for a word with the white space before it (a mask). Raises
        BadInputError where the parts contradict each other.
        """
        if pattern not in PATTERNS:
            raise unknown_name("split pattern", pattern, PATTERNS)
        _check(vocabulary, merges, special_tokens)
        self.vocabulary = dict(vocabulary)
        self.merges = list(merges)
        self.special_tokens = dict(special_tokens)
        self.pattern = pattern
        self.roles = roles if roles is not None else _default_roles(special_tokens)
        self.chat_template = chat_template
        self.whole_words_first = whole_words_first
        self.compose = compose
        self.visible_tokens = frozenset(visible_tokens)
        self.adds_begin, self.adds_end = adds_begin, adds_end
        self.takes_space = frozenset(takes_space)
        _check_frame(self.roles, adds_begin=adds_begin, adds_end=adds_end)
        self._missing = bytes(value for value in range(NUM_BYTES) if bytes([value]) not in vocabulary)
        self._bytes_of = {token: data for data, token in vocabulary.items()}
        self._bytes_of.update({token: name.encode() for name, token in special_tokens.items()})
        self._core = build_core(self.vocabulary, self.merges, pattern, whole_words_first=whole_words_first)
        # The longest first: where one special token begins another, the longer one is meant (as in tokenizers).
        names = sorted(special_tokens, key=len, reverse=True)
        self._special_pattern = regex.compile("|".join(map(regex.escape, names))) if names else None

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: the rows that an embedding needs."""
        return max(self._bytes_of) + 1

    @property
    def end_id(self) -> int:
        """The id that ends a document. Raises BadInputError where the vocabulary has none."""
        if self.roles.end is None:
            raise BadInputError("this tokenizer has no end token; name one as eos_token in tokenizer_config.json")
        return self.special_tokens[self.roles.end]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides about `encode`'s ids: equal fingerprints, equal ids."""
        return sha256_json(
            {
                "vocabulary": {data.hex(): token for data, token in self.vocabulary.items()},
                "merges": self.merges,
                "special_tokens": self.special_tokens,
                "pattern": self.pattern,
                "whole_words_first": self.whole_words_first,
                "compose": self.compose,
            }
        )

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of `text`. With `allow_special`, special tokens in it become their ids; else they are plain text.

        A lone surrogate is encoded as the three bytes that UTF-8 would give its number.
        """
        if not allow_special:
            return self._encode_ordinary(text)
        ids: list[int] = []
        for ordinary, special in self.split_special(text):
            ids += self._encode_ordinary(ordinary)
            if special is not None:
                ids.append(self.special_tokens[special])
        return ids

    def frame(self, ids: Sequence[int]) -> list[int]:
        """A text's ids as its model reads them: `encode` adds nothing, here is what stands before and behind.

        It is what transformers' `tokenizer(text)` and llama.cpp add. A rendered chat has its own; documents of a
        training set get theirs from the loader.
        """
        begin, end = self.roles.begin, self.roles.end
        before = [self.special_tokens[begin]] if self.adds_begin and begin is not None else []
        return [*before, *ids, *([self.special_tokens[end]] if self.adds_end and end is not None else [])]

    def split_special(self, text: str) -> Iterator[tuple[str, str | None]]:
        """`text` as pairs of ordinary text and the special token behind it (None at the end).

        White space before a token of `takes_space` is left out: it belongs to what the token stands for.
        """
        start = 0
        if self._special_pattern is not None:
            for match in self._special_pattern.finditer(text):
                ordinary, name = text[start : match.start()], match.group()
                yield ordinary.rstrip(WHITE_SPACE) if name in self.takes_space else ordinary, name
                start = match.end()
        yield text[start:], None

    def special_ends(self, text: str) -> list[int]:
        """Where each special token in `text` ends."""
        return [] if self._special_pattern is None else [match.end() for match in self._special_pattern.finditer(text)]

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """`encode` of each text, on all cores (the core works outside Python's lock)."""
        slices = _slices(texts)
        if len(slices) < 2:
            return [self.encode(text, allow_special=allow_special) for text in texts]
        with ThreadPoolExecutor(min(len(slices), usable_cores())) as pool:
            encoded = pool.map(lambda part: [self.encode(text, allow_special=allow_special) for text in part], slices)
            return [ids for part in encoded for ids in part]

    def encode_word(self, word: bytes) -> list[int]:
        """The ids of one pre-token, whatever text it was cut from; its bytes need not be UTF-8."""
        word = word.translate(None, self._missing)
        return self._core.encode_word(word) if word else []

    def changed(self, **parts: Any) -> "Tokenizer":
        """This tokenizer with some of the constructor's parts replaced."""
        own: dict[str, Any] = {name: getattr(self, name) for name in _PARTS}
        return Tokenizer(**own | parts)

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any byte string: as `encode` where it is UTF-8; stray bytes count as symbols, not as letters."""
        try:
            return self.encode(data.decode("utf-8"))
        except UnicodeDecodeError:
            return self._encode_words(data.decode("utf-8", "surrogateescape"), "surrogateescape")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that `ids` stand for. Raises BadInputError for an id outside the vocabulary."""
        try:
            return b"".join(map(self._bytes_of.__getitem__, ids))
        except KeyError as error:
            raise self._unknown(error.args[0]) from None

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of `ids`. Bytes that are no UTF-8 become U+FFFD; `errors="surrogatepass"` undoes lone surrogates."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of `ids` as it comes: each character as soon as all its bytes are there. Joined, it is `decode`."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in ids:
            text = decoder.decode(self.id_to_bytes(token))
            if text:
                yield text
        rest = decoder.decode(b"", final=True)
        if rest:
            yield rest

    def id_to_bytes(self, token: int) -> bytes:
        """The bytes of one token (a special token's name as UTF-8)."""
        try:
            return self._bytes_of[token]
        except KeyError:
            raise self._unknown(token) from None

    def _encode_ordinary(self, text: str) -> list[int]:
        if self.compose:
            text = unicodedata.normalize("NFC", text)
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError:
            return self._encode_words(text, "surrogatepass")
        if self._missing and len(data.translate(None, self._missing)) < len(data):
            return self._encode_words(text, "strict")
        return self._core.encode_text(text)

    def _encode_words(self, text: str, errors: str) -> list[int]:
        words = (word.encode("utf-8", errors).translate(None, self._missing) for word in split(text, self.pattern))
        return [token for word in words if word for token in self._core.encode_word(word)]

    def _unknown(self, token: object) -> BadInputError:
        return BadInputError(f"id {token!r} is not in this vocabulary of {self.vocab_size} tokens")


def from_merges(
    merges: Sequence[Pair],
    *,
    pattern: str,
    special_tokens: Sequence[str],
    chat_template: str | None = None,
    adds_begin: bool = False,
) -> Tokenizer:
    """The tokenizer that training makes: the bytes are 0..255, merge i is 256 + i, the special tokens come last."""
    spelled = [ID_TO_BYTE[index : index + 1] for index in range(NUM_BYTES)]
    for left, right in merges:
        spelled.append(spelled[left] + spelled[right])
    return Tokenizer(
        {data: token for token, data in enumerate(spelled)},
        merges,
        special_tokens={name: len(spelled) + index for index, name in enumerate(special_tokens)},
        pattern=pattern,
        chat_template=chat_template,
        adds_begin=adds_begin,
    )


def _check_frame(roles: Roles, *, adds_begin: bool, adds_end: bool) -> None:
    for adds, role, name in ((adds_begin, roles.begin, "begin"), (adds_end, roles.end, "end")):
        if adds and role is None:
            raise BadInputError(f"adds {name} tokens to texts, but none is named; name one in tokenizer_config.json")


def _check(vocabulary: Mapping[bytes, int], merges: Sequence[Pair], special_tokens: Mapping[str, int]) -> None:
    ids = [*vocabulary.values(), *special_tokens.values()]
    known = set(ids)
    if len(known) != len(ids):
        raise BadInputError("two tokens share one id; each token needs its own")
    if min(ids, default=0) < 0:
        raise BadInputError("a token has a negative id; ids start at 0")
    missing = sum(bytes([value]) not in vocabulary for value in range(NUM_BYTES))
    if missing > _MOST_MISSING or any(bytes([value]) not in vocabulary for value in b"\t\n" + bytes(range(0x20, 0x7F))):
        raise BadInputError(f"{missing} of the 256 bytes have no token; this is no byte-level vocabulary")
    if "" in special_tokens:
        raise BadInputError("a special token is empty")
    data_of = {token: data for data, token in vocabulary.items()}
    for number, (left, right) in enumerate(merges):
        if left not in data_of or right not in data_of:
            raise BadInputError(f"merge {number} joins a token that is not in the vocabulary")
        if data_of[left] + data_of[right] not in vocabulary:
            raise BadInputError(f"merge {number} makes a token that is not in the vocabulary")


def _default_roles(special_tokens: Mapping[str, int]) -> Roles:
    name = END_TOKEN if END_TOKEN in special_tokens else None
    return Roles(end=name, begin=name, padding=name)


def _slices(texts: Sequence[str]) -> list[list[str]]:
    slices: list[list[str]] = []
    room = 0
    for text in texts:
        if room <= 0:
            slices.append([])
            room = _SLICE_CHARACTERS
        slices[-1].append(text)
        room -= len(text)
    return slices
