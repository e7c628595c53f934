"""Text side of a published Marian model: two SentencePiece models, one vocabulary, as transformers' MarianTokenizer.

    source.spm, target.spm    how text is cut into pieces, and pieces are joined to text (Kudo and Richardson 2018)
    vocab.json                the id of each piece, the same for both sides
    tokenizer_config.json     the names of the special tokens, where they are not the usual ones

Pieces are cut by the package sentencepiece (`llm-journey[marian]`), which is imported only when text goes in or out:
what a folder is made of can be read without it. Left out: vocabularies of their own for the target side, sampling
several segmentations of one text, and the punctuation that the Moses scripts would change.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.core.files import sha256_json
from llm_journey.tokenizer.io import CONFIG_FILE, read_object

SOURCE_FILE, TARGET_FILE, VOCABULARY_FILE = "source.spm", "target.spm", "vocab.json"
_NAMES = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
_MAX_MODEL_BYTES = 64 << 20  # the largest published ones have 1 MB
_SPACE = "\u2581"  # what SentencePiece writes for the space before a word


class MarianPieces:
    """Source text to ids, target ids to text."""

    def __init__(self, vocabulary: Mapping[str, int], folder: Path, names: Mapping[str, str] = _NAMES) -> None:
        """names: of the special tokens, by transformers' keys. Raises BadInputError where one has no id."""
        self.vocabulary, self.folder = dict(vocabulary), folder
        self._names = {token: piece for piece, token in vocabulary.items()}
        if len(self._names) != len(vocabulary):
            raise BadInputError("two pieces share one id; each piece needs its own")
        for key, name in names.items():
            if name not in vocabulary:
                raise BadInputError(f"the vocabulary lacks {name!r}, which {CONFIG_FILE} names as {key}")
        self.special_tokens = {name: vocabulary[name] for name in names.values()}
        self._unknown_id, self.end_id, self.padding_id = (vocabulary[names[key]] for key in _NAMES)

    @classmethod
    def load(cls, folder: Path) -> "MarianPieces":
        """Of a folder. Raises BadInputError that names the file and what is wrong with it."""
        file = folder / VOCABULARY_FILE
        entries, config_file = read_object(file), folder / CONFIG_FILE
        config = read_object(config_file) if config_file.is_file() else {}
        if config.get("separate_vocabs"):
            raise BadInputError(f"{config_file}: separate_vocabs: a vocabulary of its own for the target is left out")
        if not all(type(token) is int and token >= 0 for token in entries.values()):
            raise BadInputError(f"{file}: a piece has no whole number as its id")
        try:
            return cls(entries, folder, {key: _name(config, key, usual) for key, usual in _NAMES.items()})
        except BadInputError as error:
            raise BadInputError(f"{file}: {error}") from None

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._names) + 1

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary and of both models: equal fingerprints, equal ids."""
        models = [self._read(name).hex() for name in (SOURCE_FILE, TARGET_FILE)]
        return sha256_json({"vocabulary": self.vocabulary, "special_tokens": self.special_tokens, "models": models})

    def encode(self, text: str) -> list[int]:
        """The ids of a source text, without its end token. A target language such as ">>fra<<" may stand before it.

        Text that looks like a special token is text.
        """
        codes: list[str] = []
        if text.startswith(">>") and (stop := text.find("<<")) != -1:
            codes, text = [text[: stop + 2]], text[stop + 2 :]
        return [self._id(piece) for piece in [*codes, *self._source.encode(text, out_type=str)]]

    def encode_target(self, text: str) -> list[int]:
        """The ids of a target text, without its end token."""
        return [self._id(piece) for piece in self._target.encode(text, out_type=str)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a target's ids, without special tokens. BadInputError for an id outside the vocabulary."""
        special = set(self.special_tokens.values())
        pieces = [self.id_to_piece(token) for token in ids if token not in special]
        text: str = self._target.decode(pieces)
        return text.replace(_SPACE, " ").strip()

    def id_to_piece(self, token: int) -> str:
        """One piece as the vocabulary spells it."""
        try:
            return self._names[token]
        except KeyError:
            raise BadInputError(f"id {token!r} is not in this vocabulary of {self.vocab_size} tokens") from None

    def id_to_bytes(self, token: int) -> bytes:
        """One piece as UTF-8, a space where it begins a word."""
        return self.id_to_piece(token).replace(_SPACE, " ").encode()

    def _id(self, piece: str) -> int:
        # No piece becomes a special token's id, however the text spells it.
        return self._unknown_id if piece in self.special_tokens else self.vocabulary.get(piece, self._unknown_id)

    @cached_property
    def _source(self) -> Any:
        return self._open(SOURCE_FILE)

    @cached_property
    def _target(self) -> Any:
        return self._open(TARGET_FILE)

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        try:
            if path.stat().st_size > _MAX_MODEL_BYTES:
                raise BadInputError(f"{path}: larger than {_MAX_MODEL_BYTES >> 20} MiB; this is no SentencePiece model")
            return path.read_bytes()
        except OSError as error:
            raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None

    def _open(self, name: str) -> Any:
        data = self._read(name)
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise JourneyError(
                f"{self.folder / name}: text is cut by the package sentencepiece, which is not installed; "
                "pip install 'llm-journey[marian]'"
            ) from None
        try:
            if data:  # an empty one is no error to it, and cuts nothing
                return SentencePieceProcessor(model_proto=data)
        except (RuntimeError, OSError, TypeError, ValueError):  # what it raises for a file that is none
            pass
        raise BadInputError(f"{self.folder / name}: not a SentencePiece model; is the download whole?")


def is_marian_pieces(folder: Path) -> bool:
    """Whether a folder's text side is Marian's own."""
    return (folder / SOURCE_FILE).is_file() and (folder / VOCABULARY_FILE).is_file()


def _name(config: Mapping[str, Any], key: str, usual: str) -> str:
    """A special token's name, which files write as a string or as an object with its content."""
    value = config.get(key)
    name = value.get("content") if isinstance(value, dict) else value
    return name if isinstance(name, str) else usual
