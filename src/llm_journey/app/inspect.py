"""Look inside a model by name: text in, a Reading out, which shows itself in a terminal, as pictures and as a page."""

from collections.abc import Callable, Sequence
from pathlib import Path

from llm_journey.app.encoders import encoder_ids
from llm_journey.app.language_model import LanguageModel, find_model, open_model
from llm_journey.app.runs import has_run
from llm_journey.core.errors import BadInputError
from llm_journey.inspection.inspection import Inspection, inspect_ids
from llm_journey.inspection.reading import Reading, spelled
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.wordpiece import WordPiece


def inspect_model(name_or_path: str, text: str, *, layers: Sequence[int] | None = None) -> Reading:
    """What the model of that name does with `text`: a decoder, or an encoder. Raises BadInputError where one of them
    cannot be used."""
    folder = _encoder_folder(name_or_path)
    if folder is not None:
        return _inspect_encoder(name_or_path, folder, text, layers)
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


def _encoder_folder(name_or_path: str) -> Path | None:
    """The folder of an encoder by that name on this machine; None for all else, which open_model speaks of."""
    from llm_journey.checkpoint.model_folder import CONFIG, load_config
    from llm_journey.datasets.catalog import CATALOG, locate

    path: Path | None = Path(name_or_path).expanduser()
    if has_run(name_or_path):
        path = find_model(name_or_path)
    elif name_or_path in CATALOG:
        path = locate(CATALOG[name_or_path])
    if path is None or not (path / CONFIG).is_file():
        return None
    return path if load_config(path).kind == "encoder" else None


def _words(tokenizer: Tokenizer | WordPiece) -> Callable[[int], str]:
    """What spells an id. A model may have more rows than its tokenizer has tokens (padded to a round number)."""
    if isinstance(tokenizer, WordPiece):
        pieces = {token: spelled(piece.encode("utf-8")) for piece, token in tokenizer.vocabulary.items()}
        return lambda token: pieces.get(token, f"⟨id {token}⟩")

    def word(token: int) -> str:
        return spelled(tokenizer.id_to_bytes(token)) if token in known else f"⟨id {token}⟩"

    known = {*tokenizer.vocabulary.values(), *tokenizer.special_tokens.values()}
    return word


def _reading(name: str, text: str, found: Inspection, word: Callable[[int], str]) -> Reading:
    tokens = tuple(map(word, found.ids.tolist()))
    return Reading(model=name, text=text, inspection=found, tokens=tokens, word=word, left_out=_left_out(found))


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
