"""A run from recipe to saved model: prepare, build, loop, save, validate. It can be stopped anywhere and resumed.

The loop decides when to log, validate, sample and save; the trainer computes. Whatever happens, the last whole
checkpoint stays readable. Ctrl-C (or SIGTERM) finishes the step at hand, saves, and says how to go on; a second Ctrl-C
stops at once. The model is saved before it is evaluated (nanochat#446).
"""

import hashlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from llm_journey.checkpoint.decoders import StoredDecoder, read_decoder
from llm_journey.checkpoint.model_folder import save_model
from llm_journey.checkpoint.tensor_files import writing
from llm_journey.checkpoint.training_state import latest_checkpoint, save_checkpoint
from llm_journey.core import config as configuration
from llm_journey.core import files, lineage
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.datasets.chat_loader import ChatShards
from llm_journey.datasets.held_out import NOTHING
from llm_journey.finetuning.vocabulary import enlarge
from llm_journey.model.blocks import recompute
from llm_journey.model.cost import activation_bytes, count_parameters, key_value_bytes, training_flops_per_token
from llm_journey.model.kinds import Model, make_model
from llm_journey.tokenizer import Tokenizer
from llm_journey.training import methods
from llm_journey.training.distillation import distilling, shallower
from llm_journey.training.early_stopping import EarlyStopping
from llm_journey.training.forgetting import general_figures, general_rows
from llm_journey.training.inputs import VOCABULARY_FILE, Inputs, held_out_text, prepare_inputs
from llm_journey.training.loaders import make_loader
from llm_journey.training.objectives import objective_of
from llm_journey.training.observer import Observer
from llm_journey.training.precision import Precision, pick_device, pick_precision
from llm_journey.training.recipe import RECIPE_FILE, Recipe, load_recipe
from llm_journey.training.resuming import MODELS, check_fingerprints, check_same_recipe
from llm_journey.training.run_folder import BEST, SAMPLES, RunFolder
from llm_journey.training.throughput import WATTS_A_CORE, energy_estimate_joules, peak_flops, peak_memory
from llm_journey.training.tracker import JsonlTracker, make_trackers
from llm_journey.training.trainer import StepResult, Trainer, milestones
from llm_journey.training.validate import sample_held_out

_SAMPLED = 100_000  # held-out tokens that say what new tokens spare
# Writes a text that begins with a prompt: (model, tokenizer, prompt) -> text. Generation is handed in, not imported.
Sampler = Callable[[Model, Tokenizer, str], str]
# Further figures of a model on what a run is validated on, for the run's curves. Handed in for the same reason.
Judge = Callable[[Model, Inputs], dict[str, float]]


@dataclass(frozen=True)
class RunResult:
    """Where the run lies, how it ended ("finished" or "interrupted"), and its final figures."""

    directory: Path
    status: str
    figures: dict[str, Any]


def train(
    recipe: Recipe,
    run_directory: Path,
    *,
    base: Path | None = None,
    teacher: Path | None = None,
    resume: bool = False,
    observer: Observer | None = None,
    sampler: Sampler | None = None,
    judge: Judge | None = None,
) -> RunResult:
    """Train the model of `recipe` in `run_directory`; with `resume`, go on from its newest whole checkpoint.

    base, teacher: where the models that `recipe.base` and `recipe.distill` name lie, folders or GGUF files. A resumed
    run takes exactly the steps that the uninterrupted one would have taken (with a budget in seconds their number and
    learning rates follow the clock); a finished one is left as it is. Its recipe may differ from the saved one in how
    long to train and what to show meanwhile. Raises BadInputError for a recipe or data that do not fit (the folder is
    then as it was), and JourneyError where files cannot be written or training diverges; the run's status is then
    "failed".
    """
    observer = observer or Observer()
    if resume:
        folder = RunFolder.open(run_directory)
        check_same_recipe(load_recipe(run_directory), recipe, run_directory)
    else:
        folder = RunFolder.new(run_directory)
    start = None if recipe.base is None else _read_base(recipe.base, base)
    guide = None if recipe.distill is None else _read_base(recipe.distill.teacher, teacher)
    if start is not None and recipe.distill is not None and recipe.distill.layers is not None:
        shallower(start.decoder, recipe.distill.layers)
    recipe = recipe if start is None else recipe.with_base(start.decoder.config)
    tokenizer = None if start is None else methods.tokenizer_for(recipe, start.tokenizer, recipe.model.vocab_size)
    if guide is not None:
        if tokenizer is None:  # a new student, over the teacher's tokens
            tokenizer, size = guide.tokenizer, guide.decoder.config.vocab_size
            recipe = replace(recipe, model=replace(recipe.model, vocab_size=size))
        _check_teacher(recipe, tokenizer, guide)
    inputs = prepare_inputs(recipe, base=tokenizer, observer=observer)
    if resume:  # before anything else is said of data that are others by now
        begun = {name: mark for name, mark in folder.information.get("fingerprints", {}).items() if name not in MODELS}
        check_fingerprints(begun or inputs.fingerprints(), inputs.fingerprints(), run_directory)
    recipe = recipe if start is not None else recipe.with_vocabulary(inputs.tokenizer.vocab_size)
    if recipe.vocabulary is not None and start is not None:
        recipe = _with_new_tokens(recipe, start, inputs, observer)
    run = _Run(recipe, folder, inputs, start, guide, observer, sampler, judge)
    resume_step = run.restore() if resume else None
    if run.complete:
        observer.message(f"{run_directory} is finished; to go on, give it a larger budget: --set training.steps=...")
        return RunResult(run_directory, "finished", dict(folder.information["figures"]))
    if not resume:
        folder.create(recipe)
    resources = ExitStack()  # trackers: closed however the run ends
    try:
        run.open(resume_step, resources)
        return run.finish() if run.loop() else run.interrupt()
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with suppress(Exception):  # what went wrong first is what the caller hears of
            resources.close()
        with suppress(JourneyError):
            folder.update(status=status, error=f"{type(error).__name__}: {error}")
        raise


class _Run:
    """One process's work on a run."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        inputs: Inputs,
        start: StoredDecoder | None,
        guide: StoredDecoder | None,
        observer: Observer,
        sampler: Sampler | None,
        judge: Judge | None,
    ) -> None:
        self.recipe, self.folder, self.inputs = recipe, folder, inputs
        self.generation = {} if start is None else start.generation | _ends(inputs, start.generation)
        self.held_out = sample_held_out(inputs, recipe.training.validation_tokens)
        self.observer, self.sampler, self.judge = observer, sampler, judge
        self.objective = objective_of(recipe)
        device = pick_device(recipe.training.device)
        precision = Precision(_precision_name(recipe, folder, device), device)
        if not precision.native:
            observer.message(f"this processor does not compute in {precision.name}: expect it many times slower")
        if self.held_out.share < 1:
            read, there = self.held_out.inputs.validation.num_tokens, inputs.validation.num_tokens
            observer.message(
                f"validations read {read:,} of {there:,} held-out tokens ({self.held_out.share:.1%}), always the same; "
                "training.validation_tokens sets how many"
            )
        observer.stage("measuring this machine")
        self.peak_flops = peak_flops(device, precision.name)
        self.flops_per_token = training_flops_per_token(recipe.model, recipe.row_length)
        if (
            recipe.model.kind == "encoder_decoder"
        ):  # counted for a token read and one written; here each counts by itself
            self.flops_per_token /= 2
        torch.manual_seed(recipe.seed)
        model: Model = make_model(recipe.model) if start is None else start.decoder
        self.started_from = {} if start is None else {"base": _fingerprint(model)}
        loss = self.objective.loss
        if guide is not None and recipe.distill is not None:
            self.started_from |= {"teacher": _fingerprint(guide.decoder)}
            loss = distilling(guide.decoder.to(device).eval(), recipe.distill)
        methods.prepare(model, recipe, inputs.tokenizer)
        model = model.to(device)
        if recipe.training.gradient_checkpointing:
            recompute(model)
        model.train()
        held_out = held_out_text(inputs) if recipe.training.stream is not None else NOTHING
        loader = make_loader(recipe, inputs.train, inputs.tokenizer, inputs.train_targets, held_out, inputs.replay)
        self.general_nt = None
        if recipe.forgetting is not None:
            self.general_nt = general_rows(recipe.forgetting, inputs.tokenizer, recipe.row_length)
        self.trainer = Trainer(recipe, model, loader, precision, loss)
        self.early_stopping = EarlyStopping(recipe.training.early_stopping)
        self.stop_requested = False

    def restore(self) -> int:
        """Go back to where the newest whole checkpoint stands; returns its step, or -1 where there is none."""
        checkpoint = latest_checkpoint(self.folder.checkpoints, on_warning=self.observer.message)
        if checkpoint is None:
            self.observer.message("no checkpoint was finished yet; the run begins again")
            return -1
        check_fingerprints(checkpoint.state["fingerprints"], self.fingerprints(), self.folder.directory)
        self.trainer.restore(checkpoint.model, checkpoint.optimizer, checkpoint.state["trainer"])
        patience = self.recipe.training.early_stopping
        if patience is None or (self.folder.directory / BEST).is_dir():
            self.early_stopping = EarlyStopping(patience, **checkpoint.state["early_stopping"])
        self.observer.message(f"resumed from {checkpoint.path} (step {checkpoint.step})")
        return checkpoint.step

    def fingerprints(self) -> dict[str, str]:
        """What a resumed run must find as it was: data, tokenizer, and the models that it goes on and learns from."""
        return self.inputs.fingerprints() | self.started_from

    @property
    def complete(self) -> bool:
        """Whether the run was finished before and its budget leaves no step to take."""
        finished = self.folder.information.get("status") == "finished"
        return finished and (self.trainer.progress >= 1.0 or self.early_stopping.stop)

    def open(self, resume_step: int | None, resources: ExitStack) -> None:
        """Write down what the run is and open its trackers; `resources` closes them."""
        recipe, directory = self.recipe, self.folder.directory
        with writing(directory):
            self.folder.sweep()
            files.write_json(directory / VOCABULARY_FILE, self.inputs.vocabulary)
            files.write_json(directory / "preparation.json", configuration.dump(self.inputs.preparation))
            files.write_text(directory / RECIPE_FILE, configuration.to_yaml(configuration.dump(recipe)))
            self.samples = JsonlTracker(directory / SAMPLES, resume_step=resume_step)
            resources.callback(self.samples.close)
            self.trackers = make_trackers(
                recipe.training.trackers,
                directory,
                run_name=directory.name,
                config=configuration.dump(recipe),
                resume_step=resume_step,
            )
            resources.callback(self.trackers.close)
        self.resources = resources
        self.folder.update(
            status="running",
            error=None,
            fingerprints=self.fingerprints(),
            text_fingerprint=self.inputs.text_fingerprint,
            paths={"prepared": str(self.inputs.prepared), "shards": str(self.inputs.directory)},
            energy_assumption=f"{WATTS_A_CORE:g} W a busy core, {lineage.usable_cores()} cores; not measured",
            figures={
                "parameters": count_parameters(recipe.model).total,
                **({} if recipe.base is None else {"trained_parameters": self.trainer.num_trained}),
                "activation_bytes": activation_bytes(recipe.model, recipe.training.batch_size, recipe.row_length),
                "key_value_bytes": key_value_bytes(recipe.model, recipe.row_length),
                "peak_flops": self.peak_flops,
            },
            precision=self.trainer.precision.name,
            stream=recipe.training.stream,
        )

    def loop(self) -> bool:
        """Step until the budget is used up (True) or a stop is asked for (False)."""
        config, trainer = self.recipe.training, self.trainer
        validations = milestones(config.validations, trainer.progress)
        saves = milestones(config.checkpoints, trainer.progress)
        next_validation, next_save = next(validations, 2.0), next(saves, 2.0)
        if config.compile:
            self.observer.stage("compiling the model")
            trainer.warm_up()
        with self._stoppable():
            if trainer.position.step == 0 and self.recipe.base is not None:
                self.observer.stage("looking at the model as it is")
                self._validate()
                self._sample()
            self.observer.stage("training")
            while trainer.progress < 1.0 and not self.stop_requested and not self.early_stopping.stop:
                result = trainer.step()
                if trainer.position.step % config.log_every == 0 or not result.finite or trainer.position.step == 1:
                    self._log(result)
                self._report_progress()
                # At the end the model is saved before it is evaluated; on the way a checkpoint holds the validation.
                if next_validation <= trainer.progress < 1.0:
                    next_validation = next((m for m in validations if m > trainer.progress), 2.0)
                    self._validate()
                    self._sample()
                if next_save <= trainer.progress < 1.0:
                    next_save = next((m for m in saves if m > trainer.progress), 2.0)
                    self._save()
        return not self.stop_requested

    def finish(self) -> RunResult:
        """Save the model, then judge it."""
        trainer = self.trainer
        self.observer.stage("saving the model")
        self._save()
        if self.early_stopping.stop:
            self._take_back_best()
        if self.recipe.is_adapted:
            with writing(self.folder.adapter), files.new_directory(self.folder.adapter) as folder:
                methods.write_adapter(trainer.model, self.recipe, folder)
        methods.finish(trainer.model)
        save_model(trainer.model, self.folder.model, tokenizer=self.inputs.tokenizer, generation=self.generation)
        self.folder.update(status="trained", step=trainer.position.step, seconds=trainer.position.seconds)
        self.observer.stage("validating")
        self._validate()
        self._sample()
        return self._end("finished")

    def _take_back_best(self) -> None:
        bad = f"{self.early_stopping.bad} validations without a better loss: stopped early"
        if self.early_stopping.best is None:
            self.observer.message(f"{bad}; none had a finite loss, so the last model is kept")
            return
        methods.restore(self.trainer.model, methods.read_model(self.folder.directory / BEST))
        self.observer.message(f"{bad}; the best model is kept")

    def interrupt(self) -> RunResult:
        """Save where the run stands and say how to go on."""
        self._save()
        self.observer.message(
            f"stopped at step {self.trainer.position.step} and saved; go on with: "
            f"journey train {self.folder.directory} --resume"
        )
        return self._end("interrupted")

    def _end(self, status: str) -> RunResult:
        position = self.trainer.position
        rate = position.tokens / position.seconds if position.seconds else 0.0
        # Something else may have kept the machine busy before: the larger of two measurements is nearer to the peak.
        self.peak_flops = max(self.peak_flops, peak_flops(self.trainer.model.device, self.trainer.precision.name))
        figures = {
            "peak_flops": self.peak_flops,
            "tokens": position.tokens,
            "tokens_per_second": rate,
            **self._utilisation(rate),
            **({} if self.recipe.stage == "sft" else {"flops": position.tokens * self.flops_per_token}),
            "peak_memory_bytes": peak_memory(self.trainer.model.device),
        }
        if self.trainer.model.device.type == "cpu":  # the assumption is about cores
            figures["energy_joules_estimate"] = energy_estimate_joules(position.seconds, lineage.usable_cores())
        self.resources.close()
        self.folder.update(status=status, step=position.step, seconds=position.seconds, figures=figures)
        return RunResult(self.folder.directory, status, dict(self.folder.information["figures"]))

    def _utilisation(self, rate: float) -> dict[str, float]:
        """MFU at so many tokens a second; none of chats, where only trained tokens are counted."""
        return {} if self.recipe.stage == "sft" else {"mfu": rate * self.flops_per_token / self.peak_flops}

    def _log(self, result: StepResult) -> None:
        position = self.trainer.position
        rate = result.tokens / result.seconds
        row = {
            "tokens": position.tokens,
            "seconds": position.seconds,
            "loss": result.loss,
            "learning_rate": result.learning_rate_factor * self.recipe.training.optimizer.learning_rate,
            "gradient_norm": result.gradient_norm,
            "tokens_per_second": rate,
            **self._utilisation(rate),
        }
        if not result.finite:
            self.observer.message(f"step {position.step}: loss or gradient is not finite; the step was left out")
        self.trackers.log(position.step, row)
        self.observer.step({"step": position.step, **row})

    def _report_progress(self) -> None:
        config, position = self.recipe.training, self.trainer.position
        if config.seconds is not None:
            self.observer.progress(position.seconds, config.seconds, "seconds")
        elif config.tokens is not None:
            self.observer.progress(position.tokens, config.tokens, "tokens")
        else:
            self.observer.progress(position.step, config.steps, "steps")

    def _validate(self) -> None:
        seen = self.held_out.inputs
        figures = self.objective.figures(self.recipe, self.trainer.model, seen)
        if self.general_nt is not None:
            figures |= general_figures(self.trainer.model, self.inputs.tokenizer, self.general_nt)
        if self.judge is not None:
            figures |= self.judge(self.trainer.model, seen)
        improved = self.early_stopping.update(figures["validation_loss"])
        if improved and self.early_stopping.patience is not None:
            best = self.folder.directory / BEST
            with writing(best), files.new_directory(best) as folder:
                methods.write_model(self.trainer.model, self.recipe, self.inputs.tokenizer, folder)
        position = self.trainer.position
        figures |= self.held_out.figures
        row = {"tokens": position.tokens, "seconds": position.seconds, **figures}
        self.trackers.log(position.step, row)
        self.observer.validation({"step": position.step, **row})
        self.folder.update(step=position.step, seconds=position.seconds, figures=figures)

    def _sample(self) -> None:
        if self.sampler is None:
            return
        device = self.trainer.model.device
        for prompt in self.recipe.training.sample_prompts:
            # What a sample draws must not move the dropout of the steps to come.
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                text = self.sampler(self.trainer.model, self.inputs.tokenizer, prompt)
            row = {"prompt": prompt, "text": text}
            self.samples.log(self.trainer.position.step, row)
            self.observer.sample({"step": self.trainer.position.step, **row})

    def _save(self) -> None:
        save_checkpoint(
            self.folder.checkpoints,
            step=self.trainer.position.step,
            write_model=partial(methods.write_model, self.trainer.model, self.recipe, self.inputs.tokenizer),
            optimizer_state=self.trainer.tensors(),
            state={
                "trainer": self.trainer.state(),
                "early_stopping": {"best": self.early_stopping.best, "bad": self.early_stopping.bad},
                "fingerprints": self.fingerprints(),
            },
            keep=self.recipe.training.keep_checkpoints,
            on_warning=self.observer.message,
        )

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Turn the first SIGINT or SIGTERM into a request to stop after the step at hand."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals belong to the main thread; here the caller decides
            return

        def request(_number: int, _frame: FrameType | None) -> None:
            if self.stop_requested:
                raise KeyboardInterrupt
            self.stop_requested = True
            with suppress(RuntimeError):  # a signal in the middle of a write to the terminal: it takes no second one
                self.observer.message("stopping after this step; once more to stop at once, losing what is not saved")

        previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _precision_name(recipe: Recipe, folder: RunFolder, device: torch.device) -> str:
    """The recipe's precision; "auto" stays what it was when the run began, whatever machine goes on with it."""
    name, begun = recipe.training.precision, folder.information.get("precision")
    return pick_precision(begun if name == "auto" and begun else name, device)


def _read_base(name: str, path: Path | None) -> StoredDecoder:
    if path is None:
        raise BadInputError(f"the recipe needs the model {name}; say where it lies")
    return read_decoder(path)


def _with_new_tokens(recipe: Recipe, start: StoredDecoder, inputs: Inputs, observer: Observer) -> Recipe:
    """The recipe over the larger vocabulary, which the model gets rows for."""
    before, after = start.tokenizer, inputs.tokenizer
    enlarge(start.decoder, before, after)
    sample = inputs.validation.read(0, min(inputs.validation.num_tokens, _SAMPLED)).tolist()
    data = after.decode_bytes(token for token in sample if token not in after.special_tokens.values())
    used = len(before.encode_bytes(data))
    observer.message(
        f"{after.vocab_size - before.vocab_size:,} new tokens: held-out text takes {len(sample) / used - 1:+.1%} tokens"
    )
    return replace(recipe, model=start.decoder.config)


def _check_teacher(recipe: Recipe, tokenizer: Tokenizer, teacher: StoredDecoder) -> None:
    """Raise BadInputError where the student's and the teacher's distributions are not over the same tokens."""
    assert recipe.distill is not None
    name, size = recipe.distill.teacher, teacher.decoder.config.vocab_size
    if tokenizer.fingerprint != teacher.tokenizer.fingerprint:
        raise BadInputError(
            f"distill.teacher {name} has another tokenizer than base {recipe.base}; take one with the same"
        )
    if recipe.model.vocab_size != size:
        raise BadInputError(
            f"distill.teacher {name} has {size} rows in its vocabulary, the student {recipe.model.vocab_size}"
        )
    if recipe.row_length > teacher.decoder.config.context:
        raise BadInputError(
            f"rows have {recipe.row_length} tokens, distill.teacher {name} reads {teacher.decoder.config.context}: set "
            "training.context"
        )


def _ends(inputs: Inputs, generation: Mapping[str, Any]) -> dict[str, Any]:
    """eos_token_id with what ends the turns that are trained, so that every runtime stops there; of chats only."""
    if inputs.train_targets is None:
        return {}
    chats = ChatShards(inputs.train, inputs.train_targets)
    examples = [chats.example(number) for number in range(min(chats.num_examples, 16))]
    ends = {int(ids[trained.nonzero()[0][-1]]) for ids, trained in examples if trained.any()}
    known = generation.get("eos_token_id")
    known = [known] if isinstance(known, int) else known if isinstance(known, list) else []
    return {"eos_token_id": sorted(ends.union(known))}


def _fingerprint(model: Model) -> str:
    """What identifies a model's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
