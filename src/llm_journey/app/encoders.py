"""Models that read a whole text before they answer: an encoder fills its masks, an encoder-decoder rewrites it.

Text in and text out, as `app.language_model` is for decoders; here nothing is streamed, since a beam search gives its
best sequence only when it is done, and masks are filled in one pass.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from llm_journey.core.config import validate
from llm_journey.core.errors import BadInputError
from llm_journey.datasets.corruption import MASK_TOKEN, sentinel_tokens
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.marian_pieces import MarianPieces
from llm_journey.tokenizer.tokenizer import WHITE_SPACE
from llm_journey.tokenizer.wordpiece import WordPiece

if TYPE_CHECKING:
    from llm_journey.generation.beam import BeamConfig, Hypothesis
    from llm_journey.model.encoder import Encoder
    from llm_journey.model.encoder_decoder import EncoderDecoder


@dataclass(frozen=True)
class Guess:
    """A token for a mask, and its probability."""

    text: str
    probability: float


@dataclass(frozen=True)
class Candidate:
    """A text that an encoder-decoder wrote. score: log-probability over the length penalty (Wu et al. 2016, eq. 14)."""

    text: str
    log_probability: float
    score: float
    ended: bool


@dataclass(frozen=True)
class _TextModel:
    """What the two have in common."""

    name: str
    directory: Path
    tokenizer: Tokenizer | WordPiece | MarianPieces
    defaults: dict[str, Any] = field(default_factory=dict)

    does: ClassVar[str] = ""

    @property
    def network(self) -> "Encoder | EncoderDecoder":
        """The model itself."""
        raise NotImplementedError

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) rows that describe the model."""
        config = self.network.config
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        layers = f"{config.num_layers} layers"
        if config.num_decoder_layers:
            layers = f"{config.num_layers} layers that read and {config.num_decoder_layers} that write"
        return [
            ("Model", self.name),
            ("Does", self.does),
            ("Parameters", f"{parameters:,}"),
            ("Context", f"{config.context:,} tokens"),
            ("Vocabulary", f"{self.tokenizer.vocab_size:,} tokens"),
            ("Shape", f"{layers}, {config.width} wide, {config.num_heads} heads"),
            ("Folder", str(self.directory)),
        ]

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><td>{escape(label)}</td><td>{escape(value)}</td></tr>" for label, value in self.rows())
        return f"<table>{cells}</table>"


@dataclass(frozen=True)
class MaskFiller(_TextModel):
    """An encoder with its tokenizer: says what stands at each [MASK] of a text."""

    encoder: "Encoder" = field(kw_only=True)

    does: ClassVar[str] = f"fills each {MASK_TOKEN} of a text"

    @property
    def network(self) -> "Encoder":
        """The encoder."""
        return self.encoder

    def generate(self, text: str, **settings: Any) -> str:
        """`text` with the likeliest token at each mask. Nothing is drawn, so it takes no settings (BadInputError)."""
        if settings:
            raise BadInputError(f"{self.name} fills masks, and draws nothing: leave out {', '.join(settings)}")
        return self.filled(text, self.fill(text, top=1))

    def fill(self, text: str, *, top: int = 5) -> list[list[Guess]]:
        """For each mask of `text`, in order, the `top` likeliest tokens with their probabilities, likeliest first.

        Masks are filled each by itself, given all the rest. Raises BadInputError for a text without a mask, or one
        longer than the context (with both counts).
        """
        import torch

        if top < 1:
            raise BadInputError(f"top must be at least 1, not {top}")
        ids, mask_id = self.ids(text), self._mask_id
        context = self.encoder.config.context
        if len(ids) > context:
            raise BadInputError(
                f"the text has {len(ids)} tokens, the model's context holds {context}: shorten the text"
            )
        was_training = self.encoder.training
        self.encoder.eval()
        try:
            with torch.inference_mode():
                ids_bt = torch.tensor([ids], device=self.encoder.device)
                hidden_nd = self.encoder.hidden(ids_bt)[ids_bt == mask_id]
                probabilities_nv = self.encoder.logits(hidden_nd).float().softmax(-1)
                probabilities_nv[:, self._special_ids] = 0.0
                values, tokens = probabilities_nv.topk(min(top, probabilities_nv.shape[-1]))
        finally:
            self.encoder.train(was_training)
        rows = zip(tokens.tolist(), values.tolist(), strict=True)
        return [[Guess(self._spell(token), value) for token, value in zip(*row, strict=True)] for row in rows]

    def filled(self, text: str, guesses: Sequence[Sequence[Guess]]) -> str:
        """`text` with the first guess of each mask in its place."""
        before, *others = text.split(MASK_TOKEN)
        for (best, *_), piece in zip(guesses, others, strict=True):
            # A byte-level token carries the space before it, which the text has too.
            word = best.text.lstrip() if before[-1:].isspace() or not before else best.text
            before += word + piece
        return before

    @property
    def _mask_id(self) -> int:
        if MASK_TOKEN not in self.tokenizer.special_tokens:
            raise BadInputError(
                f"{self.directory}: its tokenizer has no {MASK_TOKEN}, so it was not trained to fill one"
            )
        return self.tokenizer.special_tokens[MASK_TOKEN]

    @property
    def _special_ids(self) -> list[int]:
        size = self.encoder.config.vocab_size
        return [*self.tokenizer.special_tokens.values(), *range(self.tokenizer.vocab_size, size)]

    def ids(self, text: str) -> list[int]:
        """The ids of `text` as the encoder reads them. Raises BadInputError for a text without a mask."""
        if MASK_TOKEN not in text:
            raise BadInputError(f"the text has no {MASK_TOKEN}: put one where a word is to be filled in")
        return encoder_ids(self.tokenizer, text)

    def _spell(self, token: int) -> str:
        return self.tokenizer.decode([token])


def encoder_ids(tokenizer: Tokenizer | WordPiece | MarianPieces, text: str) -> list[int]:
    """The ids of `text` as an encoder reads it, between its begin and end tokens.

    Only the mask counts as special, where there is one: no other token can be smuggled into a text.
    """
    if isinstance(tokenizer, Tokenizer):
        # As in training, where an end token stands between texts; it begins them too.
        return [tokenizer.end_id, *_with_special(tokenizer, text, [MASK_TOKEN]), tokenizer.end_id]
    if isinstance(tokenizer, MarianPieces):
        raise BadInputError("a Marian model's tokenizer is for an encoder-decoder; an encoder needs another")
    mask_id = tokenizer.special_tokens.get(MASK_TOKEN)
    first, *others = [text] if mask_id is None else text.split(MASK_TOKEN)
    ids = tokenizer.encode(first, add_special=False)
    for piece in others:
        assert mask_id is not None
        ids = [*ids, mask_id, *tokenizer.encode(piece, add_special=False)]
    begin, end = (tokenizer.vocabulary[name] for name in (tokenizer.options.begin, tokenizer.options.end))
    return [begin, *ids, end]


def _with_special(tokenizer: Tokenizer, text: str, names: Sequence[str]) -> list[int]:
    """The ids of `text`, in which only `names` count as special.

    The white space before one of them is left out: a byte-level token carries the space before its word, so what
    stands in a token's place stands in the space's too.
    """
    known = [name for name in names if name in tokenizer.special_tokens]
    if not known:
        return tokenizer.encode(text)
    # Longest first, as tokenizers reads them: <extra_id_1> begins no other, but nobody should have to know.
    *before, last = re.split(f"({'|'.join(map(re.escape, sorted(known, key=len, reverse=True)))})", text)
    ids: list[int] = []
    for piece, name in zip(before[::2], before[1::2], strict=True):
        ids += [*tokenizer.encode(piece.rstrip(WHITE_SPACE)), tokenizer.special_tokens[name]]
    return ids + tokenizer.encode(last)


def _sentinels(tokenizer: Tokenizer) -> tuple[str, ...]:
    return sentinel_tokens(len(tokenizer.special_tokens))


@dataclass(frozen=True)
class Rewriter(_TextModel):
    """An encoder-decoder with its tokenizer: writes a text for a text."""

    model: "EncoderDecoder" = field(kw_only=True)

    does: ClassVar[str] = "writes a text for a text, by beam search"

    @property
    def network(self) -> "EncoderDecoder":
        """The encoder-decoder."""
        return self.model

    def generate(self, text: str, **settings: Any) -> str:
        """The best text for `text`. settings: fields of generation.beam.BeamConfig over the model's own defaults."""
        return self.rewrite(text, settings=settings)[0].text

    def rewrite(self, text: str, *, settings: Mapping[str, Any] | None = None) -> list[Candidate]:
        """The texts that a beam search finds for `text`, best first.

        Raises BadInputError for a text that is empty or longer than the context, or a setting that is wrong.
        """
        found = self._search(text, settings or {})
        decode = self._tokenizer.decode
        return [Candidate(decode(item.ids), item.log_probability, item.score, item.ended) for item in found]

    def best_ids(self, text: str) -> list[int]:
        """The ids of the best text for `text`, as `target_ids` gives those of a text, begin token first."""
        found = [self._pad_id(self._tokenizer), *self._search(text, {})[0].ids]
        return found[: self.model.config.context]

    def _search(self, text: str, settings: Mapping[str, Any]) -> "Sequence[Hypothesis]":
        from llm_journey.generation.beam import write_targets, wu_penalty

        config, tokenizer = self.beams(settings), self._tokenizer
        if not text:
            raise BadInputError("the text is empty: give at least one character")
        end_id, pad_id = tokenizer.end_id, self._pad_id(tokenizer)
        context = self.model.config.context
        (found,) = write_targets(
            self.model,
            [self.ids(text)],
            begin_id=pad_id,
            end_id=end_id,
            pad_id=pad_id,
            max_length=min(config.max_new_tokens or context, context),
            num_beams=config.num_beams,
            penalty=wu_penalty(config.length_penalty),
            early_stopping=config.early_stopping,
            never=() if pad_id == end_id else (pad_id,),
        )
        return found

    def ids(self, text: str) -> list[int]:
        """The ids of `text` as the encoder reads them, the end token behind it."""
        tokenizer = self._tokenizer
        if isinstance(tokenizer, MarianPieces):
            return [*tokenizer.encode(text), tokenizer.end_id]
        return [*_with_special(tokenizer, text, _sentinels(tokenizer)), tokenizer.end_id]

    def target_ids(self, text: str) -> list[int]:
        """The ids of `text` as the decoder reads what it has written, the begin token before them."""
        tokenizer = self._tokenizer
        if isinstance(tokenizer, MarianPieces):
            return [tokenizer.padding_id, *tokenizer.encode_target(text)]
        return [self._pad_id(tokenizer), *_with_special(tokenizer, text, _sentinels(tokenizer))]

    @property
    def _tokenizer(self) -> Tokenizer | MarianPieces:
        if isinstance(self.tokenizer, WordPiece):
            raise BadInputError(f"{self.directory}: a WordPiece tokenizer, which cannot give text back")
        return self.tokenizer

    def beams(self, settings: Mapping[str, Any]) -> "BeamConfig":
        """The settings of a search. Raises BadInputError naming the key that is wrong."""
        from llm_journey.generation.beam import BeamConfig

        return validate(BeamConfig, {**self.defaults, **settings}, "beam settings")

    @staticmethod
    def _pad_id(tokenizer: Tokenizer | MarianPieces) -> int:
        """What fills a row; it begins a target too, as in Marian's models. Ours use the end token for both."""
        if isinstance(tokenizer, MarianPieces):
            return tokenizer.padding_id
        padding = tokenizer.roles.padding
        return tokenizer.end_id if padding is None else tokenizer.special_tokens[padding]
