"""Adapters beside the weights: in one pass some rows have one and others another; each is the merged model's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engines import FAMILIES, GREEDY, alone, engine, new_ids, run

from llm_journey.app.engine_adapters import read_engine_adapter
from llm_journey.core.errors import BadInputError
from llm_journey.finetuning.config import LoraConfig
from llm_journey.finetuning.lora import inject, remove
from llm_journey.finetuning.peft_format import load_adapter, save_adapter
from llm_journey.generation.engine import Engine
from llm_journey.generation.runner import Runner, Share
from llm_journey.model.decoder import Decoder
from llm_journey.parity.random_models import random_decoder, random_ids

KINDS: dict[str, dict[str, Any]] = {
    "every matrix": {"rank": 3, "alpha": 6},
    "some": {"rank": 2, "targets": ("k", "down"), "rslora": True},
    "dora": {"rank": 2, "dora": True},
    "dora of some": {"rank": 2, "dora": True, "targets": ("v", "up")},
}


def write_adapter(decoder: Decoder, folder: Path, seed: int, **settings: Any) -> Path:
    config = LoraConfig(**settings)
    inject(decoder, config)
    torch.manual_seed(seed)
    for parameter in decoder.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    save_adapter(decoder, folder, config, base="mine")
    remove(decoder, merged=False)
    return folder


def merged(folder: Path, **choices: Any) -> Decoder:
    decoder = random_decoder(**choices)
    load_adapter(decoder, folder)
    remove(decoder, merged=True)
    return decoder


def adapted_engine(folder: Path, kinds: dict[str, dict[str, Any]], **choices: Any) -> tuple[Engine, dict[str, Path]]:
    decoder = random_decoder(**choices)
    found = engine(decoder)
    folders = {
        name: write_adapter(decoder, folder / name, seed, **kind) for seed, (name, kind) in enumerate(kinds.items())
    }
    for name, path in folders.items():
        found.runner.add_adapter(name, read_engine_adapter(decoder, path))
    return found, folders


@pytest.mark.parametrize("family", ["llama", "qwen3", "post-norm", "untied"])
def test_logits_of_a_mixed_pass_are_those_of_the_merged_models(family: str, tmp_path: Path) -> None:
    choices = FAMILIES[family]
    an_engine, folders = adapted_engine(tmp_path, KINDS, **choices)
    rows = [random_ids(1, length, 97, seed=length)[0].tolist() for length in (9, 5, 11, 7, 6)]
    shares = []
    for ids, adapter in zip(rows, [None, *KINDS], strict=True):
        table: list[int] = []
        assert an_engine.pool.grow(table, len(ids))
        shares.append(Share(ids=ids, start=0, table=table, all_logits=True, adapter=adapter))
    logits = an_engine.runner(shares, an_engine.cache).split([len(ids) for ids in rows])
    for ids, adapter, found in zip(rows, [None, *KINDS], logits, strict=True):
        model = random_decoder(**choices) if adapter is None else merged(folders[adapter], **choices)
        with torch.inference_mode():
            torch.testing.assert_close(found, model(torch.tensor([ids]))[0], atol=1e-4, rtol=1e-3)


def test_biases_stay_outside_of_doras_norm(tmp_path: Path) -> None:
    choices = {**FAMILIES["untied"], "bias": True}
    an_engine, folders = adapted_engine(tmp_path, {"dora": KINDS["dora"]}, **choices)
    ids = random_ids(1, 9, 97)[0].tolist()
    request = an_engine.submit(ids, GREEDY, adapter="dora")
    run(an_engine)
    assert new_ids(request) == alone(merged(folders["dora"], **choices), ids)


def test_answers_that_share_an_engine_and_a_prompt_share_no_blocks_across_adapters(tmp_path: Path) -> None:
    """A key computed with an adapter is another key: vllm reuses such blocks only under the adapter's own name too."""
    an_engine, folders = adapted_engine(tmp_path, KINDS)
    ids = random_ids(1, 21, 97)[0].tolist()
    for _ in range(2):  # the second time everything is known
        requests = {name: an_engine.submit(ids, GREEDY, adapter=name) for name in (None, *KINDS)}
        run(an_engine)
        for name, request in requests.items():
            model = random_decoder() if name is None else merged(folders[name])
            assert new_ids(request) == alone(model, ids), name
    assert all(request.sequence.reused == 20 for request in requests.values())
    assert len({tuple(new_ids(request)) for request in requests.values()}) > 1


def test_what_cannot_be_had(tmp_path: Path) -> None:
    decoder = random_decoder()
    folder = write_adapter(decoder, tmp_path / "embed", 0, targets=("embed",))
    before = decoder(torch.arange(9)[None])
    with pytest.raises(BadInputError, match=r"changes embed, which all answers share.*journey adapters merge"):
        read_engine_adapter(decoder, folder)
    assert torch.equal(decoder(torch.arange(9)[None]), before)
    an_engine = engine(decoder)
    with pytest.raises(BadInputError, match="unknown adapter 'nobody'"):
        an_engine.submit([1, 2], GREEDY, adapter="nobody")
    good = read_engine_adapter(decoder, write_adapter(decoder, tmp_path / "good", 0))
    an_engine.runner.add_adapter("good", good)
    with pytest.raises(BadInputError, match="an adapter called 'good' already"):
        an_engine.runner.add_adapter("good", good)


def test_an_adapter_of_a_model_in_few_bits(tmp_path: Path) -> None:
    """The updates stand beside the codes: what the adapter changes is there, to the codes' own error."""
    decoder = random_decoder(width=64, num_heads=4)
    folder = write_adapter(decoder, tmp_path / "a", 3, rank=4)
    runner = Runner(decoder, "int8")
    runner.add_adapter("a", read_engine_adapter(decoder, folder))
    ids = random_ids(1, 16, 97)[0].tolist()
    small = engine(decoder)
    table: list[int] = []
    assert small.pool.grow(table, len(ids))
    share = {"ids": ids, "start": 0, "table": table, "all_logits": True}
    found, plain = (runner([Share(**share, adapter=name)], small.cache) for name in ("a", None))  # type: ignore[arg-type]
    with torch.inference_mode():
        expected = merged(folder, width=64, num_heads=4)(torch.tensor([ids]))[0]
    assert (found - expected).abs().max() < 0.1 * (found - plain).abs().max()
