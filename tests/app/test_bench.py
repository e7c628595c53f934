"""journey bench: what it measures, what each backend writes, and what happens to one that cannot be measured."""

import io
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from command_line import Journey
from gguf_files import random_model, tiny_tokenizer
from llm_journey.app import bench, bench_backends, bench_worker
from llm_journey.app.bench import Figures, quantile, run_bench
from llm_journey.app.bench_backends import KINDS, prepare_file
from llm_journey.app.language_model import open_model
from llm_journey.checkpoint.model_folder import save_model
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.generation.decode import generate
from llm_journey.generation.sampling import SamplingConfig
from llm_journey.training.observer import Observer

EXACT = ["ours float32", "eager float32", "compiled float32", "transformers float32", "onnxruntime float32"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "mill"
    save_model(random_model(num_kv_heads=2), folder, tokenizer=tiny_tokenizer())
    return folder


@pytest.mark.parametrize(
    "name",
    [
        *("ours float32", "eager float32", "onnxruntime float32"),
        pytest.param("transformers float32", marks=pytest.mark.full),
        pytest.param("compiled float32", marks=pytest.mark.full),
        *("ours int8", "ours int4", "ours bfloat16", "onnxruntime int8", "onnxruntime int4"),
    ],
)
def test_each_backend_writes_the_models_greedy_tokens(name: str, source: Path, tmp_path: Path) -> None:
    """In float32 exactly; in fewer bits as many, and the first as float32 has it."""
    model, kind = open_model(str(source)), KINDS[name]
    files = {"model": str(source)}
    if kind.file != "model":
        files[kind.file] = str(prepare_file(model, kind.file, tmp_path))
    ids = bench.prompt_ids(model, 12)
    expected = list(generate(model.decoder, ids, SamplingConfig(temperature=0, max_new_tokens=10)))
    assert len(set(expected)) > 1
    backend = kind.open(files, 1)
    found = list(backend.tokens(ids, 10))
    assert found == list(backend.tokens(ids, 10)), "a slice leaves nothing behind"
    assert found == expected if name in EXACT else (found[0], len(found)) == (expected[0], 10)
    weights = sum(parameter.nbytes for parameter in model.decoder.parameters())
    assert 0.1 * weights < backend.num_bytes < 1.8 * weights


class Slow:
    """A backend with known times."""

    num_bytes = 1000

    def tokens(self, ids: Sequence[int], count: int) -> Iterator[int]:
        time.sleep(0.05)
        yield 7
        for _ in range(count - 1):
            time.sleep(0.01)
            yield 8


def test_times_are_of_the_first_token_and_of_the_gaps() -> None:
    found = bench_worker.timed(Slow(), [1], 4)
    assert found["ids"] == [7, 8, 8, 8] and len(found["seconds"]) == 4
    assert 0.05 <= found["seconds"][0] < 0.2 and all(0.01 <= gap < 0.1 for gap in found["seconds"][1:])


def test_figures_follow_from_the_slices() -> None:
    item = Figures("x", model_bytes=2000, first_token=[0.5, 0.25, 1.0], gaps=[[0.1, 0.1], [0.2, 0.2], [0.4, 0.4]])
    item.ids = [1, 2, 9]
    row = item.describe(100, 100_000.0, [1, 2, 3])
    assert row["prefill_tokens_per_second"] == {"lower": 150.0, "median": 200.0, "upper": 300.0}
    assert row["decode_tokens_per_second"]["median"] == 5.0
    assert row["bandwidth_share"] == pytest.approx(5.0 * 2000 / 100_000)
    assert row["first_token_ms"]["median"] == 500.0
    assert row["token_ms"] == {"p50": 200.0, "p95": 400.0, "p99": 400.0}
    assert row["same_tokens"] == 2
    assert quantile([1.0, 2.0, 4.0], 0.75) == 3.0


def test_a_worker_answers_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_worker, "_open", lambda request: Slow())
    replies = io.StringIO()
    requests = [{"kind": "x"}, {"ids": [1], "count": 2}, {"memory": True}, {"ids": 5}, {"ids": [1], "count": 2}]
    bench_worker.serve(map(json.dumps, requests), replies)
    found = [json.loads(line) for line in replies.getvalue().splitlines()]
    assert found[0]["model_bytes"] == 1000 and found[1]["ids"] == [7, 8]
    assert found[2]["peak_bytes"] > 20e6 and found[2]["resident_bytes"] > 20e6
    assert found[3]["error"].startswith("KeyError") and len(found) == 4


def test_backends_take_turns_in_processes_of_their_own(source: Path, tmp_path: Path) -> None:
    """A backend that this machine lacks is a row with its reason. onnxruntime's process holds no torch."""
    chosen = ["ours float32", "onnxruntime float32", "eager float32 cuda"]
    table = run_bench(str(source), Observer(), backends=chosen, rounds=3, prompt=8, tokens=4, threads=1)
    rows = {row["backend"]: row for row in table.describe()["backends"]}
    for name in chosen[:2]:
        assert rows[name]["rounds"] == 3 and rows[name]["same_tokens"] == 4
        assert 0 < rows[name]["decode_tokens_per_second"]["lower"] <= rows[name]["decode_tokens_per_second"]["upper"]
    assert rows["onnxruntime float32"]["peak_bytes"] < 0.7 * rows["ours float32"]["peak_bytes"]
    assert "rounds" not in rows["eager float32 cuda"] and "CUDA" in rows["eager float32 cuda"]["note"]
    assert len(table.rows()) == 2 and table.notes() == ["eager float32 cuda: no CUDA device here"]
    table.save_plot(tmp_path / "speeds.png")
    assert (tmp_path / "speeds.png").read_bytes().startswith(b"\x89PNG")


class _Broken:
    """Stands for a process: fails at its second slice."""

    def __init__(self, threads: int) -> None:
        self.slices = 0

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        if "kind" in request:
            return {"ready": 0.1, "model_bytes": 10}
        if "memory" in request:
            return {"peak_bytes": 1, "resident_bytes": 1, "gpu_bytes": None}
        self.slices += 1
        if self.slices > 2:
            raise JourneyError("out of memory")
        return {"seconds": [0.1, 0.1], "ids": [1, 2]}

    def close(self) -> None:
        pass


def test_a_backend_that_fails_midway_is_no_figure(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_Worker", _Broken)
    with pytest.raises(JourneyError, match=r"no backend could be measured: ours int8: out of memory"):
        run_bench(str(source), Observer(), backends=["ours int8"], rounds=3, prompt=8, tokens=2)


def test_no_round_begins_after_the_budget(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_Worker", _Broken)
    monkeypatch.setattr(bench, "read_bandwidth", lambda threads: 1e9)
    table = run_bench(str(source), Observer(), backends=["ours int8"], rounds=3, prompt=8, tokens=2, seconds=1e-6)
    assert table.describe()["backends"][0]["rounds"] == 1


def test_a_process_that_dies_or_hangs_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = bench._Worker(1)
    try:
        with pytest.raises(JourneyError, match="took more than 0 seconds"):
            worker.ask({"kind": "ours int8", "files": {"model": "none"}, "threads": 1}, 0.01)
    finally:
        worker.close()
    worker = bench._Worker(1)
    try:
        with pytest.raises(JourneyError, match="unknown model 'none'"):
            worker.ask({"kind": "ours int8", "files": {"model": "none"}, "threads": 1}, 60)
        with pytest.raises(JourneyError, match="its process ended"):
            worker.ask({"ids": [1], "count": 2}, 60)
    finally:
        worker.close()


def test_what_cannot_be_benched(source: Path, tmp_path: Path, journey: Journey) -> None:
    with pytest.raises(BadInputError, match="unknown backend 'vllm'; known: "):
        run_bench(str(source), Observer(), backends=["vllm"])
    with pytest.raises(BadInputError, match="40 tokens read and 32 written do not fit the model's context of 48"):
        run_bench(str(source), Observer(), prompt=40)
    with pytest.raises(BadInputError, match="tokens at least 2"):
        run_bench(str(source), Observer(), prompt=4, tokens=1)
    assert journey("bench", source, "--backend", "vllm").code == 2


def test_the_command(source: Path, tmp_path: Path, journey: Journey) -> None:
    options = ("--backend", "ours int8", "--rounds", 1, "--prompt", 8, "--tokens", 3, "--threads", 1)
    done = journey("bench", source, *map(str, options), "--json", "--plot", tmp_path / "speeds.png")
    assert done.code == 0 and done.json["backends"][0]["backend"] == "ours int8"
    assert done.json["bandwidth_bytes_per_second"] > 1e8 and (tmp_path / "speeds.png").is_file()


def test_every_backend_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = {name: bench_backends.lacking(kind) for name, kind in KINDS.items()}
    assert missing["llama.cpp q8_0"] == "llama_cpp is not installed" and missing["ours int8"] == ""
