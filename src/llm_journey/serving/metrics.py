"""Figures of a running server in Prometheus' text form (exposition format 0.0.4)."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from llm_journey.serving.served import ServedModel

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The figures of one server; what an engine knows is read when somebody asks."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self.registry = CollectorRegistry()
        self._models = [model for model in models if model.parent is None]
        self.requests = self._counter("requests", "Requests by route and status.", "route", "status")
        self.seconds = self._histogram("request_seconds", "From a request to the end of its answer.", "route")
        self.first_token = self._histogram("first_token_seconds", "From a prompt to its first token.", "model")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.", "model")
        self.new_tokens = self._counter("new_tokens", "Tokens written.", "model")
        self.cancelled = self._counter("cancelled", "Answers that were let go.", "reason")
        self._running = self._gauge("running", "Answers that share the passes.", "model")
        self._waiting = self._gauge("waiting", "Answers that wait for their turn.", "model")
        self._blocks = self._gauge("cache_blocks", "Blocks of the key-value cache.", "model")
        self._blocks_free = self._gauge("cache_blocks_free", "Blocks that can be taken.", "model")
        self._preempted = self._gauge("preempted", "Answers whose blocks were taken away, so far.", "model")

    def text(self) -> bytes:
        """The figures now."""
        for model in self._models:
            engine = model.worker.engine
            self._running.labels(model.name).set(len(engine.scheduler.running))
            self._waiting.labels(model.name).set(len(engine.scheduler.waiting))
            self._blocks.labels(model.name).set(engine.pool.num_blocks)
            self._blocks_free.labels(model.name).set(engine.pool.num_free)
            self._preempted.labels(model.name).set(engine.scheduler.preempted)
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"journey_{name}", help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"journey_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, *labels: str) -> Histogram:
        return Histogram(f"journey_{name}", help_text, labels, registry=self.registry, buckets=_SECONDS)
