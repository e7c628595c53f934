"""A model by name, with text in and text out: what `generate`, `chat` and `llm_journey.load` use.

The ids are generation's business; here is the text side of it. A prompt that does not fit the context is refused with
both counts, never cut in silence (ollama#17889).
"""

import codecs
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_journey.app.runs import MODEL_FOLDER, RUN_FILE, find_run, has_run, suggestion
from llm_journey.core.config import override, validate
from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.chat_template import TURN_TOKENS, encode_chat

if TYPE_CHECKING:
    from llm_journey.generation.decode import Generation
    from llm_journey.generation.sampling import SamplingConfig
    from llm_journey.inspection.reading import Reading
    from llm_journey.model.decoder import Decoder

Message = Mapping[str, Any]
# Keys of generation_config.json that are ours too; the others there are about ids or other libraries' switches.
_SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
_CAN_OPEN = "a run, or a folder of the gpt2, llama or qwen3 family with model.safetensors, can be opened"


@dataclass
class Reply:
    """Text that comes piece by piece as it is iterated; afterwards `text` and `finish_reason` are whole."""

    _tokenizer: Tokenizer
    _generation: "Generation"
    text: str = ""

    def __iter__(self) -> Iterator[str]:
        # A character may be spread over several tokens: bytes are held back until they are whole.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in self._generation:
            yield from self._say(decoder.decode(self._tokenizer.id_to_bytes(token)))
        yield from self._say(decoder.decode(b"", final=True))

    def _say(self, piece: str) -> Iterator[str]:
        self.text += piece
        if piece:
            yield piece

    @property
    def num_tokens(self) -> int:
        """New tokens so far."""
        return len(self._generation.new_ids)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, the begin token included."""
        return self._generation.prompt_length

    @property
    def finish_reason(self) -> str | None:
        """stop, length or context; None while it is going on."""
        return self._generation.finish_reason


@dataclass(frozen=True)
class LanguageModel:
    """A decoder with its tokenizer. `defaults` are the sampling settings of its generation_config.json."""

    name: str
    directory: Path
    decoder: "Decoder"
    tokenizer: Tokenizer
    defaults: dict[str, Any] = field(default_factory=dict)
    stop_ids: frozenset[int] = frozenset()

    @property
    def run(self) -> Path | None:
        """The folder of the training run that the model comes from, None where it comes from elsewhere."""
        return _run_of(self.directory)

    def generate(self, text: str, **settings: Any) -> str:
        """The continuation of `text`.

        settings: fields of generation.sampling.SamplingConfig (temperature, top_k, top_p, min_p, repetition_penalty,
        seed, max_new_tokens) over the model's own defaults. Raises BadInputError for a prompt longer than the context
        (with both counts) or a setting that is wrong.
        """
        return _exhaust(self.stream(text, settings=settings))

    def chat(self, messages: str | Sequence[Message], **settings: Any) -> str:
        """The model's reply to a conversation: messages {"role", "content"}, or one user message as text.

        Raises BadInputError where the model has no chat template or the conversation does not fit the context.
        """
        return _exhaust(self.stream_chat(messages, settings=settings))

    def stream(self, text: str, *, settings: Mapping[str, Any] | None = None) -> Reply:
        """The continuation of `text`, piece by piece."""
        return self._reply(self._begin() + self.tokenizer.encode(text), settings or {})

    def stream_chat(self, messages: str | Sequence[Message], *, settings: Mapping[str, Any] | None = None) -> Reply:
        """The reply to a conversation, piece by piece."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self._reply(encode_chat(self.tokenizer, messages, add_generation_prompt=True), settings or {})

    def inspect(self, text: str, *, layers: Sequence[int] | None = None) -> "Reading":
        """What the model does while it reads `text`, as `generate` would: token probabilities, logit lens, attention.

        layers: keep attention maps of these only (None: all). Raises BadInputError as `generate` does.
        """
        from llm_journey.app.inspect import inspect_prompt

        return inspect_prompt(self, text, self._begin() + self.tokenizer.encode(text), layers=layers)

    def sampling(self, settings: Mapping[str, Any]) -> "SamplingConfig":
        """The model's defaults with `settings` over them. Raises BadInputError naming the key that is wrong."""
        from llm_journey.generation.sampling import SamplingConfig

        return validate(SamplingConfig, {**self.defaults, **settings}, "sampling settings")

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) rows that describe the model."""
        config = self.decoder.config
        parameters = sum(parameter.numel() for parameter in self.decoder.parameters())
        return [
            ("Model", self.name),
            ("Parameters", f"{parameters:,}"),
            ("Context", f"{config.context:,} tokens"),
            ("Vocabulary", f"{self.tokenizer.vocab_size:,} tokens"),
            ("Shape", f"{config.num_layers} layers, {config.width} wide, {config.num_heads} heads"),
            ("Chat template", "yes" if self.tokenizer.chat_template else "none"),
            ("Folder", str(self.directory)),
        ]

    def _begin(self) -> list[int]:
        """The begin token where it is the end token too: in such training a document always follows it (GPT-2)."""
        roles = self.tokenizer.roles
        return [self.tokenizer.end_id] if roles.end is not None and roles.begin == roles.end else []

    def _reply(self, ids: Sequence[int], settings: Mapping[str, Any]) -> Reply:
        from llm_journey.generation.decode import generate

        return Reply(self.tokenizer, generate(self.decoder, ids, self.sampling(settings), stop_ids=self.stop_ids))

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><td>{escape(label)}</td><td>{escape(value)}</td></tr>" for label, value in self.rows())
        return f"<table>{cells}</table>"


def open_model(name_or_path: str) -> LanguageModel:
    """The model of a run's name, a catalog name, or a folder. Raises BadInputError that says what can be opened."""
    from llm_journey.checkpoint.model_folder import load_model

    directory = find_model(name_or_path)
    decoder, tokenizer = load_model(directory)
    if tokenizer is None:
        raise BadInputError(f"{directory}: holds no tokenizer.json, so no text can go in; put the tokenizer there")
    defaults, stop_ids = _generation_config(directory, tokenizer)
    return LanguageModel(_name_of(name_or_path, directory), directory, decoder, tokenizer, defaults, stop_ids)


def find_model(name_or_path: str) -> Path:
    """The folder of a model: a folder in Hugging Face layout, a run (its model, else its last whole checkpoint), or a
    catalog model that lies on this machine in a form that can be opened."""
    path = Path(name_or_path).expanduser()
    if (path / "config.json").is_file():
        return path
    if has_run(name_or_path):
        return _model_of_run(find_run(name_or_path).directory)
    if path.is_dir():
        return path
    from llm_journey.datasets.catalog import CATALOG

    if name_or_path in CATALOG:
        return _catalog_model(name_or_path)
    models = ", ".join(name for name, entry in CATALOG.items() if entry.kind == "model")
    raise BadInputError(
        f"unknown model {name_or_path!r}: no folder, no run ({suggestion(name_or_path)}), no catalog model ({models})"
    )


def parse_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as sampling settings."""
    return override({}, assignments)


def _name_of(name_or_path: str, directory: Path) -> str:
    """The name of the run that a model's folder lies in, else the name it was asked for by, without its path."""
    run = _run_of(directory)
    return run.name if run is not None else Path(name_or_path).name


def _run_of(directory: Path) -> Path | None:
    """The run whose model/ or checkpoint a folder is."""
    around = (directory.parent, directory.parent.parent)
    return next((folder for folder in around if (folder / RUN_FILE).is_file()), None)


def _model_of_run(directory: Path) -> Path:
    if (directory / MODEL_FOLDER / "config.json").is_file():
        return directory / MODEL_FOLDER
    from llm_journey.checkpoint.training_state import latest_checkpoint

    checkpoint = latest_checkpoint(directory / "checkpoints")
    if checkpoint is None:
        raise BadInputError(f"run {directory.name!r} has saved no model yet; `journey train {directory.name} --resume`")
    return checkpoint.path


def _catalog_model(name: str) -> Path:
    """A catalog model's folder on this machine. Nothing is pulled here: a model's size is for a person to agree to."""
    from llm_journey.datasets.catalog import CATALOG, locate

    entry = CATALOG[name]
    if entry.kind != "model":
        raise BadInputError(f"{name!r} is a {entry.kind}, not a model; `journey models list` shows the models")
    if "generation_config.json" not in {file.name for file in entry.files}:
        raise BadInputError(f"{name!r} ({entry.title}) generates no text; {_CAN_OPEN}")
    folder = locate(entry)
    if folder is None:
        raise BadInputError(
            f"{name!r} is not on this machine; run `journey models pull {name}` first ({entry.size() / 1e6:.0f} MB)"
        )
    if not (folder / "model.safetensors").is_file():
        held = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise BadInputError(
            f"{name!r} is here as {held} only, which cannot be opened yet; {_CAN_OPEN} "
            f"(the hub serves {name} in that form)"
        )
    return folder


def _generation_config(directory: Path, tokenizer: Tokenizer) -> tuple[dict[str, Any], frozenset[int]]:
    """Sampling defaults and the ids that end a text, from generation_config.json where there is one."""
    from llm_journey.checkpoint.tensor_files import read_json

    path = directory / "generation_config.json"
    values = read_json(path) if path.is_file() else {}
    defaults = {key: values[key] for key in _SAMPLING_KEYS if values.get(key) is not None}
    found = values.get("eos_token_id")
    ids = {item for item in (found if isinstance(found, list) else [found]) if isinstance(item, int)}
    if tokenizer.roles.end is not None:
        ids.add(tokenizer.end_id)
    if TURN_TOKENS[1] in tokenizer.special_tokens:
        ids.add(tokenizer.special_tokens[TURN_TOKENS[1]])
    return defaults, frozenset(ids)


def _exhaust(reply: Reply) -> str:
    for _ in reply:
        pass
    return reply.text
