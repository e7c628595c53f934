"""Retrievers judged on a test set: what `journey eval retrieval` runs."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from llm_journey.core.config import override, validate
from llm_journey.core.errors import unknown_name
from llm_journey.training.observer import Observer

if TYPE_CHECKING:
    from llm_journey.datasets.beir import RetrievalSet
    from llm_journey.rag.retrievers import DenseIndex, Retriever

METRICS = ("ndcg@10", "recall@100", "map@100", "mrr@10", "precision@10")
DEFAULT_EMBEDDER = "all-minilm-l6-v2"
_DEPTH = 100


@dataclass(frozen=True)
class RetrievalFigures:
    """One retriever's figures. metrics: (mean, low, high) by name. latency: milliseconds a question. diversity: mean
    cosine of its first ten results to each other, None without vectors."""

    retriever: str
    metrics: dict[str, tuple[float, float, float]]
    against: dict[str, dict[str, dict[str, float]]]
    latency: dict[str, float]
    similarity: float | None

    def describe(self) -> dict[str, Any]:
        """As JSON values, the metrics under their own names."""
        return {
            "retriever": self.retriever,
            **{name: mean for name, (mean, _, _) in self.metrics.items()},
            "intervals": {name: [low, high] for name, (_, low, high) in self.metrics.items()},
            "against": self.against,
            "latency_ms": self.latency,
            "similarity@10": self.similarity,
        }


@dataclass(frozen=True)
class RetrievalReport:
    """What was asked of what, and each retriever's figures."""

    folder: Path
    documents: int
    queries: int
    left_out: int
    embedder: str | None
    results: list[RetrievalFigures]

    def describe(self) -> dict[str, Any]:
        """As JSON values; of a single retriever its figures stand at the top too."""
        results = [result.describe() for result in self.results]
        return (results[0] if len(results) == 1 else {}) | {
            "folder": str(self.folder),
            "documents": self.documents,
            "queries": self.queries,
            "queries_without_relevant_documents": self.left_out,
            "embedder": self.embedder,
            "results": results,
        }


def evaluate_retrieval(
    folder: Path,
    retrievers: Sequence[str],
    *,
    split: str = "test",
    embedder: str = DEFAULT_EMBEDDER,
    settings: Sequence[str] = (),
    observer: Observer | None = None,
) -> RetrievalReport:
    """Search a BEIR-layout folder's documents for each of its questions, by each retriever.

    settings: "key=value" texts of LexicalConfig (k1, b) and HybridConfig. Every figure has its interval of 95% over the
    questions; beside each of those before it a retriever has paired differences. Raises BadInputError for data or names
    that are wrong.
    """
    import numpy as np

    from llm_journey.datasets.beir import read_retrieval_set
    from llm_journey.evaluation.ranking import per_query
    from llm_journey.evaluation.stats import bootstrap_mean, paired_difference
    from llm_journey.rag.mmr import mean_similarity
    from llm_journey.rag.retrievers import RetrieverName

    observer = observer or Observer()
    for name in retrievers:
        if name not in get_args(RetrieverName):
            raise unknown_name("retriever", name, get_args(RetrieverName))
    data = read_retrieval_set(folder, split)
    made, dense = _make(data, retrievers, embedder, settings, observer)
    values: dict[str, dict[str, Any]] = {}
    results = []
    ids = list(data.texts)
    for name, retriever in made.items():
        observer.stage(f"searching by {name}")
        rankings, seconds, alike = {}, [], []
        for number, (query, text) in enumerate(data.queries.items()):
            began = time.perf_counter()
            hits = retriever.search(text, _DEPTH)
            seconds.append(time.perf_counter() - began)
            rankings[query] = [ids[index] for index in hits.indices.tolist()]
            if dense is not None:
                vectors = dense.vectors_nd[hits.first(10).indices]
                alike.append(mean_similarity(vectors @ vectors.T))
            observer.progress(number + 1, len(data.queries), "questions")
        values[name] = {metric: per_query(metric, rankings, data.judgements) for metric in METRICS}
        means = {metric: bootstrap_mean(each) for metric, each in values[name].items()}
        against: dict[str, dict[str, dict[str, float]]] = {}
        for other in values:
            if other == name:
                continue
            against[other] = {}
            for metric in METRICS:
                found = paired_difference(values[name][metric], values[other][metric])
                figures = {"difference": found.value, "low": found.low, "high": found.high, "p": found.p}
                against[other][metric] = figures
        p50, p95 = np.percentile(np.array(seconds) * 1000, (50, 95))
        results.append(
            RetrievalFigures(
                name,
                {metric: (mean.value, mean.low, mean.high) for metric, mean in means.items()},
                against,
                {"p50": float(p50), "p95": float(p95)},
                float(np.mean(alike)) if alike else None,
            )
        )
    used = embedder if dense is not None else None
    return RetrievalReport(folder, len(data.texts), len(data.queries), data.left_out, used, results)


def _make(
    data: "RetrievalSet", names: Sequence[str], embedder: str, settings: Sequence[str], observer: Observer
) -> "tuple[dict[str, Retriever], DenseIndex | None]":
    from llm_journey.rag.lexical import LexicalConfig, LexicalIndex
    from llm_journey.rag.retrievers import DiverseRetriever, HybridConfig, HybridRetriever

    given = override({}, settings)
    words: dict[str, Any] = {key: given.pop(key) for key in ("k1", "b") if key in given}
    lexical_config = validate(LexicalConfig, words, "retrieval settings")
    config = validate(HybridConfig, given, "retrieval settings")
    texts = list(data.texts.values())
    lexical = dense = None
    if set(names) != {"dense"}:
        observer.stage("indexing words")
        lexical = LexicalIndex(texts, lexical_config)
    if set(names) != {"bm25"}:
        dense = make_dense(texts, embedder, observer)
    made: dict[str, Retriever] = {}
    for name in names:
        if name == "bm25" and lexical is not None:
            made[name] = lexical
        elif name == "dense" and dense is not None:
            made[name] = dense
        else:
            assert lexical is not None and dense is not None
            hybrid = HybridRetriever(lexical, dense, config)
            made[name] = hybrid if name == "hybrid" else DiverseRetriever(hybrid)
    return made, dense


def make_dense(texts: Sequence[str], name: str, observer: Observer) -> "DenseIndex":
    """The texts' vectors; kept in the cache by what they are made of."""
    import numpy as np

    from llm_journey.app.embedder import open_embedder
    from llm_journey.core.files import sha256_json, write_bytes
    from llm_journey.core.paths import cache_dir
    from llm_journey.rag.retrievers import DenseIndex

    embedder = open_embedder(name)
    mark = sha256_json([embedder.name, str(embedder.directory), embedder.max_tokens, list(texts)])
    path = cache_dir() / "vectors" / f"{mark[:32]}.npy"
    if path.is_file():
        return DenseIndex(np.load(path, allow_pickle=False), embedder.embed)
    observer.stage(f"embedding {len(texts):,} texts")
    done = 0

    def on_batch(count: int) -> None:
        nonlocal done
        done += count
        observer.progress(done, len(texts), "texts")

    found = embedder.embed_counted(texts, on_batch=on_batch)
    if found.cut:
        observer.message(embedder.cut_message(found))
    data = io.BytesIO()
    np.save(data, found.vectors, allow_pickle=False)
    write_bytes(path, data.getvalue())
    return DenseIndex(found.vectors, embedder.embed)
