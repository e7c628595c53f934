"""A model as a folder: Hugging Face's layout wherever a family fits, so that the ecosystem opens it as it is.

    config.json              the family's config, or ours ("model_type": "llm_journey") where none fits
    model.safetensors        every tensor once (a tied head is not stored twice); a quantized model's codes and scales
    generation_config.json   end-of-text id and the defaults for sampling
    tokenizer.json, ...      when a tokenizer is given
    README.md                the model card, when one is given

Weights move in the dtype they have; nothing is unpickled, nothing is allocated before a config from outside has been
compared with the header of its file. Files split into shards are left out: models of this project's size are one file.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

from torch import Tensor
from torch.overrides import TorchFunctionMode

from llm_journey.checkpoint import families, quantized, tensor_files
from llm_journey.checkpoint.shapes import MAX_CONTEXT, check_depth, check_shapes, check_tables, parameter_shapes
from llm_journey.core.config import dump, validate
from llm_journey.core.errors import BadInputError
from llm_journey.core.files import new_directory, write_json, write_text
from llm_journey.model.config import KindName, TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.model.encoder import Encoder
from llm_journey.model.encoder_decoder import EncoderDecoder
from llm_journey.model.kinds import Model, make_model
from llm_journey.quantization.scheme import Scheme
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer import io as tokenizer_io
from llm_journey.tokenizer.marian_pieces import MarianPieces, is_marian_pieces
from llm_journey.tokenizer.wordpiece import WordPiece, is_wordpiece

CONFIG, WEIGHTS, GENERATION, CARD = "config.json", "model.safetensors", "generation_config.json", "README.md"
OWN_TYPE = "llm_journey"
_OWN_KEYS = frozenset(
    {
        *("model_type", "dtype", quantized.KEY),
        *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    }
)
AnyTokenizer = Tokenizer | WordPiece | MarianPieces
AnyModel = TypeVar("AnyModel", Decoder, Encoder, EncoderDecoder)


def save_model(
    model: Model,
    directory: Path,
    *,
    tokenizer: Tokenizer | None = None,
    generation: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> None:
    """Write `model` as a folder, atomically: a reader sees the old folder or the whole new one.

    generation: further keys of generation_config.json (temperature, top_p, eos_token_id ...). card: README.md's text.
    Raises BadInputError where `directory` holds something that is no model, or the model's tensors are not those of
    its config (adapters, layers only half of which are quantized); JourneyError where it cannot be written.
    """
    if directory.exists() and not directory.is_dir():
        raise BadInputError(f"{directory}: a file is in the way; choose another folder")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / CONFIG).is_file():
        raise BadInputError(f"{directory}: holds files that are no model; choose a new folder")
    with tensor_files.writing(directory), new_directory(directory) as temporary:
        write_model_files(model, temporary, tokenizer=tokenizer, generation=generation, card=card)


def write_model_files(
    model: Model,
    directory: Path,
    *,
    tokenizer: Tokenizer | None = None,
    generation: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> None:
    """The files of `save_model` into a directory that exists; making it whole at once is the caller's part."""
    config, state = model.config, model.state_dict()
    codes = quantized.config_values(model)
    scheme = quantized.read_scheme(codes, "the model")
    expected = parameter_shapes(config) if scheme is None else quantized.stored_shapes(config, scheme, "the model")
    check_shapes(expected, {name: tuple(value.shape) for name, value in state.items()}, "the model")
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise BadInputError(_vocabulary_message(tokenizer.vocab_size, config.vocab_size))
    values, tensors = _own_config(config, state)
    if scheme is None and families.family_of(config) is not None:  # no family has a form for our codes
        values, tensors = families.to_huggingface(config, state)
    ids = _role_ids(tokenizer)
    if config.kind == "encoder_decoder" and ids["pad_token_id"] is not None:
        ids["decoder_start_token_id"] = ids["pad_token_id"]  # Marian's convention: the target begins with padding
    numbers = {name: value for name, value in state.items() if value.is_floating_point()}
    write_json(directory / CONFIG, values | ids | codes | {"dtype": tensor_files.storage_dtype(numbers)})
    write_json(directory / GENERATION, ids | dict(generation or {}))
    tensor_files.write_tensors(directory / WEIGHTS, tensors)
    if tokenizer is not None:
        tokenizer_io.save(tokenizer, directory)
    if card is not None:
        write_text(directory / CARD, card)


def load_model(directory: Path) -> tuple[Model, AnyTokenizer | None]:
    """The model (float32, in evaluation mode) and the tokenizer of a folder, ours or a Hugging Face one, of any kind.

    Raises BadInputError naming the file and what is wrong with it.
    """
    config, tensors, scheme = load_stored(directory)
    if scheme is None:
        model = build(config, tensors.items())
    else:
        with _NoDraws():
            model = make_model(config).eval()
        quantized.fill(model, config, scheme, tensors, str(directory / WEIGHTS))
    return model, load_fitting_tokenizer(directory, config)


def load_decoder(directory: Path) -> tuple[Decoder, Tokenizer | None]:
    """`load_model` for what writes on. Raises BadInputError where the folder holds a model of another kind."""
    _check_kind(directory, "decoder", "generates text")
    model, tokenizer = load_model(directory)
    assert isinstance(model, Decoder)
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        raise BadInputError(
            f"{directory}: a tokenizer of another kind ({type(tokenizer).__name__}); a decoder needs BPE"
        )
    return model, tokenizer


def load_encoder(directory: Path) -> tuple[Encoder, Tokenizer | WordPiece | None]:
    """`load_model` for what embeds texts and fills masks. BadInputError for a model of another kind."""
    _check_kind(directory, "encoder", "embeds texts")
    model, tokenizer = load_model(directory)
    assert isinstance(model, Encoder)
    if isinstance(tokenizer, MarianPieces):
        raise BadInputError(f"{directory}: a Marian model's tokenizer beside an encoder; they do not belong together")
    return model, tokenizer


def load_encoder_decoder(directory: Path) -> tuple[EncoderDecoder, AnyTokenizer | None]:
    """`load_model` for what turns one text into another. BadInputError for a model of another kind."""
    _check_kind(directory, "encoder_decoder", "turns one text into another")
    model, tokenizer = load_model(directory)
    assert isinstance(model, EncoderDecoder)
    return model, tokenizer


def load_tokenizer(directory: Path) -> AnyTokenizer | None:
    """The tokenizer of a folder: tokenizer.json (byte-level BPE or WordPiece), or Marian's own files; None without."""
    if is_marian_pieces(directory):
        return MarianPieces.load(directory)
    if not (directory / tokenizer_io.TOKENIZER_FILE).is_file():
        return None
    return WordPiece.load(directory) if is_wordpiece(directory) else tokenizer_io.load(directory)


def load_fitting_tokenizer(directory: Path, config: TransformerConfig) -> AnyTokenizer | None:
    """`load_tokenizer`; BadInputError where it has more ids than the model embeds."""
    tokenizer = load_tokenizer(directory)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise BadInputError(f"{directory}: {_vocabulary_message(tokenizer.vocab_size, config.vocab_size)}")
    return tokenizer


def load_config(directory: Path) -> TransformerConfig:
    """The configuration of a model folder; of its tensors only the names are read, which say what parts there are."""
    if not directory.is_dir():
        raise BadInputError(f"{directory}: no such model folder")
    path, weights = directory / CONFIG, directory / WEIGHTS
    values = tensor_files.read_json(path)
    return _read_config(values, path, tensor_files.read_shapes(weights) if weights.is_file() else None)


def _check_kind(directory: Path, kind: KindName, does: str) -> None:
    found = load_config(directory).kind
    if found != kind:
        raise BadInputError(f"{directory}: its model is of kind {found!r}; what {does} is of kind {kind!r}")


def load_state(directory: Path) -> tuple[TransformerConfig, dict[str, Tensor]]:
    """Configuration and state (in the stored dtypes; float32 for what is quantized) of a model folder, checked before
    anything is allocated."""
    config, tensors, scheme = load_stored(directory)
    if scheme is None:
        return config, tensors
    return config, quantized.dequantized(config, scheme, tensors, str(directory / WEIGHTS))


def load_stored(directory: Path) -> tuple[TransformerConfig, dict[str, Tensor], Scheme | None]:
    """`load_state`, with the codes of a quantized folder as they are stored, and their scheme (else None)."""
    if not directory.is_dir():
        raise BadInputError(f"{directory}: no such model folder")
    config_path, weights_path = directory / CONFIG, directory / WEIGHTS
    values = tensor_files.read_json(config_path)
    where = f"{config_path} with {WEIGHTS}"
    if values.get("model_type") != OWN_TYPE:
        _read_config(values, config_path)  # first, so that its errors come before those of the tensors
        found = tensor_files.read_shapes(weights_path)
        family, config = families.read_config(values, str(config_path), found)
        families.stored_names(family, config, found, where)
        config, state = families.from_huggingface(values, tensor_files.read_tensors(weights_path), where)
        return config, state, None
    config = _read_config(values, config_path)
    scheme = quantized.read_scheme(values, str(config_path))
    found = tensor_files.read_shapes(weights_path)
    check_depth(config.num_layers + config.num_decoder_layers, found, where)
    check_shapes(
        parameter_shapes(config) if scheme is None else quantized.stored_shapes(config, scheme, where), found, where
    )
    check_tables(config, where)
    return config, tensor_files.read_tensors(weights_path), scheme


def _read_config(values: Mapping[str, Any], path: Path, stored: Collection[str] | None = None) -> TransformerConfig:
    if values.get("model_type") != OWN_TYPE:
        return families.read_config(values, str(path), stored)[1]
    fields = {key: value for key, value in values.items() if key not in _OWN_KEYS}
    config = validate(TransformerConfig, fields, str(path))
    if config.context > MAX_CONTEXT:
        raise BadInputError(f"{path}: key 'context' = {config.context}: must be at most {MAX_CONTEXT}")
    return config


@overload
def build(config: TransformerConfig, state: Iterable[tuple[str, Tensor]]) -> Model: ...
@overload
def build(config: TransformerConfig, state: Iterable[tuple[str, Tensor]], kind: type[AnyModel]) -> AnyModel: ...
def build(config: TransformerConfig, state: Iterable[tuple[str, Tensor]], kind: type[Any] | None = None) -> Any:
    """A float32 model in evaluation mode that holds `state`; torch's global random state is left as it was.

    state: every tensor of the model by name, taken one after the other. KeyError where one is none of the model's.

    kind: the class that the caller needs; BadInputError where the configuration is of another.
    """
    with _NoDraws():
        model = make_model(config) if kind is None else kind(config)
    places = model.state_dict()
    for name, value in state:
        places.pop(name).copy_(value)
    assert not places, f"nothing was given for {', '.join(places)}"
    return model.eval()


class _NoDraws(TorchFunctionMode):
    """While inside, no initial weights are drawn: every one of them is about to be overwritten."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if (
            func in (Tensor.normal_, Tensor.uniform_, Tensor.zero_)
            or getattr(func, "__module__", None) == "torch.nn.init"
        ):
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def _own_config(config: TransformerConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return {"model_type": OWN_TYPE, **dump(config)}, dict(state)


def _role_ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """The ids that transformers must know to begin, end and pad; null where the tokenizer has no such token."""
    roles = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if tokenizer is None:
        return dict(roles)
    begin, end, padding = tokenizer.roles.begin, tokenizer.roles.end, tokenizer.roles.padding
    found = zip(roles, (begin, end, padding), strict=True)
    return {key: None if role is None else tokenizer.special_tokens[role] for key, role in found}


def _vocabulary_message(tokenizer_size: int, model_size: int) -> str:
    return f"the tokenizer has {tokenizer_size} ids, the model embeds only {model_size}; they do not belong together"
