"""Retrievers on Cranfield (1,400 abstracts, 225 questions), with what a weighted fusion gains that is tuned fairly.

    python benchmarks/retrieval.py --append

The four of `journey eval retrieval`, then a weighted sum of BM25's and the vectors' scores: its weight is chosen on
four fifths of the questions and judged on the rest, five times over, so that every question is judged by a weight that
was chosen without it. Exit code 1 where BM25 or MiniLM is farther than 0.002 from the reference figures, where fusion's
interval over either reaches zero, or where the weighted sum is not better than plain fusion.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from llm_journey.app.retrieval import METRICS, evaluate_retrieval, make_dense
from llm_journey.cli.live import view
from llm_journey.core import ledger
from llm_journey.datasets.beir import RetrievalSet, read_retrieval_set
from llm_journey.datasets.catalog import resolve
from llm_journey.evaluation.ranking import per_query
from llm_journey.evaluation.stats import bootstrap_mean, paired_difference
from llm_journey.rag.fuse import reciprocal_rank_fusion, weighted_fusion
from llm_journey.rag.hits import Hits
from llm_journey.rag.lexical import LexicalIndex
from llm_journey.training.observer import Observer

# By bm25s 0.3.16, sentence-transformers and ranx (nDCG@10, recall@100, MAP).
REFERENCE = {
    "bm25": {"ndcg@10": 0.4948, "recall@100": 0.7384, "map@100": 0.3797},
    "dense": {"ndcg@10": 0.5001, "recall@100": 0.7913, "map@100": 0.4156},
}
BOUND, FOLDS, DEPTH = 0.002, 5, 100
WEIGHTS = np.round(np.arange(0.0, 1.01, 0.05), 2)


def main() -> None:
    """Measure, print, append ledger rows when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beir", default="cranfield", help="a catalog name, or a folder in BEIR's layout")
    parser.add_argument("--append", action="store_true", help="append rows to benchmarks/ledger.jsonl")
    options = parser.parse_args()
    folder = Path(resolve(options.beir))
    with view() as watching:
        report = evaluate_retrieval(folder, ["bm25", "dense", "hybrid", "hybrid-mmr"], observer=watching)
        weighted, chosen, over = weighted_by_folds(read_retrieval_set(folder), watching)
    rows: list[dict[str, Any]] = []
    for result in report.results:
        for metric, (mean, low, high) in result.metrics.items():
            rows.append(row(result.retriever, metric, mean, "share", [low, high], report.queries))
        for other, found in result.against.items():
            gain = found["ndcg@10"]
            rows.append(
                row(
                    result.retriever,
                    f"ndcg@10 less {other}'s",
                    gain["difference"],
                    "share",
                    [gain["low"], gain["high"]],
                    report.queries,
                )
            )
        if result.similarity is not None:
            rows.append(row(result.retriever, "mean cosine of the first ten", result.similarity, "cosine", None, 0))
        rows.append(row(result.retriever, "latency of a search, median", result.latency["p50"], "ms", None, 0))
    mean = bootstrap_mean(weighted)
    rows.append(row("weighted, by folds", "ndcg@10", mean.value, "share", [mean.low, mean.high], mean.count))
    rows.append(
        row("weighted, by folds", "ndcg@10 less fusion's", over.value, "share", [over.low, over.high], mean.count)
    )
    for each in rows:
        print(f"{each['arm']:20} {each['metric']:30} {each['value']:.4f} {each['unit']} {each['spread'] or ''}")
    print(f"weights chosen: {', '.join(f'{weight:g}' for weight in chosen)}")
    if options.append:
        ledger.append(Path(__file__).with_name("ledger.jsonl"), rows)
    sys.exit("; ".join(broken(report.describe()["results"], over.value)) or 0)


def broken(results: list[dict[str, Any]], gain: float) -> list[str]:
    """What is not as it should be, in words."""
    found = {result["retriever"]: result for result in results}
    said = [
        f"{name}'s {metric} is {found[name][metric]:.4f}, the reference has {expected:.4f}"
        for name, reference in REFERENCE.items()
        for metric, expected in reference.items()
        if abs(found[name][metric] - expected) > BOUND
    ]
    said += [
        f"fusion's interval over {name} reaches zero"
        for name, metrics in found["hybrid"]["against"].items()
        if metrics["ndcg@10"]["low"] <= 0
    ]
    if gain <= 0:
        said.append(f"the weighted sum gains {gain:+.4f} over fusion")
    return said


def weighted_by_folds(data: RetrievalSet, observer: Observer) -> tuple[Any, list[float], Any]:
    """(nDCG@10 of each question, the five weights, the difference to fusion by ranks)."""
    ids, texts = list(data.texts), list(data.texts.values())
    lexical, dense = LexicalIndex(texts), make_dense(texts, "all-minilm-l6-v2", observer)
    lists = {query: [lexical.search(text, DEPTH), dense.search(text, DEPTH)] for query, text in data.queries.items()}

    def scores(fuse: Any) -> Any:
        rankings = {query: named(fuse(pair), ids) for query, pair in lists.items()}
        return per_query("ndcg@10", rankings, data.judgements)

    by_weight = np.stack([scores(lambda pair, w=w: weighted_fusion(pair, [1 - w, w])) for w in WEIGHTS])
    fold_q = np.random.default_rng(0).permutation(len(lists)) % FOLDS
    found, chosen = np.zeros(len(lists)), []
    for fold in range(FOLDS):
        best = int(by_weight[:, fold_q != fold].mean(axis=1).argmax())
        chosen.append(float(WEIGHTS[best]))
        found[fold_q == fold] = by_weight[best, fold_q == fold]
    return found, chosen, paired_difference(found, scores(reciprocal_rank_fusion))


def named(hits: Hits, ids: list[str]) -> list[str]:
    """Documents by their ids."""
    return [ids[index] for index in hits.indices.tolist()]


def row(arm: str, metric: str, value: float, unit: str, spread: list[float] | None, count: int) -> dict[str, Any]:
    """One ledger row."""
    return ledger.row(
        benchmark="retrieval-cranfield",
        arm=arm,
        metric=metric,
        value=value,
        unit=unit,
        n=count or 1,
        spread=spread,
        seed=0,
        command="python benchmarks/retrieval.py --append",
        config={"metrics": list(METRICS), "weights": WEIGHTS.tolist()},
    )


if __name__ == "__main__":
    main()
