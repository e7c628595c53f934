"""A compiled decoding step computes what the eager one does: as a function for all families, compiled for some."""

import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import FAMILIES, GREEDY, engine, new_ids, run
from hypothesis import given
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.generation import compiled, machine_code
from llm_journey.generation import runner as runner_module
from llm_journey.generation.blocks import BlockPool
from llm_journey.generation.compiled import CompiledLayers, CompiledTail, DecodeLayer, Tail
from llm_journey.generation.engine import Engine, EngineConfig
from llm_journey.generation.paged_cache import PagedCache
from llm_journey.generation.runner import Runner, Share, _by_length
from llm_journey.model.decoder import Decoder
from llm_journey.parity.random_models import random_decoder, random_ids

WIDE: dict[str, Any] = {
    "width": 64,
    "mlp_width": 128,
    "num_heads": 4,
    "num_kv_heads": 2,
    "vocab_size": 128,
    "context": 128,
}
PROMPTS = [random_ids(1, length, 97, seed=length)[0].tolist() for length in (19, 3, 11)]


class InPython:
    """Stands for machine_code.Function: the same calls of a module as it is written."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def in_turn(self, own: Any) -> Any:
        def call(x: torch.Tensor, *shared: torch.Tensor) -> torch.Tensor:
            for tensors in own:
                # A layer takes its keys and values apart from its weights.
                given = (tensors[0], tuple(tensors[1:])) if shared else (tuple(tensors),)
                x = self.module(x, *shared, *given)
            return x

        return call


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step runs as the Python that it is written in."""

    def take(self: CompiledLayers, config: Any, layers: Any, num_rows: int) -> None:
        self._tensors = [[tensor for part in layer.each() for tensor in part.tensors] for layer in layers]
        self._no_rotation = torch.zeros(1, 1, 2 * config.head_width)
        self._step, self._bound = InPython(DecodeLayer(config, layers[0])), None

    def take_tail(self: CompiledTail, norm: Any, head: Any) -> None:
        self._step = InPython(Tail(norm, head)).in_turn([(*norm.tensors, *head.tensors)])

    monkeypatch.setattr(CompiledLayers, "__init__", take)
    monkeypatch.setattr(CompiledTail, "__init__", take_tail)


def decoded(decoder: Decoder, weights: Any, *, compile: bool) -> torch.Tensor:
    """Logits of five steps of three sequences together and of one alone, behind prompts that the eager way has read."""
    runner = Runner(decoder, weights)
    pool, cache = BlockPool(64, 4), PagedCache(decoder.config, num_blocks=64, block_size=4)
    cache.layer(0).fill_(torch.nan)  # memory that was never written may hold anything
    tables: list[list[int]] = [[] for _ in PROMPTS]
    for ids, table in zip(PROMPTS, tables, strict=True):
        assert pool.grow(table, len(ids))
        runner([Share(ids=ids, start=0, table=table)], cache)
    if compile:
        runner.compile(several=True)
    found = []
    for step, chosen in enumerate(((0, 1, 2), (0, 1, 2), (2, 0), (1,), (2,))):
        shares = []
        for index in chosen:
            start = len(PROMPTS[index]) + sum(index in before for before in ((0, 1, 2), (0, 1, 2), (2, 0), (1,))[:step])
            assert pool.grow(tables[index], start + 1)
            if decoder.config.sliding_window is not None:
                pool.release_before(tables[index], start + 1 - decoder.config.sliding_window)
            shares.append(Share(ids=[7 + step + index], start=start, table=tables[index]))
        found.append(runner(shares, cache))
    return torch.cat(found)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", FAMILIES)
def test_the_step_as_a_function_equals_the_eager_runner(name: str) -> None:
    decoder = random_decoder(**FAMILIES[name])
    wanted = decoded(decoder, "float32", compile=False)
    torch.testing.assert_close(decoded(decoder, "float32", compile=True), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
def test_the_step_in_few_bits_stays_as_near_as_the_eager_runner(weights: Any) -> None:
    decoder = random_decoder(scale=0.1, bias=True, **WIDE)
    wanted, found = (decoded(decoder, weights, compile=compile) for compile in (False, True))
    assert float((found - wanted).norm() / wanted.norm()) < 0.01  # bf16's rounding of activations, here or there


@pytest.mark.parametrize("weights", [pytest.param("float32", marks=pytest.mark.full), "int8"])
def test_compiled_answers_are_the_eager_ones(weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if machine_code.find_compiler() is None:
        pytest.skip("no C++ compiler here")
    monkeypatch.setenv("JOURNEY_HOME", str(tmp_path))
    decoder = random_decoder(scale=0.1, bias=True, **WIDE)
    wanted, found = (decoded(decoder, weights, compile=compile) for compile in (False, True))
    assert float((found - wanted).norm() / wanted.norm()) < (1e-5 if weights == "float32" else 0.01)
    # What is kept is found again, and nothing is left beside it.
    assert Runner(decoder, weights).use_kept()
    assert sorted(path.suffix for path in compiled.kept_folder().iterdir()) == [".pt2"] * 3
    assert not Runner(decoder, "bfloat16").use_kept()


@pytest.mark.usefixtures("uncompiled")
def test_an_engine_with_compiled_steps_answers_as_without() -> None:
    """Prompts are read in pieces of 8 tokens, so that passes hold answers and pieces of prompts together."""
    decoder = random_decoder(**FAMILIES["llama"])
    plain = engine(decoder)
    runner = Runner(decoder)
    runner.compile(several=True)
    fast = Engine(runner, EngineConfig(block_size=4, max_tokens=8))
    answers = []
    for an_engine in (plain, fast):
        requests = [an_engine.submit(ids, GREEDY) for ids in PROMPTS]
        run(an_engine)
        answers.append([new_ids(request) for request in requests])
    assert answers[0] == answers[1]


@pytest.mark.usefixtures("uncompiled")
def test_texts_of_unlike_lengths_are_computed_in_groups_and_answer_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "_SPARED", 10)
    decoder = random_decoder(**FAMILIES["llama"])
    runner = Runner(decoder)
    runner.compile(several=True)
    rows: list[int] = []
    inner = runner._logits
    monkeypatch.setattr(runner, "_logits", lambda shares, cache: rows.append(len(shares)) or inner(shares, cache))
    answers = []
    for an_engine in (engine(decoder), Engine(runner, EngineConfig(block_size=4))):
        requests = [an_engine.submit(ids, GREEDY) for ids in PROMPTS]
        run(an_engine)
        answers.append([new_ids(request) for request in requests])
    assert answers[0] == answers[1]
    assert rows[:3] == [3, 2, 1]  # the prompts, then 3 and 11 tokens together, and 19 alone


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40).map(sorted))
def test_groups_by_length_waste_little(lengths: list[int]) -> None:
    groups = _by_length(list(range(len(lengths))), lengths)
    assert [item for group in groups for item in group] == list(range(len(lengths)))
    for group in groups:
        longest = lengths[group[-1]]
        for cut in range(1, len(group)):
            assert cut * (longest - lengths[group[cut - 1]]) < runner_module._SPARED


@pytest.mark.full
def test_other_threads_run_while_compiled_code_does(tmp_path: Path) -> None:
    """An event loop in the same process would else wait for each layer."""
    if machine_code.find_compiler() is None:
        pytest.skip("no C++ compiler here")

    class Long(torch.nn.Module):
        def forward(self, x: torch.Tensor, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
            for _ in range(20):
                x = torch.tanh(x @ tensors[0])
            return x

    example = (torch.randn(64, 1024), (torch.randn(1024, 1024),))
    machine_code.compile_to(tmp_path / "long.pt2", Long(), example, None)
    step = machine_code.Function(tmp_path / "long.pt2").in_turn([example[1]] * 10)
    ticks: list[float] = []
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    began = time.perf_counter()
    step(example[0])
    seconds = time.perf_counter() - began
    ended.set()
    thread.join()
    assert sum(began < when < began + seconds for when in ticks) > 5
    # What comes out is freed with its last name (PyTorch 2.13 has a function that keeps it).
    result = step(example[0])
    assert sys.getrefcount(result) == 2


def test_without_a_compiler_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNEY_HOME", str(tmp_path))
    monkeypatch.setattr(machine_code, "find_compiler", lambda: None)
    runner = Runner(random_decoder())
    assert not runner.use_kept()
    with pytest.raises(JourneyError, match="C\\+\\+ compiler"):
        runner.compile()


def test_a_damaged_file_is_removed_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNEY_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "compile_to", lambda *_: pytest.fail("a file is there"))
    file = tmp_path / "kept.pt2"
    monkeypatch.setattr(compiled, "kept_layers", lambda *_: file)
    file.write_bytes(b"half a file")
    with pytest.raises(JourneyError, match="damaged"):
        Runner(random_decoder()).compile()
    assert not file.exists()
    # Who has not asked for it goes on without, and is told.
    monkeypatch.setattr(runner_module, "kept_layers", lambda *_: file)
    file.write_bytes(b"half a file")
    said: list[str] = []
    assert not Runner(random_decoder()).use_kept(on_trouble=said.append)
    assert len(said) == 1 and "damaged" in said[0] and not file.exists()


def test_code_that_may_not_be_loaded_here_is_kept(tmp_path: Path) -> None:
    """A folder mounted `noexec`: the file is good, and stays."""
    file = tmp_path / "kept.pt2"
    with zipfile.ZipFile(file, "w") as package:
        package.writestr("step/code.wrapper.so", b"no library")
        package.writestr("in_turn.so", b"nor this")
    with pytest.raises(JourneyError, match="cannot be loaded"):
        machine_code.Function(file)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.pt2"]


def test_unlike_layers_are_refused() -> None:
    decoder = random_decoder()
    decoder.blocks[0].mlp.up = torch.nn.Linear(decoder.config.width, decoder.config.mlp_width + 8)  # type: ignore[union-attr]
    with pytest.raises(BadInputError, match="layers differ"):
        Runner(decoder).compile()
