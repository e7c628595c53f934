"""LLM Journey: from raw text to a language model you trained, measured and put to work.

    import llm_journey

    run = llm_journey.train("quickstart", overrides=["training.seconds=30"])
    print(run.figures["bits_per_byte"], run.report)
    model = llm_journey.load(run.name)
    print(model.generate("The city of"))
    print(llm_journey.index("./notes").ask("Who built the bridge?").marked())

Importing this package loads nothing heavy; torch comes with the first call.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_journey.app.libraries import OpenLibrary
    from llm_journey.app.opening import AnyModel
    from llm_journey.app.runs import TrainedRun
    from llm_journey.training.observer import Observer
    from llm_journey.training.recipe import Recipe

__all__ = ["index", "load", "train"]

# GNU OpenMP's threads spin at every barrier before they sleep. Where another program wants a core, the long default
# stalls all of them: the quickstart's model trained at 189 tokens/s beside one busy process, at 1,222 to 1,741 with
# this shorter spin, and within a tenth of each other on an idle machine. It is read once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def load(
    model: str | Path, *, precision: str = "auto", compile: bool | None = None, adapter: str | Path | None = None
) -> "AnyModel":
    """A model to generate, chat or embed with.

    model: a run's name (`journey runs list`), a catalog model (`journey models list`), or a folder in Hugging Face
    layout. Returns an object with `generate(text)`, `chat(messages)`, `stream(text)` and `tokenizer`; of an encoder
    one with `fill(text)`, of an encoder-decoder one with `rewrite(text)`, of a sentence-transformers model one with
    `embed(texts)` ("all-minilm-l6-v2").
    precision: of the weights that `generate` and `chat` compute with: "float32", "bfloat16", "int8", "int4", or "auto",
    as many bits as the model's file holds. compile: answer by steps compiled for this machine (once, half a minute;
    half as fast again or more), by none, or (None) where they were compiled before. adapter: the folder, or the run, of
    one to answer with beside the weights.
    A notebook shows it as a table. Raises llm_journey.core.errors.BadInputError where nothing can be opened under that
    name.
    """
    from llm_journey.app.opening import open_model_or_embedder

    if adapter is not None:
        from llm_journey.app.adapters import find_adapter
        from llm_journey.app.language_model import open_model

        return open_model(str(model), precision, compile=compile, adapter=find_adapter(str(adapter)))
    return open_model_or_embedder(str(model), precision, compile=compile)


def index(
    source: str | Path, *, name: str | None = None, embedder: str | None = None, settings: Sequence[str] = ()
) -> "OpenLibrary":
    """Make texts a library, or bring it up to date, and open it: `index("./notes").ask("Who built the bridge?")`.

    source: a folder, a file, a glob or a catalog corpus. name: of the library (default: the source's last part).
    embedder: what makes the vectors ("none": words alone are searched). settings: such as "chunker=markdown",
    "size=600". Returns an object with `search(question)` and `ask(question, model)`. Raises BadInputError for what
    cannot be read.
    """
    from llm_journey.app.libraries import index_source, open_library

    report = index_source(str(source), name=name, embedder=embedder, settings=settings)
    return open_library(report.name)


def train(
    recipe: "str | Path | Recipe",
    *,
    overrides: Sequence[str] = (),
    name: str | None = None,
    resume: bool = False,
    observer: "Observer | None" = None,
) -> "TrainedRun":
    """Train a tokenizer and a model by a recipe, measure them, write the report; returns the run.

    recipe: a shipped recipe's name ("quickstart"), a YAML file, a run (its own recipe again), or a Recipe.
    overrides: assignments such as "training.seconds=30". name: the run's name (default: the recipe's; where that is
    taken, with a number behind it). resume: go on with the run of that name. observer: told of every step.
    Returns an object with `figures`, `baselines`, `report` (path of the HTML report) and `model()`; a notebook shows
    the report's main figures. Raises BadInputError for a recipe that is wrong, JourneyError where training fails; on
    Ctrl-C the run is saved and returned with status "interrupted".
    """
    from llm_journey.app.training import train_and_measure

    if isinstance(overrides, str):
        overrides = [overrides]
    return train_and_measure(recipe, overrides=overrides, name=name, resume=resume, observer=observer)
