"""Where a model lies, by whatever it is called: a run, a catalog name, a folder, a GGUF file, an id of the hub."""

import re
from contextlib import suppress
from pathlib import Path

from llm_journey.app.runs import MODEL_FOLDER, RUN_FILE, find_run, has_run, suggestion
from llm_journey.core.errors import BadInputError, JourneyError

GGUF_SUFFIX = ".gguf"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# The hub's oldest models have no owner in their names: gpt2, bert-base-uncased.
BARE_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*")
# What a model folder may consist of; anything else of a source (other frameworks' weights, code) is left behind.
KNOWN_FILES = (
    "config.json",
    "model.safetensors",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "source.spm",
    "target.spm",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "2_Normalize/config.json",
    "added_tokens.json",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "LICENCE",
    "NOTICE",
    "NOTICE.txt",
    "USE_POLICY.md",
    "recipe.yaml",
)


def find_model(name_or_path: str) -> Path:
    """Where a model lies: a folder in Hugging Face layout, a GGUF file, a run (its model, else its last whole
    checkpoint), a catalog model, which is pulled if it is not on this machine, or a hub id, which is fetched."""
    if not name_or_path:
        raise BadInputError("no model is named; give a run, a catalog name, a folder or a GGUF file")
    path = Path(name_or_path).expanduser()
    if (path / "config.json").is_file() or (path.suffix == GGUF_SUFFIX and path.is_file()):
        return path
    if has_run(name_or_path):
        return _model_of_run(find_run(name_or_path).directory)
    if path.is_dir():
        return _gguf_in(path) or path
    if path.is_file():
        from llm_journey.checkpoint.tensor_files import refuse_pickles

        refuse_pickles(path)
    from llm_journey.datasets.catalog import CATALOG

    if name_or_path in CATALOG:
        return _catalog_model(name_or_path)
    if is_hub_id(name_or_path):
        return fetch_from_hub(name_or_path)
    models = ", ".join(name for name, entry in CATALOG.items() if entry.kind == "model")
    raise BadInputError(
        f"unknown model {name_or_path!r}: no folder, no run ({suggestion(name_or_path)}), no catalog model ({models}); "
        "a model of the Hugging Face hub is named owner/name"
    )


def find_text_model(name_or_path: str) -> Path:
    """`find_model` for what writes text: a catalog model that only embeds texts is refused before it is pulled."""
    if not Path(name_or_path).expanduser().exists() and embeds_texts(name_or_path):
        raise BadInputError(f"{name_or_path!r} generates no text, it embeds: journey embed {name_or_path} TEXT")
    return find_model(name_or_path)


def embeds_texts(name_or_path: str) -> bool:
    """Whether a name is that of a model which turns texts into vectors; nothing is opened or pulled to tell."""
    from llm_journey.datasets.catalog import CATALOG

    path = Path(name_or_path).expanduser()
    if path.exists() or has_run(name_or_path):
        return (path / "modules.json").is_file()
    return name_or_path in CATALOG and any(file.name == "modules.json" for file in CATALOG[name_or_path].files)


def model_name(name_or_path: str, directory: Path) -> str:
    """The name of the run that a model's folder lies in, else the name it was asked for by, without its path."""
    run = run_of(directory)
    return run.name if run is not None else Path(name_or_path).name


def run_of(directory: Path) -> Path | None:
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
    """Where a catalog model lies in a form that can be opened; what is not here is pulled first, visibly."""
    from llm_journey.datasets.catalog import CATALOG, locate

    entry = CATALOG[name]
    if entry.kind != "model":
        raise BadInputError(f"{name!r} is a {entry.kind}, not a model; `journey models list` shows the models")
    folder = locate(entry) or _pull(name)
    if (folder / "model.safetensors").is_file():
        return folder
    file = _gguf_in(folder)
    if file is None:
        held = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise BadInputError(f"{name!r} is here as {held} only, which cannot be opened; {_what_can_be_opened()}")
    return file


def _what_can_be_opened() -> str:
    from llm_journey.checkpoint.families import FAMILIES

    return f"a run, a GGUF file, or a folder with model.safetensors of a family ({', '.join(FAMILIES)}) can be"


def _pull(name: str) -> Path:
    """Fetch a catalog model; each source that is tried, and how much it sends, is said on standard error."""
    from llm_journey.core.console import messages
    from llm_journey.datasets.pull import Progress, pull

    def say(progress: Progress) -> None:
        size = f" ({progress.total / 1e6:.0f} MB)" if progress.action.startswith("pulling from") else ""
        if size or progress.action.startswith(("failed", "waiting")):
            messages().print(f"{name}: {progress.action}{size}", markup=False, soft_wrap=True)

    messages().print(f"{name} is not on this machine; it is pulled once", markup=False, soft_wrap=True)
    return pull(name, on_progress=say)


def _gguf_in(folder: Path) -> Path | None:
    """The one GGUF file of a folder, None where it holds none. Raises BadInputError where it holds several."""
    found = sorted(path for path in folder.iterdir() if path.suffix == GGUF_SUFFIX)
    if len(found) > 1:
        raise BadInputError(f"{folder}: holds {len(found)} GGUF files ({found[0].name} ...); name one of them")
    return found[0] if found else None


def is_hub_id(source: str) -> bool:
    """Whether a text reads as owner/name, and nothing here is called so."""
    return bool(_HUB_ID.fullmatch(source)) and not Path(source).expanduser().exists()


def fetch_from_hub(identifier: str) -> Path:
    """The files of a hub repository that a model folder may consist of, in the shared Hugging Face cache."""
    import os

    import huggingface_hub

    from llm_journey.datasets.hub import hub_cache_dir, hub_is_offline, hub_is_reachable

    offline = hub_is_offline()
    if offline or not hub_is_reachable():
        with suppress(Exception):  # huggingface_hub documents no closed set of errors
            found = huggingface_hub.snapshot_download(identifier, cache_dir=hub_cache_dir(), local_files_only=True)
            return Path(found)  # fetched before
        reason = "is not asked (HF_HUB_OFFLINE is set)" if offline else "cannot be reached"
        raise JourneyError(f"{identifier}: no such folder, and the Hugging Face hub {reason}; give a folder or a file")
    try:
        folder = huggingface_hub.snapshot_download(
            identifier,
            allow_patterns=list(KNOWN_FILES),
            cache_dir=hub_cache_dir(),
            etag_timeout=5,
            endpoint=os.environ.get("HF_ENDPOINT") or None,
        )
    except Exception as error:  # huggingface_hub documents no closed set of errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise JourneyError(f"{identifier}: the Hugging Face hub did not serve it ({reason})") from None
    return Path(folder)
