"""The main job in one go: from the pulled corpus to a measured model, and a word with a published one beside it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_journey.app.language_model import open_model
from llm_journey.app.runs import MODEL_FOLDER, TrainedRun
from llm_journey.app.training import describe_error, train_and_measure
from llm_journey.core.errors import JourneyError
from llm_journey.training.observer import Observer
from llm_journey.training.recipe import load_recipe

RECIPE, CORPUS = "quickstart", "wiki-summaries"
_PROMPTS_SHOWN = 3
CHAT_MODEL, QUESTION = "smollm2-135m-instruct", "What is the capital of France?"
# Asked of the corpus itself, through retrieval.
GROUNDED = (
    "Who painted the Mona Lisa?",
    "What is the capital of Norway?",
    "What is the largest planet in the Solar System?",
)


class StageTimes(Observer):
    """Passes everything on to another observer, and keeps how long each stage took."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._started = self._since = time.monotonic()
        self._name = ""
        self._seconds: dict[str, float] = {}

    def stage(self, name: str) -> None:
        self._close()
        self._name = name
        self._observer.stage(name)

    def message(self, text: str) -> None:
        self._observer.message(text)

    def progress(self, done: float, total: float | None, unit: str) -> None:
        self._observer.progress(done, total, unit)

    def step(self, row: dict[str, Any]) -> None:
        self._observer.step(row)

    def validation(self, row: dict[str, Any]) -> None:
        self._observer.validation(row)

    def sample(self, row: dict[str, Any]) -> None:
        self._observer.sample(row)

    def finish(self) -> dict[str, float]:
        """Seconds of each stage so far, in their order."""
        self._close()
        self._name = ""
        return dict(self._seconds)

    def _close(self) -> None:
        now = time.monotonic()
        if self._name:
            self._seconds[self._name] = self._seconds.get(self._name, 0.0) + now - self._since
        self._since = now

    @property
    def total(self) -> float:
        """Seconds since this was made."""
        return time.monotonic() - self._started


@dataclass(frozen=True)
class Summary:
    """What a quickstart made. samples: (prompt, continuation) pairs; stages: seconds each; seconds: of the whole.

    answer: what the published model said to QUESTION; None where it was not asked or could not be had. grounded:
    (question, answer with the numbers of its sources, the sources' texts) of what it answered from the corpus.
    """

    run: TrainedRun
    stages: dict[str, float]
    seconds: float
    samples: list[tuple[str, str]] = field(default_factory=list)
    answer: str | None = None
    grounded: list[tuple[str, str, dict[int, str]]] = field(default_factory=list)

    @property
    def next_commands(self) -> list[tuple[str, str]]:
        """(what for, command) of what a person may do with the run now."""
        name = self.run.name
        at = "" if name == "quickstart" else f" --set base={name}"
        return [
            ("write with your model", f'journey generate {name} "The city of"'),
            ("teach it to answer, in about two minutes", f"journey train chat{at}"),
            ("talk to a published model", f"journey chat {CHAT_MODEL}"),
            ("search by meaning too, some minutes", f"journey index {CORPUS} --embedder all-minilm-l6-v2"),
            ("train a better one, 20 minutes", "journey train small"),
            ("train on your own text", "journey train quickstart --set data.source=PATH --name mine"),
            ("read the recipe of this run", "journey runs show " + name),
            ("see what was kept and dropped", f"journey data show {name}"),
        ]

    def beaten(self) -> list[str]:
        """Names of the baselines whose bits per byte lie above the model's."""
        bits = self.run.figures.get("bits_per_byte")
        return [name for name, value in self.run.baselines.items() if bits is not None and value > bits]

    def describe(self) -> dict[str, Any]:
        """The summary as JSON values."""
        return {
            **self.run.describe(),
            "model": str(self.run.directory / MODEL_FOLDER),
            "beaten": self.beaten(),
            "failures": self.run.failures,
            "samples": [{"prompt": prompt, "text": text} for prompt, text in self.samples],
            "chat": None if self.answer is None else {"model": CHAT_MODEL, "question": QUESTION, "answer": self.answer},
            "grounded": [
                {"question": question, "answer": answer, "sources": sources}
                for question, answer, sources in self.grounded
            ],
            "stages": {name: round(seconds, 3) for name, seconds in self.stages.items()},
            "seconds": round(self.seconds, 3),
            "next": [command for _, command in self.next_commands],
        }


def run_quickstart(
    *, name: str | None = None, overrides: Sequence[str] = (), chat: bool = True, observer: Observer
) -> Summary:
    """Pull, prepare, train and measure by the `quickstart` recipe, then let the model write; with `chat`, pull
    CHAT_MODEL too and ask it QUESTION through the same code.

    Raises what `train_and_measure` raises; the summary of an interrupted run has no samples.
    """
    times = StageTimes(observer)
    run = train_and_measure(RECIPE, overrides=overrides, name=name, observer=times)
    samples = []
    if run.status == "finished":
        times.stage("writing samples")
        prompts = load_recipe(run.directory).training.sample_prompts[:_PROMPTS_SHOWN]
        model = open_model(run.name) if prompts else None
        samples = [(text, model.generate(text, seed=0, max_new_tokens=60)) for text in prompts if model]
    answer = _ask(times) if chat and run.status == "finished" else None
    grounded = [] if answer is None else _ask_corpus(times)
    return Summary(run, times.finish(), times.total, samples, answer, grounded)


def _ask(observer: Observer) -> str | None:
    """A published model's answer. That it cannot be had costs no quickstart: the reason is said."""
    observer.stage(f"asking {CHAT_MODEL}")
    try:
        return open_model(CHAT_MODEL).chat(QUESTION, temperature=0.0, max_new_tokens=60)
    except JourneyError as error:
        observer.message(f"{CHAT_MODEL} was not asked: {describe_error(error)}")
        return None


def _ask_corpus(observer: Observer) -> list[tuple[str, str, dict[int, str]]]:
    """What the published model answers from the corpus, searched by words. That it cannot costs no quickstart."""
    from llm_journey.app.chat_model import open_chat_model
    from llm_journey.app.libraries import NO_EMBEDDER, index_source, list_libraries, open_library

    observer.stage("indexing the corpus")
    found = []
    try:
        if CORPUS not in list_libraries():  # one with vectors stays as it is
            index_source(CORPUS, embedder=NO_EMBEDDER, observer=Observer())
        library, model = open_library(CORPUS, retriever="bm25"), open_chat_model(CHAT_MODEL)
        observer.stage("answering from the corpus")
        try:
            for question in GROUNDED:
                answer = library.ask(question, model)
                sources = {number: answer.passages[number - 1].text for number in answer.cited}
                found.append((question, answer.marked() or answer.text, sources))
        finally:
            model.close()
    except JourneyError as error:
        observer.message(f"no answers from the corpus: {describe_error(error)}")
    return found
