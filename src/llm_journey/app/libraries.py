"""Libraries by name: indexed, searched, asked. What `journey index`, `journey ask` and `llm_journey.index` run."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from llm_journey.core import files
from llm_journey.core.config import override, validate
from llm_journey.core.errors import BadInputError, unknown_name
from llm_journey.core.paths import indexes_dir, inside
from llm_journey.training.observer import Observer

if TYPE_CHECKING:
    from llm_journey.app.chat_model import LocalChatModel
    from llm_journey.rag.answer import Answer, AnswerConfig
    from llm_journey.rag.library import Passage, Update
    from llm_journey.rag.retrievers import Retriever

SETTINGS = "settings.json"
DEFAULT_EMBEDDER = "all-minilm-l6-v2"
DEFAULT_MODEL = "smollm2-135m-instruct"
NO_EMBEDDER = "none"
_LEAST_COSINE = 0.25  # a passage farther from the question than this says nothing of it


@dataclass(frozen=True)
class IndexReport:
    """What indexing did."""

    name: str
    folder: Path
    documents: int
    passages: int
    update: "Update"

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) rows for a person."""
        update = self.update
        done = (
            f"{update.added:,} new, {update.changed:,} changed, {update.unchanged:,} as before, {update.removed:,} gone"
        )
        rows = [("Library", self.name), ("Lies at", str(self.folder)), ("Documents", f"{self.documents:,} ({done})")]
        if update.doubles:
            rows.append(("Doubles", f"{update.doubles:,} documents with another's text, left out"))
        rows.append(("Passages", f"{self.passages:,} ({update.passages:,} cut, {update.vectors:,} embedded)"))
        if update.problems:
            path, reason = update.problems[0]
            rows.append(("Not read", f"{len(update.problems):,} files or rows (first: {path}: {reason})"))
        return rows

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.name,
            "path": str(self.folder),
            "documents": self.documents,
            "passages": self.passages,
            **asdict(self.update),
        }


def index_source(
    source: str,
    *,
    name: str | None = None,
    embedder: str | None = None,
    settings: Sequence[str] = (),
    observer: Observer | None = None,
) -> IndexReport:
    """Index a folder, a file, a glob or a catalog corpus, or bring its library up to date.

    name: of the library (default: the source's last part). embedder: what makes the vectors; "none" makes none.
    settings: "key=value" texts of ChunkConfig. Where the library is there already, what is not given stays as it was.
    Raises BadInputError for what cannot be read, or a name that is taken by another source.
    """
    from llm_journey.datasets.catalog import CATALOG, resolve
    from llm_journey.rag.chunk import ChunkConfig
    from llm_journey.rag.library import Library
    from llm_journey.text.readers import Problem, read_documents

    observer = observer or Observer()
    place = resolve(source)
    known = source if source in CATALOG else str(place.expanduser().absolute())
    name = name or Path(known).stem or "library"
    folder = inside(indexes_dir(), name)
    before = files.read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    if before and before["source"] != known:
        raise BadInputError(f"library {name!r} holds {before['source']}; give this one another --name")
    config = validate(ChunkConfig, override(before.get("chunks", {}), settings), "passages")
    chosen = embedder or before.get("embedder") or DEFAULT_EMBEDDER
    problems: list[Problem] = []
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / SETTINGS, {"source": known, "embedder": chosen, "chunks": asdict(config)})
    with Library(folder, lambda: observer.message("another process indexes this library; waiting")) as library:
        observer.stage("reading documents")
        update = library.update(
            read_documents(place, problems=problems),
            config,
            on_progress=lambda count: observer.progress(count, None, "documents"),
        )
        if chosen != NO_EMBEDDER:
            update.vectors = _embed(library, chosen, observer)
        if update.removed or update.changed:
            library.forget_vectors()
        update.problems = [(problem.path, problem.reason) for problem in problems]
        return IndexReport(name, folder, library.num_documents, len(library.passages()), update)


def _embed(library: Any, name: str, observer: Observer) -> int:
    from llm_journey.app.embedder import open_embedder

    observer.stage("embedding passages")
    opened = open_embedder(name)
    made: int = library.embed(
        name,
        lambda texts: opened.embed_counted(texts).vectors,
        on_progress=lambda done, total: observer.progress(done, total, "passages"),
    )
    return made


class OpenLibrary:
    """A library to search and to ask. Words are searched at once; vectors where the library has them."""

    def __init__(self, name: str, folder: Path, *, retriever: str | None = None, settings: Sequence[str] = ()) -> None:
        from llm_journey.rag.library import Library
        from llm_journey.rag.retrievers import RetrieverName

        stored = files.read_json(folder / SETTINGS)
        self.name, self.embedder = name, str(stored["embedder"])
        default = "bm25" if self.embedder == NO_EMBEDDER else "hybrid"
        self.retriever_name = retriever or default
        if self.retriever_name not in get_args(RetrieverName):
            raise unknown_name("retriever", self.retriever_name, get_args(RetrieverName))
        if self.retriever_name != "bm25" and self.embedder == NO_EMBEDDER:
            raise BadInputError(f"library {name!r} has no vectors: index it with --embedder {DEFAULT_EMBEDDER}")
        with Library(folder) as library:
            self.passages: list[Passage] = library.passages()
            vectors = None if self.retriever_name == "bm25" else library.vectors(self.embedder)
        self._dense: Any = None
        self._retriever = self._make(vectors, settings)

    def _make(self, vectors: Any, settings: Sequence[str]) -> "Retriever":
        from llm_journey.rag.lexical import LexicalConfig, LexicalIndex
        from llm_journey.rag.retrievers import DenseIndex, DiverseRetriever, HybridConfig, HybridRetriever

        given = override({}, settings)
        words: dict[str, Any] = {key: given.pop(key) for key in ("k1", "b") if key in given}
        lexical_config = validate(LexicalConfig, words, "retrieval settings")
        config = validate(HybridConfig, given, "retrieval settings")
        if vectors is not None:
            from llm_journey.app.embedder import open_embedder

            self._dense = DenseIndex(vectors, open_embedder(self.embedder).embed)
        if self.retriever_name == "dense":
            found: Retriever = self._dense
            return found
        lexical = LexicalIndex([passage.text for passage in self.passages], lexical_config)
        if self.retriever_name == "bm25":
            return lexical
        hybrid = HybridRetriever(lexical, self._dense, config)
        return hybrid if self.retriever_name == "hybrid" else DiverseRetriever(hybrid)

    def search(self, question: str, count: int = 5) -> "list[tuple[Passage, float]]":
        """The best passages with their scores. With vectors, what lies too far from the question is no answer."""
        hits = self._retriever.search(question, count)
        found = zip(hits.indices.tolist(), hits.scores.tolist(), strict=True)
        if self._dense is None:
            return [(self.passages[index], score) for index, score in found]
        nearness = self._dense.vectors_nd @ self._dense.embedded(question)
        return [(self.passages[index], score) for index, score in found if nearness[index] >= _LEAST_COSINE]

    def ask(
        self,
        question: str,
        model: "str | LocalChatModel" = DEFAULT_MODEL,
        *,
        config: "AnswerConfig | None" = None,
        on_text: Callable[[str], object] | None = None,
    ) -> "Answer":
        """An answer from the library's passages, with its sources. model: a chat model by name, or an open one."""
        from llm_journey.app.chat_model import open_chat_model
        from llm_journey.rag.answer import AnswerConfig, answer
        from llm_journey.serving.orders import chat_ids
        from llm_journey.serving.requests import ChatMessage

        if not question.strip():
            raise BadInputError("the question is empty")
        config = config or AnswerConfig()
        opened = open_chat_model(model) if isinstance(model, str) else model
        try:
            served = opened.served
            found = [passage for passage, _ in self.search(question, config.passages * 2)]
            return answer(
                question,
                found,
                opened,
                lambda asked: len(chat_ids(served, [ChatMessage.model_validate(each) for each in asked], [])),
                served.context,
                config,
                on_text=on_text,
            )
        finally:
            if isinstance(model, str):
                opened.close()


def open_library(name: str | None = None, *, retriever: str | None = None, settings: Sequence[str] = ()) -> OpenLibrary:
    """A library by name (default: the one indexed last). Raises BadInputError that lists what there is."""
    known = list_libraries()
    if name is None:
        if not known:
            raise BadInputError("nothing is indexed yet; index a folder: journey index PATH")
        name = known[0]
    if name not in known:
        raise BadInputError(f"unknown library {name!r}; known: {', '.join(known) or 'none yet (journey index PATH)'}")
    return OpenLibrary(name, inside(indexes_dir(), name), retriever=retriever, settings=settings)


def list_libraries() -> list[str]:
    """Names of the libraries, the one indexed last first."""
    found = [path.parent for path in indexes_dir().glob(f"*/{SETTINGS}")]
    return [path.name for path in sorted(found, key=lambda path: -(path / SETTINGS).stat().st_mtime_ns)]
