"""A model that turns texts into vectors: what `journey embed` and `llm_journey.load(...).embed` use.

A text is tokenized, cut where it is longer than the model takes (which is counted and said, never silent), run through
the encoder and pooled. Text that merely looks like a special token ("[SEP]") is ordinary text here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from llm_journey.app.find_models import find_model, model_name
from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer.wordpiece import WordPiece

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llm_journey.checkpoint.embedding_files import EmbeddingRecipe
    from llm_journey.model.encoder import Encoder


@dataclass(frozen=True)
class Embeddings:
    """Vectors (N, D) of N texts, how many tokens of each were read, and which texts were cut (by index)."""

    vectors: "npt.NDArray[np.float32]"
    tokens: list[int]
    cut: list[int]


@dataclass(frozen=True)
class Embedder:
    """An encoder with its tokenizer, and how its hidden states become one vector."""

    name: str
    directory: Path
    encoder: "Encoder"
    tokenizer: WordPiece
    recipe: "EmbeddingRecipe"

    @property
    def width(self) -> int:
        """D, the numbers in a vector."""
        return self.encoder.config.width

    @property
    def max_tokens(self) -> int:
        """The most tokens of a text that are read, [CLS] and [SEP] included."""
        context = self.encoder.config.context
        return min(self.recipe.max_tokens or context, context)

    def embed(self, texts: str | Sequence[str]) -> "npt.NDArray[np.float32]":
        """(N, D) float32 vectors of the texts, in their order; of length 1 where the model normalises them.

        A single text is a list of one. How many texts were cut at the model's limit is said on standard error.
        Raises BadInputError for anything but text.
        """
        found = self.embed_counted(texts)
        if found.cut:
            from llm_journey.core.console import messages

            messages().print(self.cut_message(found), markup=False, soft_wrap=True)
        return found.vectors

    def embed_counted(self, texts: str | Sequence[str], *, on_batch: Callable[[int], None] | None = None) -> Embeddings:
        """As `embed`, with the counts, and nothing said. on_batch: told how many texts each batch held."""
        from llm_journey.generation.embed import embed_ids

        texts = [texts] if isinstance(texts, str) else list(texts)
        wrong = next((index for index, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise BadInputError(f"text {wrong} is a {type(texts[wrong]).__name__}; a text must be a string")
        encoded = self.tokenizer.encode_batch(texts)
        cut = [index for index, ids in enumerate(encoded) if len(ids) > self.max_tokens]
        for index in cut:
            encoded[index] = [*encoded[index][: self.max_tokens - 1], encoded[index][-1]]
        vectors = embed_ids(
            self.encoder,
            encoded,
            pooling=self.recipe.pooling,
            normalize=self.recipe.normalize,
            padding_id=self.tokenizer.special_tokens[self.tokenizer.options.padding],
            on_batch=on_batch,
        )
        return Embeddings(vectors, [len(ids) for ids in encoded], cut)

    def cut_message(self, found: Embeddings) -> str:
        """What a person is told where texts were cut."""
        return (
            f"{len(found.cut):,} of {len(found.tokens):,} texts are longer than the {self.max_tokens} tokens that "
            f"{self.name} reads; what is beyond is not in their vectors"
        )

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) rows that describe the model."""
        config, recipe = self.encoder.config, self.recipe
        parameters = sum(parameter.numel() for parameter in self.encoder.parameters())
        return [
            ("Model", self.name),
            ("Parameters", f"{parameters:,}"),
            ("Vector", f"{self.width} numbers{', of length 1' if recipe.normalize else ''}"),
            ("Pooling", recipe.pooling),
            ("Longest text", f"{self.max_tokens:,} tokens"),
            ("Vocabulary", f"{self.tokenizer.vocab_size:,} tokens"),
            ("Shape", f"{config.num_layers} layers, {config.width} wide, {config.num_heads} heads"),
            ("Folder", str(self.directory)),
        ]

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><td>{escape(label)}</td><td>{escape(value)}</td></tr>" for label, value in self.rows())
        return f"<table>{cells}</table>"


def open_embedder(name_or_path: str) -> Embedder:
    """The embedder of a catalog name or a folder in sentence-transformers' layout.

    A catalog model that is not on this machine is pulled, which is said on standard error. Raises BadInputError naming
    the file and what is wrong with it, or what the model is instead.
    """
    from llm_journey.checkpoint.embedding_files import MODULES, read_embedding_recipe
    from llm_journey.checkpoint.model_folder import load_encoder
    from llm_journey.generation.packed_linear import pack_linears

    directory = find_model(name_or_path)
    if not (directory / MODULES).is_file():
        raise BadInputError(
            f"{directory}: holds no {MODULES}, which says how texts become vectors; "
            "all-minilm-l6-v2 and folders in sentence-transformers' layout can be used"
        )
    recipe = read_embedding_recipe(directory)
    encoder, tokenizer = load_encoder(directory)
    if not isinstance(tokenizer, WordPiece):
        held = "no tokenizer.json" if tokenizer is None else "a byte-level BPE tokenizer"
        raise BadInputError(f"{directory}: holds {held}; texts are embedded with a WordPiece tokenizer only")
    if recipe.lower_case and not tokenizer.options.lower_case:
        raise BadInputError(
            f"{directory}: asks for lower case of a tokenizer that keeps capitals; that is not done here"
        )
    pack_linears(encoder)
    return Embedder(model_name(name_or_path, directory), directory, encoder, tokenizer, recipe)
