"""Corpora from source to what a model reads: preparing, looking at samples, training a tokenizer by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_journey.app.bases import base_tokenizer
from llm_journey.app.recipes import recipe_for_source
from llm_journey.app.training import pull_source
from llm_journey.core.config import dump
from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.marian_pieces import MarianPieces, is_marian_pieces
from llm_journey.tokenizer.wordpiece import WordPiece, is_wordpiece
from llm_journey.training.observer import Observer

VOCABULARY_FILE = "vocabulary.json"
TIKTOKEN_FILE = "ranks.tiktoken"

if TYPE_CHECKING:
    from llm_journey.datasets.show import Samples
    from llm_journey.training.inputs import Inputs


@dataclass(frozen=True)
class Prepared:
    """A prepared corpus with its tokenizer and shards."""

    inputs: "Inputs"

    def rows(self) -> list[tuple[str, str]]:
        """(what, amount) rows: documents in, dropped by reason, duplicates, tokens, bytes per token."""
        inputs = self.inputs
        tokens = inputs.train.num_tokens + inputs.validation.num_tokens
        rows = [(label, f"{count:,}") for label, count in inputs.preparation.rows()]
        return [
            *rows,
            ("vocabulary", f"{inputs.tokenizer.vocab_size:,}"),
            ("training tokens", f"{inputs.train.num_tokens:,}"),
            ("validation tokens", f"{inputs.validation.num_tokens:,}"),
            ("bytes per token", f"{inputs.preparation.bytes / tokens:.2f}"),
        ]

    def describe(self) -> dict[str, Any]:
        """The preparation as JSON values."""
        inputs = self.inputs
        tokens = inputs.train.num_tokens + inputs.validation.num_tokens
        return {
            "preparation": dump(inputs.preparation),
            "vocab_size": inputs.tokenizer.vocab_size,
            "train_tokens": inputs.train.num_tokens,
            "validation_tokens": inputs.validation.num_tokens,
            "bytes_per_token": inputs.preparation.bytes / tokens,
            "fingerprints": inputs.fingerprints(),
            "text": str(inputs.prepared),
            "shards": str(inputs.directory),
        }


def prepare(recipe_or_source: str, overrides: Sequence[str], observer: Observer) -> Prepared:
    """Prepare the data of a recipe, or a source (catalog name, folder, file, glob) as the quickstart does it.

    What was prepared before, by this or by a training run, is found again.
    """
    from llm_journey.training.inputs import prepare_inputs

    recipe = recipe_for_source(recipe_or_source, overrides)
    pull_source(recipe.data.source, observer)
    return Prepared(prepare_inputs(recipe, base=base_tokenizer(recipe), observer=observer))


def show(
    recipe_or_source: str, overrides: Sequence[str], observer: Observer, *, count: int, seed: int, reason: str | None
) -> "Samples":
    """Samples of a corpus, kept and dropped; it is prepared first where it was not before."""
    from llm_journey.datasets.show import show_samples

    if recipe_for_source(recipe_or_source, overrides).stage == "sft":
        raise BadInputError(f"{recipe_or_source} is of chats: --mask MODEL shows them as the model learns them")
    prepared = prepare(recipe_or_source, overrides, observer)
    return show_samples(prepared.inputs.prepared, count=count, seed=seed, reason=reason)


def train_tokenizer(
    recipe_or_source: str, overrides: Sequence[str], observer: Observer, directory: Path
) -> "TokenizerView":
    """The tokenizer of a recipe or for a source, in `directory`: Hugging Face's layout, tiktoken's ranks, and the
    vocabulary report.

    Raises BadInputError where `directory` holds files already.
    """
    from llm_journey.core.files import new_directory, write_json
    from llm_journey.tokenizer import io

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BadInputError(f"{directory}: is there already; give a new folder with --to")
    inputs = prepare(recipe_or_source, overrides, observer).inputs
    with new_directory(directory) as folder:
        io.save(inputs.tokenizer, folder)
        io.to_tiktoken_ranks(inputs.tokenizer, folder / TIKTOKEN_FILE)
        write_json(folder / VOCABULARY_FILE, inputs.vocabulary)
    return TokenizerView(directory, inputs.tokenizer, inputs.vocabulary)


@dataclass(frozen=True)
class TokenizerView:
    """A tokenizer to look at, and what its vocabulary report says (empty where it has none)."""

    directory: Path
    tokenizer: "Tokenizer | WordPiece | MarianPieces"
    report: dict[str, Any]

    def tokens(self, text: str) -> list[tuple[int, str]]:
        """(id, text) of each token of `text`, special ones included; bytes that are no whole character as U+FFFD."""
        tokenizer = self.tokenizer
        if not isinstance(tokenizer, Tokenizer):
            return [(token, tokenizer.id_to_piece(token)) for token in tokenizer.encode(text)]
        return [(token, tokenizer.id_to_bytes(token).decode("utf-8", "replace")) for token in tokenizer.encode(text)]

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) rows of the main facts."""
        special = ", ".join(self.tokenizer.special_tokens)
        rows = [
            ("folder", str(self.directory)),
            ("vocabulary", f"{self.tokenizer.vocab_size:,}"),
            ("split pattern", self._pattern),
            ("special tokens", special),
            ("chat template", "yes" if self._chat_template else "none"),
        ]
        forms = {
            "bytes_per_token": ("bytes per token", "{:.2f}"),
            "fertility": ("tokens per word", "{:.2f}"),
            "coverage": ("vocabulary used", "{:.1%}"),
            "num_unused": ("unused tokens", "{:,}"),
        }
        rows += [(label, form.format(self.report[key])) for key, (label, form) in forms.items() if key in self.report]
        if longest := self.report.get("longest"):
            rows.append(("longest tokens", " ".join(repr(token["text"]) for token in longest[:8])))
        if scripts := self.report.get("tokens_by_script"):
            rows.append(("tokens by script", ", ".join(f"{name} {count:,}" for name, count in scripts.items())))
        return rows

    def describe(self) -> dict[str, Any]:
        """The facts as JSON values."""
        return {
            "path": str(self.directory),
            "vocab_size": self.tokenizer.vocab_size,
            "pattern": self._pattern,
            "special_tokens": self.tokenizer.special_tokens,
            "chat_template": self._chat_template,
            "fingerprint": self.tokenizer.fingerprint,
            "report": self.report,
        }

    @property
    def _pattern(self) -> str:
        """How text is cut into words."""
        if isinstance(self.tokenizer, WordPiece):
            return f"wordpiece, {'lower case' if self.tokenizer.options.lower_case else 'cased'}"
        if isinstance(self.tokenizer, MarianPieces):
            return "sentencepiece, a model for the source and one for the target"
        return self.tokenizer.pattern

    @property
    def _chat_template(self) -> str | None:
        return self.tokenizer.chat_template if isinstance(self.tokenizer, Tokenizer) else None


def view_tokenizer(name_or_path: str) -> TokenizerView:
    """The tokenizer of a run's name, a catalog model, a folder, a GGUF file, or a tokenizer.json."""
    from llm_journey.app.find_models import GGUF_SUFFIX, find_model
    from llm_journey.app.runs import find_run, has_run
    from llm_journey.core.files import read_json
    from llm_journey.tokenizer import io

    path = Path(name_or_path).expanduser()
    is_folder = path.is_dir() and ((path / io.TOKENIZER_FILE).is_file() or is_marian_pieces(path))
    is_file = path.is_file() and path.suffix != GGUF_SUFFIX
    directory = path if is_folder or is_file else find_model(name_or_path)
    beside = find_run(name_or_path).directory if has_run(name_or_path) else directory
    report = read_json(beside / VOCABULARY_FILE) if (beside / VOCABULARY_FILE).is_file() else {}
    if directory.suffix == GGUF_SUFFIX:
        from llm_journey.checkpoint.gguf.model import read_tokenizer

        return TokenizerView(directory, read_tokenizer(directory), report)
    if is_marian_pieces(directory):
        return TokenizerView(directory, MarianPieces.load(directory), report)
    tokenizer = WordPiece.load(directory) if is_wordpiece(directory) else io.load(directory)
    return TokenizerView(directory, tokenizer, report)
