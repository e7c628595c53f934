"""Recipes: a whole run as one document. `recipes/*.yaml` in the package are examples to copy and edit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from llm_journey.core import config as configuration
from llm_journey.core.config import STRICT
from llm_journey.core.errors import BadInputError
from llm_journey.datasets.chat_preparation import ChatConfig
from llm_journey.datasets.corruption import MASK_TOKEN, RATE
from llm_journey.datasets.pair_files import PAIR_SUFFIXES, SOURCE, TARGET, is_pair_file
from llm_journey.datasets.prepare import DataConfig
from llm_journey.finetuning.config import LoraConfig, PromptConfig
from llm_journey.model.config import TransformerConfig
from llm_journey.tokenizer.config import TokenizerConfig
from llm_journey.training.optim import OptimizerConfig
from llm_journey.training.schedule import ScheduleConfig
from llm_journey.training.tasks import TASKS

RECIPE_FILE = "recipe.yaml"
ObjectiveName = Literal["next_token", "masked", "span", "seq2seq"]
Method = Literal["full", "lora", "qlora", "prompt", "prefix"]
# The kind of model that each objective trains.
_KIND_OF: dict[ObjectiveName, str] = {
    "next_token": "decoder",
    "masked": "encoder",
    "span": "encoder_decoder",
    "seq2seq": "encoder_decoder",
}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained.

    A step takes batch_size * accumulation rows of `context` tokens (null: the model's context). order: "documents"
    shuffles whole documents into one stream (of chats: a row each), "windows" shuffles fixed windows of the text,
    "packed" keeps documents, or chats, apart in each row. stream: train
    on the documents of this file, folder, glob or hub data set as they are read, never stored, for text that does not
    fit on the disk; data.source then gives the tokenizer and the validation text. The budget is `steps`, `tokens` or
    `seconds` of training (validating, sampling and saving not counted); the first that is used up ends the run.
    `validations`, `checkpoints`: how often over the budget, evenly spaced, the last at its end. early_stopping: end
    after so many validations in a row that bring no better loss, with the best model. validation_tokens: of more
    held-out text than this, validations read a sample of its documents, the same each time (null: all). precision
    "auto" is bf16 where the GPU or the processor computes in it, else fp32. gradient_checkpointing: keep of each block
    only what goes in, and compute the rest again for the gradients (a third more time, far less memory).
    corruption_rate: the share of the tokens that objective masked hides and objective span cuts out.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    batch_size: int = 8
    accumulation: int = 1
    order: Literal["documents", "windows", "packed"] = "documents"
    stream: str | None = None
    context: int | None = None
    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    label_smoothing: float = 0.0
    corruption_rate: float = RATE
    compile: bool = False
    gradient_checkpointing: bool = False
    device: str = "auto"
    validations: int = 4
    checkpoints: int = 4
    keep_checkpoints: int = 2
    validation_tokens: int | None = 1_000_000
    early_stopping: int | None = None
    trackers: tuple[Literal["jsonl", "tensorboard", "wandb"], ...] = ("jsonl",)
    sample_prompts: tuple[str, ...] = ()
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "validations", "checkpoints", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.context is not None and self.context < 2:
            raise ValueError(f"context must be at least 2, or null for the model's, not {self.context}")
        if self.stream is not None and self.order != "documents":
            raise ValueError(f"stream takes documents as they come; leave out order (it is {self.order!r})")
        budgets = {"steps": self.steps, "tokens": self.tokens, "seconds": self.seconds}
        if all(value is None for value in budgets.values()):
            raise ValueError("a budget is needed: set steps, tokens or seconds")
        for name, value in budgets.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}")
        if not 0 < self.corruption_rate < 1:
            raise ValueError(f"corruption_rate must lie between 0 and 1, not {self.corruption_rate}")
        if self.validation_tokens is not None and self.validation_tokens < 1:
            raise ValueError(f"validation_tokens must be at least 1, or null for all, not {self.validation_tokens}")
        if self.early_stopping is not None and self.early_stopping < 1:
            raise ValueError("early_stopping must be at least 1 validation, or null")


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """General text among what is learned, against forgetting: `share` of each step's rows come from `source`."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    source: str
    share: float = 0.25
    max_documents: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie between 0 and 1, not {self.share}")


@dataclass(frozen=True, kw_only=True)
class ForgettingConfig:
    """General text on whose first `tokens` tokens each validation measures perplexity: what the model forgets."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    source: str
    tokens: int = 32_000

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise ValueError(f"tokens must be at least 2, not {self.tokens}")


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """Up to so many tokens that the base's tokenizer gets from the training text (tokenizer.extension)."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    new_tokens: int

    def __post_init__(self) -> None:
        if not 1 <= self.new_tokens <= 200_000:
            raise ValueError(f"new_tokens must lie in 1 to 200,000, not {self.new_tokens}")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A teacher whose distributions are learned beside the tokens themselves (training.distillation).

    teacher: a model of the same tokenizer; without `base` the student is new and takes the teacher's. weight: of the
    teacher's term; temperature: what both distributions are softened by. layers: the student begins as `base` with so
    many of its blocks (null: with all).
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    teacher: str
    weight: float = 0.5
    temperature: float = 1.0
    layers: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise ValueError(f"weight must lie above 0 and at most at 1, not {self.weight}")
        if not 0 < self.temperature < 1000:
            raise ValueError(f"temperature must lie above 0, not {self.temperature}")
        if self.layers is not None and self.layers < 1:
            raise ValueError(f"layers must be at least 1, or null for all, not {self.layers}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run: data, tokenizer, model, training, and the seed of all that is drawn.

    objective: what the model learns to give: next_token (a decoder), masked (an encoder), span or seq2seq (an
    encoder-decoder). seq2seq learns pairs of texts: data.source is a task whose pairs are generated (dates), or a file
    of pairs, .jsonl or .tsv with source and target (datasets.pair_files); data.max_documents says how many pairs.

    base: a model to go on from (a run, a catalog name, a folder, a GGUF file); its tokenizer and its shape are taken.
    stage: pretrain learns running text, sft the assistant's turns of chats (`chats`; of `data` the source, the number
    and the split count). method: full trains every weight but those that `frozen` names by pattern; lora an adapter
    beside frozen matrices (`adapter`), qlora the same over matrices in 4 bits (NF4), prompt a few embeddings before
    each chat, prefix the keys and values of a few tokens there (`prompt`). replay mixes general text in, forgetting
    measures what is lost of it. vocabulary gives the base tokens for the text that it learns. distill: learn from a
    teacher's distributions too.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str = "run"
    seed: int = 0
    stage: Literal["pretrain", "sft"] = "pretrain"
    method: Method = "full"
    base: str | None = None
    objective: ObjectiveName = "next_token"
    data: DataConfig
    chats: ChatConfig = field(default_factory=ChatConfig)
    adapter: LoraConfig = field(default_factory=LoraConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    frozen: tuple[str, ...] = ()
    replay: ReplayConfig | None = None
    forgetting: ForgettingConfig | None = None
    vocabulary: VocabularyConfig | None = None
    distill: DistillConfig | None = None
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: TransformerConfig = field(default_factory=TransformerConfig)
    training: TrainingConfig

    def __post_init__(self) -> None:
        if not self.name or not all(character.isalnum() or character in "-_." for character in self.name):
            raise ValueError(f"name {self.name[:100]!r} may hold letters, digits, '-', '_' and '.' only")
        if self.name.startswith(".") or len(self.name) > 100:
            raise ValueError(f"name {self.name[:100]!r} must not begin with '.' nor be longer than 100 characters")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")
        self._check_objective()
        self._check_stage()
        self._check_distill()

    def _check_stage(self) -> None:
        fine_tunes = {"stage": self.stage != "pretrain", "method": self.method != "full", "frozen": bool(self.frozen)}
        fine_tunes |= {name: getattr(self, name) is not None for name in ("replay", "forgetting", "vocabulary")}
        for name, is_set in fine_tunes.items():
            if is_set and self.base is None:
                raise ValueError(f"{name} {getattr(self, name)!r} needs a model to go on from; give base")
        if self.base is None:
            return
        if self.objective != "next_token":
            raise ValueError(f"base goes with objective next_token, not {self.objective}")
        if self.stage == "sft" and (self.training.stream is not None or self.training.order == "windows"):
            raise ValueError("stage sft takes chats: leave out training.stream; training.order: documents or packed")
        if self.chats.scored and self.stage != "sft":
            raise ValueError("chats.scored needs chats: stage sft")
        if self.replay is not None and (self.stage == "sft" or self.training.stream is not None):
            raise ValueError("replay goes with running text: stage pretrain, without training.stream")
        if self.replay is not None and not 0 < self.replay_rows < self.training.batch_size:
            raise ValueError(f"replay.share {self.replay.share} of {self.training.batch_size} rows is none, or all")
        if self.vocabulary is not None and (self.stage == "sft" or self.is_adapted or self.distill is not None):
            raise ValueError(
                "vocabulary is learned from running text, all weights trained: stage pretrain, method full"
            )
        if self.is_adapted and self.training.optimizer.name == "muon":
            raise ValueError(f"method {self.method} needs training.optimizer.name adamw or adamw8bit, not muon")
        if self.method in ("prompt", "prefix") and self.stage != "sft":
            raise ValueError(f"method {self.method} stands in front of chats: stage sft")
        if self.method == "prefix" and self.training.gradient_checkpointing:
            raise ValueError("training.gradient_checkpointing does nothing for method prefix; leave it out")
        if self.is_adapted and self.frozen:
            raise ValueError(f"method {self.method} freezes everything but its adapter; leave out frozen")

    def _check_distill(self) -> None:
        if self.distill is None:
            return
        if self.objective != "next_token":
            raise ValueError(f"distill goes with objective next_token, not {self.objective}")
        if self.training.label_smoothing:
            raise ValueError("distill softens its targets itself; leave out training.label_smoothing")
        if self.method in ("prompt", "prefix"):
            raise ValueError(f"distill needs one tokenizer on both sides; method {self.method} adds tokens")
        if self.distill.layers is not None and self.base is None:
            raise ValueError("distill.layers counts the blocks of base; give base")

    @property
    def is_adapted(self) -> bool:
        """Whether an adapter is trained, the model's own weights staying as they are."""
        return self.method != "full"

    @property
    def replay_rows(self) -> int:
        """Rows of a micro-batch that are general text."""
        return 0 if self.replay is None else round(self.replay.share * self.training.batch_size)

    @property
    def row_length(self) -> int:
        """Tokens of a row that is trained on."""
        return self.training.context or self.model.context

    def _check_objective(self) -> None:
        kind = _KIND_OF[self.objective]
        if self.model.kind != kind:
            raise ValueError(f"objective {self.objective} trains model.kind {kind}, not {self.model.kind}")
        if self.objective in ("masked", "span") and self.training.order == "packed":
            raise ValueError(f"objective {self.objective} takes running text; set training.order to documents")
        if self.objective == "masked" and MASK_TOKEN not in self.tokenizer.special_tokens:
            raise ValueError(f"objective masked needs {MASK_TOKEN} among tokenizer.special_tokens")
        if self.objective == "masked" and not all(MASK_TOKEN in prompt for prompt in self.training.sample_prompts):
            raise ValueError(f"objective masked fills masks; each of training.sample_prompts must hold {MASK_TOKEN}")
        if self.objective == "seq2seq" and self.data.source not in TASKS and not is_pair_file(self.data.source):
            raise ValueError(
                f"objective seq2seq: data.source {self.data.source!r} is no task; known: {', '.join(TASKS)}, or a "
                f"file of pairs ({', '.join(PAIR_SUFFIXES)}) with {SOURCE!r} and {TARGET!r}"
            )
        if self.objective == "seq2seq" and self.training.stream is not None:
            raise ValueError("objective seq2seq reads pairs, which are no stream; leave out training.stream")

    def with_base(self, config: TransformerConfig) -> "Recipe":
        """This recipe with the shape of the model that it goes on from.

        Raises BadInputError where it asks for another shape, or for longer rows than that model reads.
        """
        known = [TransformerConfig(), config]
        if self.vocabulary is not None:  # a saved recipe names the larger one
            known.append(replace(config, vocab_size=self.model.vocab_size))
        if self.model not in known:
            raise BadInputError(f"model is that of base ({self.base}); leave it out")
        if self.training.context is not None and self.training.context > config.context:
            raise BadInputError(
                f"training.context is {self.training.context}, {self.base} reads at most {config.context} tokens"
            )
        return replace(self, model=config)

    def with_vocabulary(self, vocab_size: int) -> "Recipe":
        """This recipe with the model's vocabulary set to the tokenizer's true size.

        Raises BadInputError where the recipe asks for a smaller model vocabulary.
        """
        if self.model.vocab_size not in (0, vocab_size) and self.model.vocab_size < vocab_size:
            raise BadInputError(
                f"model.vocab_size {self.model.vocab_size} is smaller than the tokenizer's {vocab_size}; leave it out"
            )
        return replace(self, model=replace(self.model, vocab_size=self.model.vocab_size or vocab_size))


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files("llm_journey"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name, a YAML file, or a run's folder (a run is itself a recipe); then the overrides.

    Raises BadInputError naming the file, the key, the value and what is allowed.
    """
    shipped = shipped_recipes()
    path = Path(name_or_path)
    if str(name_or_path) in shipped:
        path = shipped[str(name_or_path)]
    elif path.is_dir():
        path = path / RECIPE_FILE
    elif not path.exists() and path.parent == Path("recipes") and path.stem in shipped:  # as in the repository
        path = shipped[path.stem]
    elif not path.exists():
        raise BadInputError(f"{name_or_path}: no such recipe file; shipped recipes: {', '.join(shipped)}")
    return recipe_from(configuration.read_yaml(path), str(path), overrides)


def recipe_from(mapping: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from plain values; `where` names them in errors."""
    if overrides:
        mapping, where = configuration.override(mapping, overrides), f"{where} with --set {' '.join(overrides)}"
    return configuration.validate(Recipe, mapping, where)
