"""What follows training: baselines on the same text, the export's certificate, the model card, the report.

The model lies saved on disk before any of this begins (nanochat#446: a finished run was lost because evaluating it ran
out of memory). A measurement that fails is noted in the run with its reason; the others still happen.
"""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_journey.app.bases import base_tokenizer
from llm_journey.app.runs import TrainedRun
from llm_journey.app.training import describe_error
from llm_journey.core import files
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.datasets.pair_files import is_pair_file
from llm_journey.training.observer import Observer
from llm_journey.training.recipe import RECIPE_FILE, Recipe, load_recipe
from llm_journey.training.run_folder import RunFolder

if TYPE_CHECKING:
    from llm_journey.datasets.shards import TokenShards

# Largest logit difference to transformers in float32 that an export may show.
LOGIT_BOUND, _COMPARED_TOKENS = 1e-4, 512
_NEEDS_TRANSFORMERS = "transformers is missing; pip install 'llm-journey[hf]', then journey report RUN --measure"
# The catalog's words for a licence -> the identifier that a model card carries.
_LICENCES = {
    "CC BY-SA 4.0": "cc-by-sa-4.0",
    "CC BY-SA 3.0": "cc-by-sa-3.0",
    "CC BY-NC 4.0": "cc-by-nc-4.0",
    "MIT": "mit",
    "Apache-2.0": "apache-2.0",
}

_KINDS = {"decoder": "A decoder-only", "encoder": "An encoder-only", "encoder_decoder": "An encoder-decoder"}
_CHAT_LIMIT = "A chat model that was tuned on little data: it answers in form, and states falsehoods fluently."
_LIMITS = {
    "next_token": "A small base model: it continues text, follows no instructions, and states falsehoods fluently.",
    "masked": "A small encoder: it guesses hidden words from those around them, and guesses falsehoods as readily.",
    "span": "A small base model: it writes what was cut out of a text, and states falsehoods fluently.",
    "seq2seq": "It does the one task that it was trained on; for any other text its answer means nothing.",
}


@dataclass(frozen=True)
class _Material:
    """What a measurement works on. All changes of run.json go through `folder`."""

    folder: RunFolder
    recipe: Recipe
    observer: Observer

    def data(self) -> "tuple[Path, TokenShards, TokenShards]":
        """The prepared text, the training and the validation shards that the run was made from.

        Where they were cleaned away they are prepared again. Raises BadInputError where they are others by now.
        """
        from llm_journey.datasets.shards import TokenShards

        paths = self.folder.information.get("paths", {})
        prepared, shards = Path(paths.get("prepared", "")), Path(paths.get("shards", ""))
        if self._is_its_own_text(prepared) and (shards / "train.json").is_file():
            train, validation = (TokenShards.open(shards, split) for split in ("train", "validation"))
        else:
            from llm_journey.training.inputs import prepare_inputs

            inputs = prepare_inputs(self.recipe, base=base_tokenizer(self.recipe), observer=self.observer)
            prepared, train, validation = inputs.prepared, inputs.train, inputs.validation
        fingerprints = self.folder.information.get("fingerprints", {})
        for split, found in (("train", train.fingerprint), ("validation", validation.fingerprint)):
            if found != fingerprints.get(split):
                raise BadInputError(f"the {split} data changed since this run ({fingerprints.get(split)}, now {found})")
        return prepared, train, validation

    def _is_its_own_text(self, prepared: Path) -> bool:
        """Whether the prepared folder still holds the run's text; the same source may have been prepared anew since."""
        record = prepared / "preparation.json"
        found = files.read_json(record)["fingerprint"] if record.is_file() else None
        return found is not None and found == self.folder.information.get("text_fingerprint")


def measure(run: TrainedRun, observer: Observer | None = None) -> dict[str, str]:
    """Do every measurement of a trained run and write its report; returns those that failed, with their reasons."""
    material = _Material(RunFolder.open(run.directory), load_recipe(run.directory), observer or Observer())
    failures: dict[str, str] = {}
    for name, work in _MEASUREMENTS.items():
        material.observer.stage(name)
        try:
            work(material)
        except KeyboardInterrupt:
            begun = list(_MEASUREMENTS).index(name)
            failures |= dict.fromkeys(list(_MEASUREMENTS)[begun:], "interrupted")
            material.folder.update(failures=failures)
            material.observer.message(f"the model is saved; measure it with: journey report {run.name} --measure")
            raise
        except Exception as error:  # whatever fails here, the trained model is worth more
            failures[name] = describe_error(error)
            material.observer.message(f"{name} failed: {failures[name]}")
        material.folder.update(failures=failures)
    if failures:
        material.observer.message(f"the model is saved; measure again with: journey report {run.name} --measure")
    return failures


def _compare_with_baselines(material: _Material) -> None:
    """Compressors and n-gram models know bits a byte alone: other objectives bring their own baseline with them."""
    if material.recipe.objective != "next_token" or material.recipe.stage == "sft":
        return
    from llm_journey.evaluation.baselines import measure as measure_baselines

    material.folder.update(baselines=measure_baselines(*material.data()))


def _certify_export(material: _Material) -> None:
    """Open the saved folder with transformers and note the largest logit difference. Raises over the bound."""
    from llm_journey.checkpoint.families import family_of
    from llm_journey.checkpoint.model_folder import load_state
    from llm_journey.checkpoint.verify import compare_with_transformers

    config, _ = load_state(material.folder.model)
    if family_of(config) is None:
        material.observer.message("the model's choices fit no family of transformers, so there is nothing to compare")
        return
    if importlib.util.find_spec("transformers") is None:
        material.observer.message(f"not compared: {_NEEDS_TRANSFORMERS}")
        return
    _, _, validation = material.data()
    ids = validation.read(0, min(config.context, _COMPARED_TOKENS, validation.num_tokens)).tolist()
    difference = compare_with_transformers(material.folder.model, ids)
    material.folder.update(figures={"logit_difference": difference})
    material.observer.message(f"opened with transformers: the largest logit difference is {difference:.1e}")
    if difference > LOGIT_BOUND:
        raise JourneyError(
            f"the logits differ by {difference:.1e} from transformers', over the bound {LOGIT_BOUND:.0e}"
        )


def _write_card(material: _Material) -> None:
    """README.md and recipe.yaml into the model's folder. A card without the export's certificate is not written."""
    from llm_journey.checkpoint.card import model_card
    from llm_journey.checkpoint.families import family_of

    folder = material.folder
    if not (folder.model / "config.json").is_file():
        raise BadInputError(f"{folder.directory}: no model is saved yet, so there is nothing to write a card for")
    certified = folder.information["figures"].get("logit_difference") is not None
    if not certified and family_of(material.recipe.model) is not None:
        material.observer.message(f"no model card without the comparison: {_NEEDS_TRANSFORMERS}")
        return
    recipe = (folder.directory / RECIPE_FILE).read_bytes()
    files.write_bytes(folder.model / RECIPE_FILE, recipe)
    files.write_text(folder.model / "README.md", model_card(_facts(material)))


def _facts(material: _Material) -> Any:
    from llm_journey.checkpoint.card import CardFacts
    from llm_journey.reports.plots import baseline_label
    from llm_journey.reports.run_data import SHARES

    information, recipe = material.folder.information, material.recipe
    figures: dict[str, Any] = information.get("figures", {})
    accuracies = {label: figures[key] for key, label in SHARES.items() if figures.get(key) is not None}
    baselines: dict[str, float] = information.get("baselines", {})
    report = files.read_json(material.folder.directory / "preparation.json")
    data, data_licence, licence = _data_in_words(recipe, report["train_documents"])
    return CardFacts(
        name=material.folder.directory.name,
        architecture=_architecture(recipe),
        data=data,
        data_licence=data_licence,
        licence=licence,
        parameters=figures.get("parameters") or 0,
        context=recipe.model.context,
        tokens_seen=figures.get("tokens") or 0,
        tokens_are="of the assistant's tokens learned" if recipe.stage == "sft" else "tokens seen",
        bits_per_byte=figures.get("bits_per_byte") or math.nan,
        held_out=f"{report['validation_documents']:,} {_held_out_in_words(recipe)}",
        baselines={baseline_label(name): value for name, value in baselines.items()},
        logit_difference=figures.get("logit_difference"),
        command="journey train recipe.yaml  # the recipe.yaml beside this file",
        limits=(
            _CHAT_LIMIT if recipe.stage == "sft" else _LIMITS[recipe.objective],
            "It knows only what stands in its training text, and shares that text's language and slant.",
            "Not for decisions about people, nor for facts that nobody checks.",
        ),
        task={"encoder": "fill-mask", "encoder_decoder": "text2text-generation"}.get(
            recipe.model.kind, "text-generation"
        ),
        accuracies=accuracies,
    )


def _architecture(recipe: Recipe) -> str:
    model = recipe.model
    layers = f"{model.num_layers} layers"
    if model.num_decoder_layers:
        layers = f"{model.num_layers} layers that read and {model.num_decoder_layers} that write"
    return (
        f"{_KINDS[model.kind]} transformer: {layers}, {model.width} wide, {model.num_heads} heads "
        f"({model.num_kv_heads} for keys and values), {model.norm}, {model.positions} positions, {model.mlp} blocks"
    )


def _held_out_in_words(recipe: Recipe) -> str:
    if recipe.objective == "seq2seq":
        never = "sources" if is_pair_file(recipe.data.source) else "answers"
        return f"held-out pairs, whose {never} were never trained on"
    if recipe.stage == "sft":
        asked = f"; of answers the first {recipe.chats.scored:,} were judged" if recipe.chats.scored else ""
        return f"held-out chats of the same source, which ask nothing that was trained{asked}"
    if recipe.training.stream is None:
        return "held-out documents of the same source, never trained on"
    name = Path(recipe.data.source).name
    return f"held-out documents of `{name}`; what equals one, or a paragraph of one, was left out of the stream"


def _data_in_words(recipe: Recipe, documents: int) -> tuple[str, str, str]:
    """(what the data is, its licence, the identifier for the weights). documents: that were trained on."""
    data, data_licence, licence = _source_in_words(recipe, documents)
    if recipe.base is None:
        return data, data_licence, licence
    from llm_journey.datasets.catalog import CATALOG

    base = f"`{Path(recipe.base).name}`" + (f" ({CATALOG[recipe.base].licence})" if recipe.base in CATALOG else "")
    of_base = _LICENCES.get(CATALOG[recipe.base].licence, "other") if recipe.base in CATALOG else licence
    # Weights are under their base's licence and their data's: the one that asks for more, where one does.
    permissive = ("mit", "apache-2.0")
    if licence in permissive:
        licence = "apache-2.0" if "apache-2.0" in (licence, of_base) and of_base in permissive else of_base
    elif of_base not in (*permissive, licence):
        licence = "other"
    return f"Gone on from {base}, method {recipe.method}. {data}", data_licence, licence


def _source_in_words(recipe: Recipe, documents: int) -> tuple[str, str, str]:
    from llm_journey.datasets.catalog import CATALOG, is_catalog_file
    from llm_journey.datasets.made_chats import MADE_CHATS

    source = recipe.training.stream or recipe.data.source
    if source in MADE_CHATS:
        corpus = MADE_CHATS[source].corpus
        if corpus is None:
            return f"Trained on {MADE_CHATS[source].title}", "none needed, it is generated", "mit"
        licence = CATALOG[corpus].licence
        return f"Trained on {MADE_CHATS[source].title}", licence, _LICENCES.get(licence, "other")
    if recipe.objective == "seq2seq" and is_pair_file(source):
        return f"Trained on the pairs in `{Path(source).name}`", "not stated by its owner", "other"
    if recipe.objective == "seq2seq":
        from llm_journey.training.tasks import find_task

        return f"Trained on {find_task(source).title}", "none needed, it is computed", "mit"
    name = source.partition("/")[0] if is_catalog_file(source) else source
    if name in CATALOG:
        entry = CATALOG[name]
        trained = (
            f"{documents:,} documents of `{name}` ({entry.title})" if recipe.training.stream is None else entry.title
        )
        return f"Trained on {trained}", entry.licence, _LICENCES.get(entry.licence, "other")
    kind = "the stream" if recipe.training.stream else "the text in"
    return f"Trained on {kind} `{Path(source).name}`", "not stated by its owner", "other"


def _report(material: _Material) -> None:
    from llm_journey.reports.run_report import write_report

    write_report(material.folder.directory)


_MEASUREMENTS: dict[str, Callable[[_Material], None]] = {
    "comparing with the baselines": _compare_with_baselines,
    "opening the model with transformers": _certify_export,
    "writing the model card": _write_card,
    "writing the report": _report,
}
