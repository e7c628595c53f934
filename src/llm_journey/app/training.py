"""A whole run: find the recipe, bring the data, train, then measure what came of it. One process works on a run."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llm_journey.app.recipes import find_recipe
from llm_journey.app.runs import MODEL_FOLDER, TrainedRun, find_run, new_run_directory, working_on
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.core.lineage import usable_cores
from llm_journey.core.paths import inside, runs_dir
from llm_journey.training.observer import Observer
from llm_journey.training.recipe import Recipe, load_recipe
from llm_journey.training.run_folder import CHECKPOINTS
from llm_journey.training.tracker import METRICS_FILE

if TYPE_CHECKING:
    from llm_journey.model.kinds import Model
    from llm_journey.tokenizer import Tokenizer

_SAMPLE_TOKENS, _REPLY_TOKENS = 60, 100


def train_and_measure(
    recipe: str | Path | Recipe,
    *,
    overrides: Sequence[str] = (),
    name: str | None = None,
    resume: bool = False,
    observer: Observer | None = None,
) -> TrainedRun:
    """Train by a recipe, then compare with the baselines, certify the export, fill the card and write the report.

    See `llm_journey.train` for the arguments. What fails after training is noted in the run (`failures`): the model
    has been saved before. Raises BadInputError and JourneyError for what fails earlier.
    """
    observer = observer or Observer()
    chosen, directory = _resumed(recipe, overrides, name) if resume else _new(recipe, overrides, name)
    with working_on(directory):
        run = _train(chosen, directory, resume, observer)
        if run.status == "finished":
            from llm_journey.app.measure import measure

            measure(run, observer)
    return run


def pull_source(source: str, observer: Observer) -> None:
    """Bring a catalog source to this machine, with progress, unless it is here; other sources are left alone."""
    from llm_journey.datasets.catalog import CATALOG, is_catalog_file, locate
    from llm_journey.datasets.pull import Progress, pull

    source = source.partition("/")[0] if is_catalog_file(source) else source
    if source not in CATALOG or locate(CATALOG[source]) is not None:
        return
    observer.stage(f"pulling {source}")

    def on_progress(progress: Progress) -> None:
        if progress.total:
            observer.progress(progress.done, progress.total, "bytes")
        if progress.action.startswith(("pulling from", "failed", "waiting")):
            observer.message(f"{progress.name}: {progress.action}")

    pull(source, on_progress=on_progress)


def write_sample(model: "Model", tokenizer: "Tokenizer", prompt: str) -> str:
    """What the model makes of `prompt`; the same draws each time, so that samples of a run can be compared."""
    from llm_journey.app.encoders import MaskFiller, Rewriter
    from llm_journey.app.language_model import LanguageModel
    from llm_journey.model.encoder import Encoder
    from llm_journey.model.encoder_decoder import EncoderDecoder

    if isinstance(model, Encoder):
        return MaskFiller("sample", Path(), tokenizer, encoder=model).generate(prompt)
    if isinstance(model, EncoderDecoder):
        return f" → {Rewriter('sample', Path(), tokenizer, model=model).generate(prompt)}"
    stop_ids = frozenset({tokenizer.end_id})
    opened = LanguageModel("sample", Path(), model, tokenizer, stop_ids=stop_ids)
    return opened.generate(prompt, seed=0, max_new_tokens=_SAMPLE_TOKENS)


def write_reply(model: "Model", tokenizer: "Tokenizer", prompt: str) -> str:
    """What a chat model answers to `prompt`, each time its likeliest token, as far as a sample goes."""
    from llm_journey.app.language_model import stop_ids_of
    from llm_journey.generation.decode import generate
    from llm_journey.generation.sampling import SamplingConfig
    from llm_journey.model.decoder import Decoder
    from llm_journey.tokenizer.chat_template import encode_chat

    assert isinstance(model, Decoder)
    ids = encode_chat(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)
    settings = SamplingConfig(temperature=0, max_new_tokens=_REPLY_TOKENS)
    reply = generate(model, ids, settings, stop_ids=stop_ids_of({}, tokenizer))
    text = tokenizer.decode(list(reply))
    return f"\n{text}" + ("" if reply.finish_reason == "stop" else " [...]")


def _train(recipe: Recipe, directory: Path, resume: bool, observer: Observer) -> TrainedRun:
    from llm_journey.app.bases import find_base, find_teacher
    from llm_journey.app.language_model import stop_ids_of
    from llm_journey.datasets.made_chats import MADE_CHATS
    from llm_journey.evaluation.answers import answer_figures
    from llm_journey.evaluation.exact_match import pair_figures
    from llm_journey.training.run import train

    source = recipe.data.source
    corpus = MADE_CHATS[source].corpus if source in MADE_CHATS else source
    wanted = [corpus] if corpus else []
    wanted += [part.source for part in (recipe.replay, recipe.forgetting) if part is not None]
    for each in wanted:
        pull_source(each, observer)
    base, teacher = find_base(recipe), find_teacher(recipe)
    sampler = write_reply if recipe.stage == "sft" else write_sample
    judge = answer_figures(recipe.chats.scored, partial(stop_ids_of, {})) if recipe.chats.scored else pair_figures
    if recipe.training.seconds is not None:
        _warn_where_busy(observer)
    saved_before = _saved_model(directory)
    try:
        train(
            recipe,
            directory,
            base=base,
            teacher=teacher,
            resume=resume,
            observer=observer,
            sampler=sampler,
            judge=judge,
        )
    except BaseException as error:
        if isinstance(error, Exception) and _saved_model(directory) != saved_before:
            raise JourneyError(
                f"the model is trained and saved in {directory / MODEL_FOLDER}, but validating it failed "
                f"({describe_error(error)}); try again with: journey train {directory.name} --resume"
            ) from error
        if isinstance(error, KeyboardInterrupt) and _saved_model(directory) != saved_before:
            observer.message(f"the model is trained and saved; judge it with: journey train {directory.name} --resume")
        if not resume:
            _remove_if_nothing_was_trained(directory)
        raise
    return TrainedRun(directory)


def _warn_where_busy(observer: Observer) -> None:
    """A budget in seconds buys fewer steps where other programs use the cores; say so before, not after."""
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, usable_cores()
    if load > cores / 2:
        observer.message(f"this machine is busy (load {load:.1f} on {cores} cores): the budget will see fewer tokens")


def _saved_model(directory: Path) -> int | None:
    """What tells one saved model of a run from the next, None before the first."""
    path = directory / MODEL_FOLDER / "config.json"
    return path.stat().st_mtime_ns if path.is_file() else None


def _remove_if_nothing_was_trained(directory: Path) -> None:
    """A run that failed before its first step leaves no folder: its name is free for the corrected one."""
    metrics = directory / METRICS_FILE
    if not (directory / CHECKPOINTS).exists() and not (metrics.is_file() and metrics.stat().st_size):
        shutil.rmtree(directory, ignore_errors=True)


def describe_error(error: BaseException) -> str:
    """An error as one line."""
    text = " ".join(str(error).split())
    if isinstance(error, JourneyError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _new(recipe: str | Path | Recipe, overrides: Sequence[str], name: str | None) -> tuple[Recipe, Path]:
    """The recipe under the name of its new run, and the folder of that run."""
    if isinstance(recipe, Recipe):
        if overrides:
            raise BadInputError("overrides go with a recipe's name or file; change a Recipe by dataclasses.replace")
        chosen = recipe
    else:
        chosen = find_recipe(str(recipe), overrides)
    chosen = _with_absolute_source(chosen)
    if name is None:
        return chosen, new_run_directory(chosen.name)
    try:
        named = replace(chosen, name=name)
    except ValueError as error:
        raise BadInputError(f"--name {name!r}: {error}") from None
    directory = inside(runs_dir(), name)
    if directory.exists():
        raise BadInputError(f"there is a run called {name!r} already; choose another --name, or go on with --resume")
    return named, directory


def _with_absolute_source(recipe: Recipe) -> Recipe:
    """A folder, file or glob by its full path, so that a run can be resumed from anywhere; a catalog name as it is."""
    from llm_journey.datasets.catalog import CATALOG, is_catalog_file
    from llm_journey.datasets.chat_files import chat_files
    from llm_journey.datasets.made_chats import MADE_CHATS
    from llm_journey.datasets.streaming import local_files
    from llm_journey.training.tasks import TASKS

    if recipe.base is not None and Path(recipe.base).expanduser().exists():
        recipe = replace(recipe, base=str(Path(recipe.base).expanduser().absolute()))
    if recipe.distill is not None and Path(recipe.distill.teacher).expanduser().exists():
        teacher = str(Path(recipe.distill.teacher).expanduser().absolute())
        recipe = replace(recipe, distill=replace(recipe.distill, teacher=teacher))
    stream = recipe.training.stream
    if stream is not None and stream not in CATALOG and local_files(stream):
        stream = str(Path(stream).expanduser().absolute())
        recipe = replace(recipe, training=replace(recipe.training, stream=stream))
    if (
        recipe.data.source in CATALOG
        or is_catalog_file(recipe.data.source)
        or (recipe.data.source in TASKS and recipe.objective == "seq2seq")
    ):
        return recipe
    if recipe.stage == "sft" and (recipe.data.source in MADE_CHATS or not chat_files(recipe.data.source)):
        return recipe  # made, or a data set of the hub
    return replace(recipe, data=replace(recipe.data, source=str(Path(recipe.data.source).expanduser().absolute())))


def _resumed(recipe: str | Path | Recipe, overrides: Sequence[str], name: str | None) -> tuple[Recipe, Path]:
    """The run to go on with, by `name`, else by what `recipe` names; its own recipe with the overrides."""
    wanted = name or (recipe.name if isinstance(recipe, Recipe) else str(recipe))
    if name is None and Path(wanted).suffix in {".yaml", ".yml"}:
        wanted = find_recipe(wanted).name
    directory = find_run(wanted).directory
    return load_recipe(directory, overrides), directory
