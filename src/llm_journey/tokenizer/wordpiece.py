"""WordPiece encoding for BERT-family vocabularies; equal to transformers' BertTokenizerFast.

Basic tokenization (Devlin et al. 2019, their BasicTokenizer): control characters out, spaces around CJK characters,
accents off and lower case where the model is uncased, cuts at white space and around punctuation. Then each word
becomes the longest known pieces from the left (Wu et al. 2016, section 4.1); a word with an unknown rest becomes [UNK].

The Unicode tables in tokenizers are older than ours, so a few hundred marks and punctuation signs assigned since
Unicode 8 are classed differently there; the vocabularies of BERT models do not hold them.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import regex

from llm_journey.core.errors import BadInputError
from llm_journey.core.files import sha256_json
from llm_journey.tokenizer.io import CONFIG_FILE, MAX_FILE_BYTES, TOKENIZER_FILE, read_object

VOCABULARY_FILE = "vocab.txt"
_CONTINUES = "##"
_MAX_WORD_CHARACTERS = 100
_MAX_CACHED_WORDS = 200_000
# Words and single punctuation characters; ASCII symbols such as $ and ^ count as punctuation here.
_PUNCTUATION = r"\p{P}!-/:-@\[-`{-~"
_WORDS = regex.compile(rf"[^\s{_PUNCTUATION}]+|[{_PUNCTUATION}]")
# Control, format and private-use characters; those of them that are white space in a text stay.
_DROPPED = regex.compile(r"(?![\t\n\r])[\p{Cc}\p{Cf}\p{Co}\ufffd]")
_ACCENTS = regex.compile(r"\p{Mn}")
# The CJK blocks as tokenizers has them: it begins extension E at U+2B920, a hundred hex digits late.
_CJK = regex.compile(
    "([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f"
    "\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f])"
)


@dataclass(frozen=True, kw_only=True)
class WordPieceOptions:
    """How text is prepared; the defaults are bert-base-uncased's. `strip_accents` None: as `lower_case`."""

    lower_case: bool = True
    strip_accents: bool | None = None
    clean: bool = True
    space_cjk: bool = True
    unknown: str = "[UNK]"
    begin: str = "[CLS]"
    end: str = "[SEP]"
    padding: str = "[PAD]"


class WordPiece:
    """A WordPiece vocabulary and how text is prepared for it."""

    def __init__(self, vocabulary: Mapping[str, int], options: WordPieceOptions | None = None) -> None:
        """Raises BadInputError where a special token that `options` name is not in the vocabulary."""
        self.options = options = options or WordPieceOptions()
        self.vocabulary = dict(vocabulary)
        for name in (options.unknown, options.begin, options.end, options.padding):
            if name not in self.vocabulary:
                raise BadInputError(f"the vocabulary lacks {name}; this is no WordPiece vocabulary of a BERT model")
        self.special_tokens = {
            name: self.vocabulary[name]
            for name in (options.unknown, options.begin, options.end, options.padding, "[MASK]")
            if name in self.vocabulary
        }
        self._special_pattern = regex.compile("|".join(map(regex.escape, self.special_tokens)))
        self._names = {token: name for name, token in self.vocabulary.items()}
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def load(cls, path: Path) -> "WordPiece":
        """From a folder with `tokenizer.json` or `vocab.txt`, or from one of these files.

        Raises BadInputError that names the file and what is wrong with it.
        """
        if path.is_dir():
            file = path / TOKENIZER_FILE
            path = file if file.is_file() else path / VOCABULARY_FILE
        try:
            if path.suffix == ".json":
                return cls(*_from_huggingface(read_object(path)))
            config = path.parent / CONFIG_FILE
            return cls(_read_vocabulary(path), _options(read_object(config) if config.is_file() else {}))
        except BadInputError as error:
            message = str(error)
            raise BadInputError(message if message.startswith(str(path)) else f"{path}: {message}") from None

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._names) + 1

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides about ids: equal fingerprints, equal ids."""
        return sha256_json({"vocabulary": self.vocabulary, "options": asdict(self.options)})

    def id_to_piece(self, token: int) -> str:
        """One piece as the vocabulary spells it: what continues a word begins with ##."""
        try:
            return self._names[token]
        except KeyError:
            raise BadInputError(f"id {token!r} is not in this vocabulary of {self.vocab_size} tokens") from None

    def encode(self, text: str, *, add_special: bool = True, allow_special: bool = False) -> list[int]:
        """The ids of `text`, between [CLS] and [SEP] where `add_special`.

        With `allow_special`, special tokens in the text become their ids (transformers' default); else they are text.
        """
        ids = [self.vocabulary[self.options.begin]] if add_special else []
        start = 0
        for match in self._special_pattern.finditer(text) if allow_special else ():
            ids += self._encode_ordinary(text[start : match.start()])
            ids.append(self.special_tokens[match.group()])
            start = match.end()
        ids += self._encode_ordinary(text[start:])
        return [*ids, self.vocabulary[self.options.end]] if add_special else ids

    def encode_batch(self, texts: Sequence[str], *, add_special: bool = True) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text, add_special=add_special) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The pieces of `ids` as text, without special tokens; what preparation took away does not come back."""
        special = set(self.special_tokens.values())
        try:
            names = [self._names[token] for token in ids if token not in special]
        except KeyError as error:
            raise BadInputError(f"id {error.args[0]!r} is not in this vocabulary of {self.vocab_size} tokens") from None
        return " ".join(names).replace(f" {_CONTINUES}", "")

    def words(self, text: str) -> list[str]:
        """`text` prepared and cut into words and punctuation characters."""
        options = self.options
        if options.clean:
            text = _DROPPED.sub("", text)
        if options.space_cjk:
            text = _CJK.sub(r" \1 ", text)
        if options.lower_case if options.strip_accents is None else options.strip_accents:
            text = _ACCENTS.sub("", unicodedata.normalize("NFD", text))
        if options.lower_case:
            # Character by character: no final sigma, as in tokenizers.
            text = "".join(map(str.lower, text))
        found: list[str] = _WORDS.findall(text)
        return found

    def _encode_ordinary(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in self.words(text):
            pieces = self._cache.get(word)
            if pieces is None:
                if len(self._cache) >= _MAX_CACHED_WORDS:
                    self._cache.clear()
                pieces = self._cache[word] = self._pieces(word)
            ids += pieces
        return ids

    def _pieces(self, word: str) -> list[int]:
        unknown = [self.vocabulary[self.options.unknown]]
        if len(word) > _MAX_WORD_CHARACTERS:
            return unknown
        ids = []
        start = 0
        while start < len(word):
            prefix = _CONTINUES if start else ""
            for end in range(len(word), start, -1):
                token = self.vocabulary.get(prefix + word[start:end])
                if token is not None:
                    ids.append(token)
                    start = end
                    break
            else:
                return unknown
        return ids


def is_wordpiece(path: Path) -> bool:
    """Whether a folder's tokenizer.json, or this file, is a WordPiece vocabulary; False where there is none."""
    file = path / TOKENIZER_FILE if path.is_dir() else path
    model = read_object(file).get("model") if file.is_file() else None
    return isinstance(model, dict) and model.get("type", "WordPiece") == "WordPiece" and "merges" not in model


def _read_vocabulary(path: Path) -> dict[str, int]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BadInputError(f"larger than {MAX_FILE_BYTES >> 20} MiB; this is no vocabulary")
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise BadInputError("no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"cannot be read as a vocabulary ({error})") from None
    if lines and not lines[-1]:
        lines.pop()
    vocabulary = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    if len(vocabulary) != len(lines):
        raise BadInputError("a token stands twice")
    return vocabulary


def _options(config: Mapping[str, Any]) -> WordPieceOptions:
    strip = config.get("strip_accents")
    return WordPieceOptions(
        lower_case=bool(config.get("do_lower_case", True)),
        strip_accents=None if strip is None else bool(strip),
        space_cjk=bool(config.get("tokenize_chinese_chars", True)),
    )


def _from_huggingface(data: Mapping[str, Any]) -> tuple[dict[str, int], WordPieceOptions]:
    model, normalizer = data.get("model"), data.get("normalizer")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(vocabulary, dict):
        raise BadInputError("key 'model' with its 'vocab' is missing; this is no tokenizer.json")
    # Older files leave the type out; only WordPiece has a prefix for what continues a word and no merges.
    if model.get("type", "WordPiece") != "WordPiece" or "merges" in model:
        raise BadInputError("not a WordPiece vocabulary")
    if (
        model.get("continuing_subword_prefix", _CONTINUES) != _CONTINUES
        or model.get("max_input_chars_per_word", _MAX_WORD_CHARACTERS) != _MAX_WORD_CHARACTERS
        or not isinstance(normalizer, dict)
        or normalizer.get("type") != "BertNormalizer"
    ):
        raise BadInputError("a WordPiece file, but not with BERT's rules, which are the supported ones")
    ids = vocabulary.values()
    if not all(type(token) is int and token >= 0 for token in ids) or len(set(ids)) != len(vocabulary):
        raise BadInputError("two tokens share one id, or an id is no whole number from 0 on")
    strip = normalizer.get("strip_accents")
    return vocabulary, WordPieceOptions(
        lower_case=bool(normalizer.get("lowercase", True)),
        strip_accents=None if strip is None else bool(strip),
        clean=bool(normalizer.get("clean_text", True)),
        space_cjk=bool(normalizer.get("handle_chinese_chars", True)),
        unknown=str(model.get("unk_token", "[UNK]")),
    )
