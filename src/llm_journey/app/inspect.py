"""Look inside a model by name: text in, a Reading out, which shows itself in a terminal, as pictures and as a page."""

from collections.abc import Callable, Sequence
from pathlib import Path

from llm_journey.app.encoders import Rewriter, encoder_ids
from llm_journey.app.find_models import find_model
from llm_journey.app.language_model import LanguageModel, open_model
from llm_journey.app.opening import open_any
from llm_journey.app.runs import has_run
from llm_journey.core.errors import BadInputError
from llm_journey.inspection.inspection import Inspection, inspect_ids, inspect_pair
from llm_journey.inspection.reading import Reading, spelled
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.marian_pieces import MarianPieces
from llm_journey.tokenizer.wordpiece import WordPiece


def inspect_model(
    name_or_path: str, text: str, *, target: str | None = None, layers: Sequence[int] | None = None
) -> Reading:
    """What the model of that name does with `text`: a decoder, an encoder, or an encoder-decoder.

    target: what an encoder-decoder is to write for `text` (None: what it finds best itself). Raises BadInputError where
    one of them cannot be used.
    """
    found = _folder_of_kind(name_or_path)
    if found is not None and found[1] == "encoder_decoder":
        return _inspect_rewriter(name_or_path, text, target, layers)
    if target is not None:
        raise BadInputError(f"a target is for an encoder-decoder; {name_or_path!r} reads one text: leave it out")
    if found is not None:
        return _inspect_encoder(name_or_path, found[0], text, layers)
    return open_model(name_or_path).inspect(text, layers=layers)


def inspect_prompt(
    model: LanguageModel, text: str, ids: Sequence[int], *, layers: Sequence[int] | None = None
) -> Reading:
    """What `model` does with `ids`, the tokens of `text`. layers: keep attention maps of these only (None: all).

    Raises BadInputError for no ids, or more than the context holds, with both counts.
    """
    return _reading(model.name, text, inspect_ids(model.decoder, ids, layers=layers), _words(model.tokenizer))


def _inspect_encoder(name: str, folder: Path, text: str, layers: Sequence[int] | None) -> Reading:
    from llm_journey.checkpoint.model_folder import load_encoder

    model, tokenizer = load_encoder(folder)
    if tokenizer is None:
        raise BadInputError(f"{folder}: holds no tokenizer.json, so no text can go in; put the tokenizer there")
    ids = encoder_ids(tokenizer, text)
    found = inspect_ids(model, ids, layers=layers, unjudged=tokenizer.special_tokens.values())
    return _reading(Path(name).name, text, found, _words(tokenizer))


def _inspect_rewriter(name: str, text: str, target: str | None, layers: Sequence[int] | None) -> Reading:
    model = open_any(name)
    assert isinstance(model, Rewriter)
    target_ids = model.best_ids(text) if target is None else model.target_ids(target)
    found = inspect_pair(model.model, model.ids(text), target_ids, layers=layers)
    if target is None:
        target = model.tokenizer.decode(target_ids[1:])
    return _reading(model.name, text, found, _words(model.tokenizer), target)


def _folder_of_kind(name_or_path: str) -> tuple[Path, str] | None:
    """The folder and kind of a model on this machine that is no decoder; None for all else, which open_model speaks
    of."""
    from llm_journey.checkpoint.model_folder import CONFIG, load_config
    from llm_journey.datasets.catalog import CATALOG, locate

    path: Path | None = Path(name_or_path).expanduser()
    if has_run(name_or_path):
        path = find_model(name_or_path)
    elif name_or_path in CATALOG:
        path = locate(CATALOG[name_or_path])
    if path is None or not (path / CONFIG).is_file():
        return None
    kind = load_config(path).kind
    return None if kind == "decoder" else (path, kind)


def _words(tokenizer: Tokenizer | WordPiece | MarianPieces) -> Callable[[int], str]:
    """What spells an id. A model may have more rows than its tokenizer has tokens (padded to a round number)."""
    if not isinstance(tokenizer, Tokenizer):
        pieces = {token: spelled(piece.encode("utf-8")) for piece, token in tokenizer.vocabulary.items()}
        return lambda token: pieces.get(token, f"⟨id {token}⟩")

    def word(token: int) -> str:
        return spelled(tokenizer.id_to_bytes(token)) if token in known else f"⟨id {token}⟩"

    known = {*tokenizer.vocabulary.values(), *tokenizer.special_tokens.values()}
    return word


def _reading(name: str, text: str, found: Inspection, word: Callable[[int], str], target: str | None = None) -> Reading:
    tokens, notes = tuple(map(word, found.ids.tolist())), _left_out(found)
    return Reading(model=name, text=text, inspection=found, tokens=tokens, word=word, left_out=notes, target=target)


def _left_out(found: Inspection) -> tuple[str, ...]:
    """What the maps do not show, in words."""
    notes = []
    if len(found.maps) < found.num_layers:
        notes.append(f"the maps of {found.num_layers - len(found.maps)} of {found.num_layers} layers, as asked")
    if found.cell > 1:
        notes.append(f"detail: one cell of a map is {found.cell} × {found.cell} positions; --layer N makes it finer")
    if not found.lens:
        notes.append("lens and probabilities: this model has no head that predicts tokens")
    return tuple(notes)
