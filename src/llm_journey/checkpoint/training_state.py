"""Checkpoints of a run: whole or absent, hashed, the last few kept. kill -9 at any moment loses no earlier one.

    checkpoints/step-00000100/   the model's folder (model_folder), or what of it is trained, and beside it
        trained.safetensors          where the model itself stays as it is: what is trained of it
        training_state.safetensors   optimizer, random generators: tensors of any dtype
        training_state.json          step, data position, fingerprints: whatever `state` the training loop gives
        manifest.json                size and SHA-256 of every other file

A checkpoint is filled under a temporary name, flushed, and renamed (core.files.new_directory), so a save that dies
leaves only a hidden directory, which the next save sweeps away. A reader trusts nothing: a file whose hash differs is
refused by name and the checkpoint before it is taken. One process writes a run's checkpoints; any number may read.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from llm_journey.checkpoint.model_folder import load_state
from llm_journey.checkpoint.tensor_files import MAX_STATE_BYTES, read_json, read_tensors, write_tensors, writing
from llm_journey.core import files
from llm_journey.core.console import messages
from llm_journey.core.errors import BadInputError
from llm_journey.core.paths import inside
from llm_journey.model.config import TransformerConfig

MANIFEST, STATE, STATE_TENSORS = "manifest.json", "training_state.json", "training_state.safetensors"
TRAINED = "trained.safetensors"
_FORMAT = 1
_STEP = re.compile(r"step-(\d{8,18})")
# What new_directory leaves behind when it is killed: the unfinished new one, and an old one on its way out.
_UNFINISHED = re.compile(r"\.step-(\d{8,18})\.[^.]+\.tmp")
_RETIRED = re.compile(r"\.step-(\d{8,18})\.[^.]+\.old")
Warn = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a run goes on from: all tensors on the CPU, under our own names, in the dtypes they were saved in.

    model: every tensor of it, or, where config is None, those that are trained beside one that stays as it is.
    """

    path: Path
    step: int
    config: TransformerConfig | None
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def _say(message: str) -> None:
    messages().print(f"warning: {message}", markup=False, soft_wrap=True)


def save_checkpoint(
    directory: Path,
    *,
    step: int,
    write_model: Callable[[Path], None],
    optimizer_state: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
    on_warning: Warn = _say,
) -> Path:
    """Write the checkpoint of `step` under `directory`, then drop all but the last `keep`; returns its path.

    write_model: fills a folder with the model's files: model_folder.write_model_files, or `write_trained` and what
    else there is of it. state: JSON values (no NaN or infinity; whole numbers of any size). A checkpoint of the same
    step is replaced. Later steps than this one belong to a continuation that was given up: they are set aside as
    `abandoned-...`.
    Raises JourneyError where it cannot be written; every earlier checkpoint is then as it was.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step must be at least 0 and keep at least 1, not {step} and {keep}")
    target = directory / f"step-{step:08d}"
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        with files.new_directory(target) as temporary:
            write_model(temporary)
            write_tensors(temporary / STATE_TENSORS, optimizer_state)
            files.write_json(temporary / STATE, {"step": step, "state": dict(state)})
            files.write_json(temporary / MANIFEST, _manifest(temporary, step))
    _prune(directory, step, keep, on_warning)
    return target


def write_trained(model: nn.Module, directory: Path) -> None:
    """What is trained of a model, by our own names."""
    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    write_tensors(directory / TRAINED, trained)


def latest_checkpoint(directory: Path, *, on_warning: Warn = _say) -> Checkpoint | None:
    """The newest checkpoint whose every file is whole; None where no checkpoint was ever finished.

    A damaged one is refused by name through `on_warning` and the one before it is taken, as when a save was cut off
    (speculators#739). Raises BadInputError when there are checkpoints and none is whole.
    """
    candidates = list(_candidates(directory))
    cut_off = max((number for number, _ in _matching(directory, _UNFINISHED)), default=-1)
    refused: list[str] = []
    for number, path in candidates:
        if cut_off > number and not refused:
            on_warning(f"{directory}: the save of step {cut_off} was cut off; going back to step {number}")
        try:
            return load_checkpoint(path)
        except BadInputError as error:
            refused.append(str(error))
            on_warning(f"{error}; the checkpoint before it is tried")
    if refused:
        raise BadInputError(
            f"{directory}: none of {len(refused)} checkpoints is whole; start a new run, or restore one; "
            f"the newest: {refused[0]}"
        )
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in `path`, each file compared with its size and SHA-256 first.

    Raises BadInputError naming the file that is missing, damaged or not what it should be.
    """
    step = _verify(path)
    document = read_json(path / STATE, MAX_STATE_BYTES)
    state = document.get("state")
    if document.get("step") != step or not isinstance(state, dict):
        raise BadInputError(f"{path / STATE}: does not hold the state of step {step}")
    config, model = (None, read_tensors(path / TRAINED)) if (path / TRAINED).is_file() else load_state(path)
    return Checkpoint(
        path=path, step=step, config=config, model=model, optimizer=read_tensors(path / STATE_TENSORS), state=state
    )


def _manifest(directory: Path, step: int) -> dict[str, Any]:
    listed = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": files.sha256_file(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    return {"format": _FORMAT, "step": step, "files": listed}


def _verify(path: Path) -> int:
    """The step that the manifest names, once every file that it lists is as it says."""
    if not path.is_dir():
        raise BadInputError(f"{path}: no such checkpoint")
    manifest_path = path / MANIFEST
    manifest = read_json(manifest_path, MAX_STATE_BYTES)
    step, listed = manifest.get("step"), manifest.get("files")
    if manifest.get("format") != _FORMAT or not isinstance(step, int) or not isinstance(listed, dict):
        raise BadInputError(f"{manifest_path}: not a manifest of format {_FORMAT}; it is damaged or of another version")
    match = _STEP.fullmatch(path.name)
    if match and int(match[1]) != step:
        raise BadInputError(f"{manifest_path}: damaged: names step {step}, lies in {path.name}")
    if missing := {STATE, STATE_TENSORS} - listed.keys():
        raise BadInputError(f"{manifest_path}: damaged: does not list {', '.join(sorted(missing))}")
    for name, facts in listed.items():
        _verify_file(path, name, facts)
    return step


def _verify_file(directory: Path, name: str, facts: Any) -> None:
    file = inside(directory, name)
    if not file.is_file():
        raise BadInputError(f"{directory / name}: missing, although {MANIFEST} lists it")
    if not isinstance(facts, dict) or facts.keys() != {"bytes", "sha256"}:
        raise BadInputError(f"{directory / MANIFEST}: damaged: the entry of {name} is not one")
    size = file.stat().st_size
    if size != facts["bytes"]:
        raise BadInputError(f"{directory / name}: damaged: {size} bytes, {MANIFEST} says {facts['bytes']}")
    if files.sha256_file(file) != facts["sha256"]:
        raise BadInputError(f"{directory / name}: damaged: its SHA-256 is not the one in {MANIFEST}")


def _matching(directory: Path, pattern: re.Pattern[str]) -> Iterator[tuple[int, Path]]:
    """(step, path) of each subdirectory whose whole name matches, newest step first."""
    found = []
    for path in directory.iterdir() if directory.is_dir() else ():
        if (match := pattern.fullmatch(path.name)) and path.is_dir():
            found.append((int(match[1]), path))
    yield from sorted(found, reverse=True)


def _candidates(directory: Path) -> Iterator[tuple[int, Path]]:
    """(step, path) of what may be a whole checkpoint, newest first.

    Where a save of an existing step died between its two renames, that step lies whole under its retired name.
    """
    found = dict(_matching(directory, _STEP))
    for step, path in _matching(directory, _RETIRED):
        if step not in found and (path / "old").is_dir():
            found[step] = path / "old"
    yield from sorted(found.items(), reverse=True)


def _sweep(directory: Path) -> None:
    """Put a step back that was retired without a successor; remove what dead saves left."""
    for step, path in _matching(directory, _RETIRED):
        target = directory / f"step-{step:08d}"
        if not target.exists() and (path / "old").is_dir():
            (path / "old").replace(target)
        shutil.rmtree(path, ignore_errors=True)
    for _, path in _matching(directory, _UNFINISHED):
        shutil.rmtree(path, ignore_errors=True)


def _prune(directory: Path, step: int, keep: int, on_warning: Warn) -> None:
    """Keep the last `keep` up to `step`. Each leaves by a rename first, so that none is ever seen half deleted."""
    found = list(_matching(directory, _STEP))
    try:
        for number, path in found:
            if number > step:
                aside = path.with_name(f"abandoned-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.replace(aside)
                on_warning(f"{path}: later than step {step}, set aside as {aside.name}")
        for _, path in [item for item in found if item[0] <= step][keep:]:
            doomed = path.with_name(f".{path.name}.pruned.tmp")
            path.replace(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
    except OSError as error:
        on_warning(f"{directory}: older checkpoints could not be cleared ({error.strerror})")
