"""From a recipe to what training reads: prepared text, a tokenizer, token shards. Done once for the same recipe.

Everything lies in the cache under names made from what decides it, so that a second run reuses it:

    prepared/<data>/                  the split and cleaned text (datasets.prepare)
    prepared/<data>-<tokenizer>/      tokenizer files, vocabulary.json, train and validation shards
    prepared/dates-<data, tokenizer>/ the same of a task with pairs (or pairs-..., of a file): sources and targets
    prepared/chats-<data, tokenizer>/ chats as shards (datasets.chat_preparation)

A run that goes on from a model takes that model's tokenizer.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_journey.core import config as configuration
from llm_journey.core import files
from llm_journey.core.errors import BadInputError
from llm_journey.core.locks import one_at_a_time
from llm_journey.core.paths import cache_dir
from llm_journey.datasets.catalog import CATALOG, is_catalog_file
from llm_journey.datasets.catalog import resolve as resolve_source
from llm_journey.datasets.chat_files import chat_files, chat_rows
from llm_journey.datasets.chat_preparation import CHATS_VERSION, PreparedChats, prepare_chats
from llm_journey.datasets.corruption import MASK_TOKEN, SENTINEL_PREFIX
from llm_journey.datasets.held_out import HeldOut
from llm_journey.datasets.made_chats import MADE_CHATS, made_rows, made_version
from llm_journey.datasets.pair_files import Pairs, is_pair_file, read_pair_file, split_pairs
from llm_journey.datasets.prepare import DataConfig, PreparationReport, iterate_texts, prepare_documents
from llm_journey.datasets.shards import TokenShards, write_shards
from llm_journey.text.readers import Problem
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer import io as tokenizer_io
from llm_journey.tokenizer.extension import extended
from llm_journey.tokenizer.report import vocabulary_report
from llm_journey.tokenizer.train import train_tokenizer
from llm_journey.training.observer import Observer
from llm_journey.training.recipe import ObjectiveName, Recipe, ReplayConfig
from llm_journey.training.tasks import DEFAULT_PAIRS, find_task

VOCABULARY_FILE = "vocabulary.json"
_PROBLEMS_SHOWN = 5
_WAITING = "another process prepares the same data; waiting for it, its work will be used"


@dataclass(frozen=True)
class Inputs:
    """What a run trains and validates on. `prepared` holds the text, `directory` the tokenizer and the shards.

    Of a task with pairs, `train` and `validation` are the sources; `train_targets` and `validation_targets` hold what
    is to be written for them; of chats they hold which tokens are trained; elsewhere they are None. text_fingerprint
    identifies what `prepared` held then; another preparation may replace it later.
    """

    tokenizer: Tokenizer
    train: TokenShards
    validation: TokenShards
    preparation: PreparationReport
    vocabulary: dict[str, Any]
    prepared: Path
    directory: Path
    text_fingerprint: str
    train_targets: TokenShards | None = None
    replay: TokenShards | None = None  # general text to be mixed in
    validation_targets: TokenShards | None = None

    def fingerprints(self) -> dict[str, str]:
        """What identifies the data and the tokenizer; a resumed run must find the same (NeMo-RL#2519)."""
        found = {
            "train": self.train.fingerprint,
            "validation": self.validation.fingerprint,
            "tokenizer": self.tokenizer.fingerprint,
        }
        if self.train_targets is not None and self.validation_targets is not None:
            found |= {
                "train targets": self.train_targets.fingerprint,
                "validation targets": self.validation_targets.fingerprint,
            }
        if self.replay is not None:
            found["replay"] = self.replay.fingerprint
        return found


def prepare_inputs(
    recipe: Recipe,
    *,
    base: Tokenizer | None = None,
    observer: Observer | None = None,
    resolve: Callable[[str], Path] = resolve_source,
) -> Inputs:
    """Prepare the data, train the tokenizer and write the shards of `recipe`, or reuse what was done before.

    base: the tokenizer of the model that the run goes on from. Raises BadInputError for data that cannot be used and
    JourneyError where the cache cannot be written.
    """
    observer = observer or Observer()
    if recipe.base is not None and base is None:
        raise BadInputError(f"the recipe goes on from {recipe.base}, whose tokenizer was not given")
    if recipe.stage == "sft":
        assert base is not None
        return _prepare_chats(recipe, base, observer, resolve)
    if recipe.objective == "seq2seq":
        return _prepare_pairs(recipe, observer)
    prepared = cache_dir() / "prepared" / files.sha256_json(configuration.dump(recipe.data))[:16]
    observer.stage("preparing the text")
    preparation = prepare_documents(
        recipe.data,
        prepared,
        resolve=resolve,
        on_progress=lambda read, _: observer.progress(read, None, "documents"),
        on_wait=lambda: observer.message(_WAITING),
    )
    for notice in preparation.notices:
        observer.message(notice)
    for problem in preparation.problems[:_PROBLEMS_SHOWN]:
        observer.message(f"{problem.path}: {problem.reason}")
    if preparation.num_problems > _PROBLEMS_SHOWN:
        observer.message(f"... and {preparation.num_problems - _PROBLEMS_SHOWN} more files with problems")
    source = files.read_json(prepared / "preparation.json")["fingerprint"]
    decides = configuration.dump(recipe.tokenizer) if base is None else {"base": base.fingerprint}
    if recipe.vocabulary is not None:
        decides |= configuration.dump(recipe.vocabulary)
    key = files.sha256_json({"data": source, "tokenizer": decides})
    directory = prepared.with_name(f"{prepared.name}-{key[:16]}")
    if not directory.is_dir():
        with one_at_a_time(directory, lambda: observer.message(_WAITING)):
            if not directory.is_dir():
                _make(recipe, prepared, directory, base, observer)
    if base is None:
        tokenizer = _framed(tokenizer_io.load(directory), recipe.objective)
    else:
        tokenizer = base if recipe.vocabulary is None else tokenizer_io.load(directory)
    if base is None and tokenizer.vocab_size < recipe.tokenizer.vocab_size:
        observer.message(
            f"the text has pairs for {tokenizer.vocab_size} tokens only, not {recipe.tokenizer.vocab_size}; "
            "the vocabulary is that small"
        )
    train = _open(directory, "train")
    return Inputs(
        tokenizer=tokenizer,
        train=train,
        validation=_open(directory, "validation"),
        preparation=preparation,
        vocabulary=files.read_json(directory / VOCABULARY_FILE),
        prepared=prepared,
        directory=directory,
        text_fingerprint=source,
        replay=None if recipe.replay is None else _replay(recipe.replay, tokenizer, observer, resolve),
    )


def _replay(
    config: ReplayConfig, tokenizer: Tokenizer, observer: Observer, resolve: Callable[[str], Path]
) -> TokenShards:
    """The training text of a general source as shards of the base's tokens."""
    data = DataConfig(source=config.source, max_documents=config.max_documents)
    prepared = cache_dir() / "prepared" / files.sha256_json(configuration.dump(data))[:16]
    observer.stage("preparing the text to be replayed")
    prepare_documents(data, prepared, resolve=resolve, on_wait=lambda: observer.message(_WAITING))
    source = files.read_json(prepared / "preparation.json")["fingerprint"]
    key = files.sha256_json({"data": source, "base": tokenizer.fingerprint})
    directory = prepared.with_name(f"{prepared.name}-replay-{key[:16]}")
    if not directory.is_dir():
        with one_at_a_time(directory, lambda: observer.message(_WAITING)):
            if not directory.is_dir():
                with files.new_directory(directory) as folder:
                    _write(tokenizer, iterate_texts(prepared, "train"), folder, "train")
    return _open(directory, "train")


def held_out_text(inputs: Inputs) -> HeldOut:
    """The validation documents, for a stream to leave them out."""
    return HeldOut.of(iterate_texts(inputs.prepared, "validation"))


def _make(recipe: Recipe, prepared: Path, directory: Path, base: Tokenizer | None, observer: Observer) -> None:
    tokenizer = base
    if tokenizer is None:
        observer.stage("training the tokenizer")
        tokenizer = train_tokenizer(
            iterate_texts(prepared, "train"),
            recipe.tokenizer,
            on_progress=lambda _, done, total: observer.progress(
                done, total, "characters" if total is None else "merges"
            ),
        )
    elif recipe.vocabulary is not None:
        observer.stage("learning new tokens")
        texts = iterate_texts(prepared, "train")
        tokenizer = extended(
            tokenizer,
            texts,
            recipe.vocabulary.new_tokens,
            on_progress=lambda done, total: observer.progress(done, total, "tokens"),
        )
    observer.stage("writing token shards")
    with files.new_directory(directory) as folder:
        tokenizer_io.save(tokenizer, folder)
        for split in ("train", "validation"):
            _write(tokenizer, iterate_texts(prepared, split), folder, split)
        report = vocabulary_report(tokenizer, iterate_texts(prepared, "train"))
        files.write_json(folder / VOCABULARY_FILE, report.to_json())


def _prepare_chats(recipe: Recipe, tokenizer: Tokenizer, observer: Observer, resolve: Callable[[str], Path]) -> Inputs:
    """The chats of a source, as `tokenizer` renders them; all that decides them stands in the folder's name."""
    if tokenizer.chat_template is None:
        raise BadInputError(f"{recipe.base}: has no chat template; stage sft needs one")
    data, context = recipe.data, recipe.row_length
    title, decides, rows = _chat_source(data.source, resolve)
    source = files.sha256_json(
        {
            **decides,
            "tokenizer": tokenizer.fingerprint,
            "template": tokenizer.chat_template,
            "roles": vars(tokenizer.roles),
            "version": CHATS_VERSION,
            "chats": [recipe.chats.bad_rows, recipe.chats.too_long],
            "context": context,
            "split": [data.split_seed, data.held_out, data.max_documents],
        }
    )
    directory = cache_dir() / "prepared" / f"chats-{source[:16]}"
    if not directory.is_dir():
        with one_at_a_time(directory, lambda: observer.message(_WAITING)):
            if not directory.is_dir():
                observer.stage("preparing the chats")
                with files.new_directory(directory) as folder:
                    prepare_chats(
                        rows(),
                        tokenizer,
                        folder,
                        config=recipe.chats,
                        context=context,
                        held_out=data.held_out,
                        split_seed=data.split_seed,
                        max_chats=data.max_documents,
                        on_progress=lambda read: observer.progress(read, None, "chats"),
                    )
    found = PreparedChats.open(directory)
    for reason, count, first in found.left_out[:_PROBLEMS_SHOWN]:
        observer.message(f"{count:,} chats left out: {reason} (first: {first})")
    if found.cut:
        observer.message(f"{found.cut:,} examples are longer than the context of {context} and were cut there")
    train, validation = _open(directory, "train"), _open(directory, "validation")
    return Inputs(
        tokenizer=tokenizer,
        train=train,
        validation=validation,
        preparation=PreparationReport(
            source=title,
            documents_in=found.rows,
            dropped={reason: count for reason, count, _ in found.left_out},
            duplicates=0,
            near_duplicates=0,
            train_documents=found.chats["train"],
            validation_documents=found.chats["validation"],
            train_bytes=train.num_bytes,
            validation_bytes=validation.num_bytes,
            seconds=0.0,
            problems=tuple(Problem(first, f"{reason} ({count:,} rows)") for reason, count, first in found.left_out),
            num_problems=sum(count for _, count, _ in found.left_out),
        ),
        vocabulary={},
        prepared=directory,
        directory=directory,
        text_fingerprint=source,
        train_targets=_open(directory, "train-trained"),
        validation_targets=_open(directory, "validation-trained"),
    )


def _chat_source(
    source: str, resolve: Callable[[str], Path]
) -> tuple[str, dict[str, Any], Callable[[], Iterable[tuple[str, Any]]]]:
    """(the source in words, what decides its rows, the rows when called for)."""
    if source in MADE_CHATS:
        return MADE_CHATS[source].title, made_version(source), lambda: made_rows(source, resolve)
    where = str(resolve(source)) if source in CATALOG or is_catalog_file(source) else source
    hashes = [files.sha256_file(file) for file in chat_files(where)]
    return where, {"files": hashes} if hashes else {"hub": source}, lambda: chat_rows(where)


def _prepare_pairs(recipe: Recipe, observer: Observer) -> Inputs:
    """The pairs of a task or a file. All that decides them stands in the folder's name; it is whole or absent.

    train, train-targets, validation, validation-targets: shards whose n-th documents belong together.
    """
    name, title, decides, make = _pair_source(recipe.data)
    source = files.sha256_json(decides)
    key = files.sha256_json({"data": source, "tokenizer": configuration.dump(recipe.tokenizer)})
    directory = cache_dir() / "prepared" / f"{name}-{key[:16]}"
    if not directory.is_dir():
        with one_at_a_time(directory, lambda: observer.message(_WAITING)):
            if not directory.is_dir():
                observer.stage("preparing pairs")
                _make_pairs(recipe, make(), directory)
    train, validation = _open(directory, "train"), _open(directory, "validation")
    return Inputs(
        tokenizer=_framed(tokenizer_io.load(directory), recipe.objective),
        train=train,
        validation=validation,
        preparation=PreparationReport(
            source=title,
            documents_in=train.num_documents + validation.num_documents,
            dropped={},
            duplicates=0,
            near_duplicates=0,
            train_documents=train.num_documents,
            validation_documents=validation.num_documents,
            train_bytes=train.num_bytes,
            validation_bytes=validation.num_bytes,
            seconds=0.0,
        ),
        vocabulary=files.read_json(directory / VOCABULARY_FILE),
        prepared=directory,
        directory=directory,
        text_fingerprint=source,
        train_targets=_open(directory, "train-targets"),
        validation_targets=_open(directory, "validation-targets"),
    )


def _make_pairs(recipe: Recipe, made: Mapping[str, Pairs], directory: Path) -> None:
    texts = [text for pair in made["train"] for text in pair]
    with files.new_directory(directory) as folder:
        tokenizer = train_tokenizer(iter(texts), recipe.tokenizer)
        tokenizer_io.save(tokenizer, folder)
        for split, pairs in made.items():
            _write(tokenizer, (text for text, _ in pairs), folder, split)
            _write(tokenizer, (text for _, text in pairs), folder, f"{split}-targets")
        files.write_json(folder / VOCABULARY_FILE, vocabulary_report(tokenizer, iter(texts)).to_json())


def _pair_source(data: DataConfig) -> tuple[str, str, dict[str, Any], Callable[[], Mapping[str, Pairs]]]:
    """(a name for the folder, the source in words, what decides the pairs, the two splits when called for)."""
    split = {"seed": data.split_seed, "held_out": data.held_out}
    if is_pair_file(data.source):
        path = Path(data.source).expanduser()
        if not path.is_file():
            raise BadInputError(f"{path}: no such file")
        decides = {"file": files.sha256_file(path), "suffix": path.suffix.lower(), **split, "pairs": data.max_documents}
        return (
            "pairs",
            str(path),
            decides,
            lambda: split_pairs(read_pair_file(path, data.max_documents), data.held_out, data.split_seed),
        )
    task, number = find_task(data.source), data.max_documents or DEFAULT_PAIRS
    decides = {"task": data.source, "version": task.version, **split, "pairs": number}
    return data.source, task.title, decides, lambda: task.pairs(data.split_seed, data.held_out, number)


def _framed(tokenizer: Tokenizer, objective: ObjectiveName) -> Tokenizer:
    """The tokenizer as models of `objective` are given text: what stands around it, which tokens take a space's place.

    It is no matter of the vocabulary, so runs of several objectives share one; what is saved with a model says it, and
    transformers then makes the same ids of a text.
    """
    tokenizer.adds_begin = objective in ("next_token", "masked")
    tokenizer.adds_end = objective != "next_token"
    # A byte-level token carries the space before its word, so what stands in a token's place takes the space too.
    tokenizer.takes_space = frozenset(
        name for name in tokenizer.special_tokens if name == MASK_TOKEN or name.startswith(SENTINEL_PREFIX)
    )
    return tokenizer


def _write(tokenizer: Tokenizer, texts: Iterable[str], folder: Path, split: str) -> None:
    write_shards(
        texts,
        tokenizer.encode_batch,
        folder,
        split=split,
        vocab_size=tokenizer.vocab_size,
        end_id=tokenizer.end_id,
    )


def _open(directory: Path, split: str) -> TokenShards:
    shards = TokenShards.open(directory, split, verify=True)
    if not shards.num_documents:
        raise BadInputError(f"the {split} split is empty; give more text or change data.held_out")
    return shards
