"""A model by name, whatever it is: what it is decides what it can do."""

from pathlib import Path

from llm_journey.app.embedder import Embedder, open_embedder
from llm_journey.app.encoders import MaskFiller, Rewriter
from llm_journey.app.find_models import GGUF_SUFFIX, embeds_texts, find_text_model, model_name
from llm_journey.app.language_model import LanguageModel, open_model
from llm_journey.core.errors import BadInputError

AnyTextModel = LanguageModel | MaskFiller | Rewriter
AnyModel = AnyTextModel | Embedder


def open_model_or_embedder(name_or_path: str, precision: str = "auto", *, compile: bool | None = None) -> AnyModel:
    """`open_any`, or an Embedder where the model's folder says how its texts become vectors."""
    if embeds_texts(name_or_path):
        _check_plain(precision, compile, "an embedder")
        return open_embedder(name_or_path)
    return open_any(name_or_path, precision, compile=compile)


def open_any(name_or_path: str, precision: str = "auto", *, compile: bool | None = None) -> AnyTextModel:
    """The model of a run's name, a catalog name, a folder or a GGUF file: a LanguageModel (decoder), a MaskFiller
    (encoder) or a Rewriter (encoder-decoder).

    precision, compile: of a LanguageModel, see `open_model`. Raises BadInputError that says what can be opened.
    """
    from llm_journey.checkpoint.model_folder import load_config

    path = find_text_model(name_or_path)
    if path.suffix == GGUF_SUFFIX or (kind := load_config(path).kind) == "decoder":
        return open_model(name_or_path, precision, compile=compile)
    _check_plain(precision, compile, f"an {kind.replace('_', '-')}")
    match kind:
        case "encoder":
            return _open_mask_filler(name_or_path, path)
        case _:
            return _open_rewriter(name_or_path, path)


def _check_plain(precision: str, compile: bool | None, what: str) -> None:
    if compile:
        raise BadInputError(f"compiled steps are for models that go on from a text; {what} has none")
    if precision not in ("auto", "float32"):
        raise BadInputError(f"precision {precision!r} is for models that go on from a text; {what} computes in float32")


def _open_mask_filler(name_or_path: str, directory: Path) -> MaskFiller:
    from llm_journey.checkpoint.families import family_of
    from llm_journey.checkpoint.model_folder import load_config, load_encoder

    config = load_config(directory)
    if family_of(config) is not None and not config.head_transform:
        raise BadInputError(f"{directory}: an encoder without a head, which can embed texts but fill no mask")
    encoder, tokenizer = load_encoder(directory)
    if tokenizer is None:
        raise _without_tokenizer(directory)
    return MaskFiller(model_name(name_or_path, directory), directory, tokenizer, encoder=encoder)


def _open_rewriter(name_or_path: str, directory: Path) -> Rewriter:
    from llm_journey.checkpoint.model_folder import load_encoder_decoder

    model, tokenizer = load_encoder_decoder(directory)
    if tokenizer is None:
        raise _without_tokenizer(directory)
    return Rewriter(model_name(name_or_path, directory), directory, tokenizer, model=model)


def _without_tokenizer(directory: Path) -> BadInputError:
    return BadInputError(f"{directory}: holds no tokenizer.json, so no text can go in; put the tokenizer there")
