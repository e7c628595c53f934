"""A model by name, with text in and text out: what `generate`, `chat` and `llm_journey.load` use.

The ids are generation's business; here is the text side of it. A prompt that does not fit the context is refused with
both counts, never cut in silence (ollama#17889). Answers come from an engine, which is made with the first of them.
"""

import gc
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from llm_journey.app.find_models import GGUF_SUFFIX, find_text_model, model_name, run_of
from llm_journey.core.config import override, validate
from llm_journey.core.errors import BadInputError, unknown_name
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.chat_template import TURN_TOKENS, encode_chat

if TYPE_CHECKING:
    from llm_journey.generation.engine import Constraint, Engine, Request, Token
    from llm_journey.generation.sampling import SamplingConfig
    from llm_journey.generation.speculative import Drafter
    from llm_journey.inspection.reading import Reading
    from llm_journey.model.config import TransformerConfig
    from llm_journey.model.decoder import Decoder

Message = Mapping[str, Any]
Precision = Literal["auto", "float32", "bfloat16", "int8", "int4"]
# Keys of generation_config.json that are ours too; the others there are about ids or other libraries' switches.
_SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "max_new_tokens")
_CONSTRAINTS = ("schema", "regex", "choices")  # settings that are no numbers of a sampler
_ADAPTER = "adapter"  # what the engine of a model with one calls it
_INT4_BITS, _INT8_BITS = 5.0, 9.0  # bits of a weight, scales included: Q4_1 has 5, Q8_0 8.5


class Reply:
    """Text that comes piece by piece as it is iterated; afterwards `text` and `finish_reason` are whole.

    Computing begins with the first piece. Whoever stops iterating lets the request go.
    """

    def __init__(self, model: "LanguageModel", submit: "Callable[[], Request]", ids: Sequence[int]) -> None:
        self.text = ""
        self.prompt_tokens = len(ids)  # the begin token included
        self._model, self._submit = model, submit
        self._request: Request | None = None
        self._finish_reason: str | None = None

    def __iter__(self) -> Iterator[str]:
        from llm_journey.generation.stop import TextOut
        from llm_journey.generation.stream import Stream

        if self._request is not None:
            return
        engine, lock = self._model.engine, self._model.lock
        with lock:
            request = self._request = self._submit()
        tokens, out = Stream(engine, request), TextOut(request.config.stop)
        try:
            while not out.stopped:
                with lock:
                    token = next(tokens, None)
                if token is None:
                    break
                yield from self._say(out.feed(self._model.tokenizer.id_to_bytes(token.id)))
            if request.error is not None:
                raise request.error
            yield from self._say(out.finish())
            self._finish_reason = "stop" if out.stopped else request.finish_reason
        finally:
            with lock:
                tokens.close()

    def _say(self, piece: str) -> Iterator[str]:
        self.text += piece
        if piece:
            yield piece

    @property
    def tokens(self) -> "Sequence[Token]":
        """The new tokens so far, with their log-probabilities where `logprobs` asked for them."""
        return [] if self._request is None else self._request.tokens

    @property
    def num_tokens(self) -> int:
        """New tokens so far."""
        return len(self.tokens)

    @property
    def finish_reason(self) -> str | None:
        """stop, length or context; None while it is going on."""
        return self._finish_reason

    @property
    def guesses(self) -> tuple[int, int]:
        """How many tokens were guessed, and how many of them came true; (0, 0) where nothing guesses."""
        return (0, 0) if self._request is None else (self._request.num_guessed, self._request.num_kept)


class LanguageModel:
    """A decoder with its tokenizer. `directory` is its folder, or its GGUF file. `defaults` are the sampling settings
    that it came with. `lock` is for its engine, which is for one thread at a time.

    Weights are held once: as the decoder until the first answer, in the engine's form from then on. Where the decoder
    is asked for again (to be looked into, or exported), `load` reads it anew; without `load` it is kept.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        decoder: "Decoder",
        tokenizer: Tokenizer,
        defaults: Mapping[str, Any] | None = None,
        stop_ids: frozenset[int] = frozenset(),
        *,
        precision: Precision = "float32",
        compile: bool | None = None,
        adapter: Path | None = None,
        load: "Callable[[], Decoder] | None" = None,
    ) -> None:
        self.name, self.directory, self.tokenizer = name, directory, tokenizer
        self.defaults, self.stop_ids, self.precision = dict(defaults or {}), stop_ids, precision
        self.config: TransformerConfig = decoder.config
        self.compile, self.adapter = compile, adapter
        self.lock = threading.RLock()
        self._decoder: Decoder | None = decoder
        self._load = load
        self._engine: Engine | None = None

    @property
    def decoder(self) -> "Decoder":
        """The model itself, its weights in float32."""
        if self._decoder is None:
            assert self._load is not None
            self._decoder = self._load()
        return self._decoder

    @property
    def engine(self) -> "Engine":
        """What answers, with room for one context; made at the first call."""
        with self.lock:
            if self._engine is None:
                adapters = {} if self.adapter is None else {_ADAPTER: self.adapter}
                self._engine = self.make_engine(adapters, several=False, cache_tokens=self.config.context)
            return self._engine

    def make_engine(self, adapters: Mapping[str, Path] | None = None, *, several: bool = True, **room: Any) -> "Engine":
        """An engine of its own over the weights in this model's precision.

        adapters: folders by the names that answers ask for them by. several: steps are compiled for several answers at
        a time too. room: fields of engine.EngineConfig. Raises BadInputError for an adapter that does not fit.
        """
        from llm_journey.generation.engine import Engine, EngineConfig
        from llm_journey.generation.runner import Runner

        weights = "float32" if self.precision == "auto" else self.precision
        runner = Runner(self.decoder, weights)
        for name, folder in (adapters or {}).items():
            from llm_journey.app.engine_adapters import read_engine_adapter

            _warn_of_other_base(folder, self.name)
            runner.add_adapter(name, read_engine_adapter(self.decoder, folder))
        if self._load is not None:
            self._decoder = None
            gc.collect()
        if self.compile:
            runner.compile(several=several, on_work=_say_once)
        elif self.compile is None:
            runner.use_kept(on_trouble=_warn)
        return Engine(runner, EngineConfig(**room))

    @property
    def run(self) -> Path | None:
        """The folder of the training run that the model comes from, None where it comes from elsewhere."""
        return run_of(self.directory)

    @property
    def learned_chats(self) -> bool:
        """Whether a training run made it of chats; a run of plain text goes on writing rather than answers."""
        from llm_journey.training.recipe import load_recipe

        return self.run is not None and load_recipe(self.run).stage == "sft"

    def generate(self, text: str, **settings: Any) -> str:
        """The continuation of `text`.

        settings: fields of generation.sampling.SamplingConfig (temperature, top_k, top_p, stop, seed, max_new_tokens
        and more) over the model's own defaults; schema=, regex= or choices= for what the answer must be (see
        generation.constrained). Raises BadInputError for a prompt longer than the context (with both counts) or a
        setting that is wrong.
        """
        return _exhaust(self.stream(text, **settings))

    def chat(self, messages: str | Sequence[Message], **settings: Any) -> str:
        """The model's reply to a conversation: messages {"role", "content"}, or one user message as text.

        settings: as of `generate`. Raises BadInputError where the model has no chat template or the conversation does
        not fit the context.
        """
        return _exhaust(self.stream_chat(messages, **settings))

    def beams(self, text: str, **settings: Any) -> list[tuple[str, float]]:
        """(text, log-probability) of the most probable continuations of `text`, best first, by beam search.

        settings: fields of generation.beam.BeamConfig. In float32 where the model has such weights. Raises
        BadInputError as `generate` does.
        """
        from llm_journey.generation.beam import BeamConfig, continue_text, wu_penalty

        if self.adapter is not None:
            raise BadInputError("beam search takes plain models; write one: journey adapters merge")
        config, ids = validate(BeamConfig, settings, "beam settings"), self.prompt_ids(text)
        new_tokens = config.max_new_tokens or self.sampling({}).max_new_tokens
        found = continue_text(
            self.decoder,
            ids,
            end_ids=self.stop_ids,
            max_length=max(1, min(new_tokens, self.config.context - len(ids))),
            num_beams=config.num_beams,
            penalty=wu_penalty(config.length_penalty),
            early_stopping=config.early_stopping,
        )
        return [(self.tokenizer.decode(list(each.ids)), each.log_probability) for each in found]

    def stream(self, text: str, *, draft: "LanguageModel | None" = None, **settings: Any) -> Reply:
        """The continuation of `text`, piece by piece. settings: as of `generate`. draft: a smaller model of the same
        tokenizer, which guesses tokens for this one to judge; it changes the speed alone."""
        return self._reply(self.prompt_ids(text), settings, draft)

    def stream_chat(
        self,
        messages: str | Sequence[Message],
        *,
        draft: "LanguageModel | None" = None,
        **settings: Any,
    ) -> Reply:
        """The reply to a conversation, piece by piece. settings: as of `generate`; draft: as of `stream`."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        ids = encode_chat(self.tokenizer, messages, add_generation_prompt=True)
        return self._reply(ids, settings, draft)

    def inspect(self, text: str, *, layers: Sequence[int] | None = None) -> "Reading":
        """What the model does while it reads `text`, as `generate` would: token probabilities, logit lens, attention.

        layers: keep attention maps of these only (None: all). Raises BadInputError as `generate` does.
        """
        from llm_journey.app.inspect import inspect_prompt

        return inspect_prompt(self, text, self.prompt_ids(text), layers=layers)

    def sampling(self, settings: Mapping[str, Any]) -> "SamplingConfig":
        """The model's defaults with `settings` over them. Raises BadInputError naming the key that is wrong."""
        from llm_journey.generation.sampling import SamplingConfig

        chosen = {key: value for key, value in settings.items() if key not in _CONSTRAINTS}
        return validate(SamplingConfig, {**self.defaults, **chosen}, "sampling settings")

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) rows that describe the model."""
        from llm_journey.model.cost import count_parameters

        config = self.config
        return [
            ("Model", self.name),
            ("Parameters", f"{count_parameters(config).total:,}"),
            ("Context", f"{config.context:,} tokens"),
            ("Vocabulary", f"{self.tokenizer.vocab_size:,} tokens"),
            ("Shape", f"{config.num_layers} layers, {config.width} wide, {config.num_heads} heads"),
            ("Chat template", "yes" if self.tokenizer.chat_template else "none"),
            ("Folder", str(self.directory)),
        ]

    def prompt_ids(self, text: str) -> list[int]:
        """What the model continues from: as transformers and llama.cpp tokenize a bare text; the begin token for an
        empty one, where the tokenizer has such a token."""
        begin = self.tokenizer.roles.begin
        if text or begin is None:
            return self.tokenizer.frame(self.tokenizer.encode(text))
        return [self.tokenizer.special_tokens[begin]]

    def _reply(self, ids: Sequence[int], settings: Mapping[str, Any], draft: "LanguageModel | None") -> Reply:
        from llm_journey.generation.prompt import check_prompt

        config = self.sampling(settings)
        check_prompt(ids, self.config.vocab_size, self.config.context)
        constraint = self.constraint(settings)
        drafter = None if draft is None else self._drafter(draft, config)

        def submit() -> "Request":
            return self.engine.submit(
                ids,
                config,
                stop_ids=self.stop_ids,
                constraint=constraint,
                drafter=drafter,
                adapter=None if self.adapter is None else _ADAPTER,
            )

        return Reply(self, submit, ids)

    def constraint(self, settings: Mapping[str, Any]) -> "Constraint | None":
        """What `settings` say by schema, regex or choices about an answer; None where they say nothing."""
        given = {key: settings[key] for key in _CONSTRAINTS if settings.get(key) is not None}
        if not given:
            return None
        from llm_journey.generation.constrained import make_constraint

        tokens = self.sampling(settings).max_new_tokens
        return make_constraint(self.tokenizer, **given, stop_ids=self.stop_ids, max_new_tokens=tokens)

    def _drafter(self, draft: "LanguageModel", config: "SamplingConfig") -> "Drafter":
        from llm_journey.generation.speculative import DraftModel

        if (
            draft.tokenizer.fingerprint != self.tokenizer.fingerprint
            or draft.config.vocab_size != self.config.vocab_size
        ):
            raise BadInputError(
                f"{draft.name} cannot guess for {self.name}: their tokenizers differ; take a draft model with the same"
            )
        return DraftModel(draft.engine.runner, config)

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><td>{escape(label)}</td><td>{escape(value)}</td></tr>" for label, value in self.rows())
        return f"<table>{cells}</table>"


def open_model(
    name_or_path: str, precision: str = "auto", *, compile: bool | None = None, adapter: Path | None = None
) -> LanguageModel:
    """The model of a run's name, a catalog name, a folder, or a GGUF file. A catalog model that is not on this machine
    is pulled, which is said on standard error.

    precision: of the weights that it answers with; auto: as many bits as its file holds (see `stored_precision`).
    compile: answer by compiled steps (generation.compiled), by none, or (None) where they were compiled before.
    adapter: the folder of one to answer with, beside the weights (its answers are not compiled).
    Raises BadInputError that says what can be opened.
    """
    if precision not in get_args(Precision):
        raise unknown_name("precision", precision, get_args(Precision))
    path = find_text_model(name_or_path)
    from llm_journey.checkpoint.decoders import read_decoder

    stored = read_decoder(path)
    tokenizer, generation = stored.tokenizer, stored.generation
    defaults = {key: generation[key] for key in _SAMPLING_KEYS if generation.get(key) is not None}
    stop_ids = stop_ids_of(generation, tokenizer)
    return LanguageModel(
        model_name(name_or_path, path),
        path,
        stored.decoder,
        tokenizer,
        _recommended(name_or_path) | defaults,
        stop_ids,
        precision=stored_precision(path, stored.decoder.config) if precision == "auto" else precision,  # type: ignore[arg-type]
        compile=compile,
        adapter=adapter,
        load=lambda: read_decoder(path).decoder,
    )


def stored_precision(path: Path, config: "TransformerConfig") -> Precision:
    """What a model's file holds of its layers, as a form of the engine: float weights are float32, so that a person's
    own model gives the same logits everywhere; a GGUF file's are int8 or int4 where most of its matrices are.

    A quantized folder says float32: its layers bring their own codes.
    """
    if path.suffix != GGUF_SUFFIX:
        return "float32"
    from llm_journey.checkpoint.gguf.reader import GgufFile

    bits: Counter[float] = Counter()
    for name, facts in GgufFile(path).tensors.items():
        if name.startswith("blk.") and len(facts.shape) == 2:
            bits[8 * facts.kind.num_bytes(facts.kind.block) / facts.kind.block] += math.prod(facts.shape)
    most = max(bits, key=lambda each: bits[each], default=32)
    if most > _INT8_BITS:
        return "float32"
    inputs = (config.width, config.num_heads * config.head_width, config.mlp_width)
    return "int4" if most <= _INT4_BITS and all(width % 32 == 0 for width in inputs) else "int8"


def parse_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as sampling settings."""
    return override({}, assignments)


def _warn_of_other_base(folder: Path, name: str) -> None:
    """Shapes alone do not tell whether an adapter was trained on this model."""
    from llm_journey.core.console import messages
    from llm_journey.finetuning.peft_format import read_base

    base = read_base(folder)
    if base and Path(base).name.casefold() not in name.casefold() and name.casefold() not in base.casefold():
        said = f"{folder.name}: says that it was trained on {base}, not on {name}; beside another model it is noise"
        messages().print(said, markup=False, soft_wrap=True)


def _say_once(what: str) -> None:
    from llm_journey.core.console import messages

    messages().print(f"compiling {what} for this machine; it is kept", markup=False, soft_wrap=True)


def _warn(what: str) -> None:
    from llm_journey.core.console import messages

    messages().print(f"going on without compiled steps: {what}", markup=False, soft_wrap=True)


def _recommended(name: str) -> dict[str, Any]:
    """The sampling settings that a catalog model's makers ship, for the forms that leave them out."""
    from llm_journey.datasets.catalog import CATALOG

    return dict(CATALOG[name].sampling) if name in CATALOG else {}


def stop_ids_of(generation: Mapping[str, Any], tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end a text: the end token, the end of a chat's turn, and what generation_config.json names."""
    found = generation.get("eos_token_id")
    ids = {item for item in (found if isinstance(found, list) else [found]) if isinstance(item, int)}
    if tokenizer.roles.end is not None:
        ids.add(tokenizer.end_id)
    if TURN_TOKENS[1] in tokenizer.special_tokens:
        ids.add(tokenizer.special_tokens[TURN_TOKENS[1]])
    return frozenset(ids)


def _exhaust(reply: Reply) -> str:
    for _ in reply:
        pass
    return reply.text
