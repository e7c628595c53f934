"""Model folders with config.json or model.safetensors changed at random: a typed error or a whole model, and soon.

300 folders by default, 10,000 in the full run. Values are exchanged for ones that break programs; bytes are flipped,
cut, doubled. Bounds: 1 s each, and 64 MB over the memory held before (the files themselves have some 20 kB).
"""

import gc
import json
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_decoders import GPT2, MARIAN, MASKED, OWN_KINDS, QWEN3, small_model

from llm_journey.checkpoint.model_folder import load_model, save_model
from llm_journey.core.errors import BadInputError

ODD_VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        1 << 20,
        (1 << 20) + 1,
        1 << 31,
        1 << 62,
        -(1 << 70),
        0.5,
        1e-300,
        1e308,
        -0.0,
    ),
    *("", "gelu", "none", "rope", "encoder", "decoder", "../../etc/passwd", "\0", "é" * 1000, "NaN", [], [1], {}),
    *({"rope_type": "default"}, ["BertForMaskedLM"], ["BertForPreTraining"], [[]] * 3, "bert", "marian", "llm_journey"),
]


def _changed_values(config: bytes, generator: random.Random) -> bytes:
    values = json.loads(config)
    for _ in range(generator.randint(1, 3)):
        key = generator.choice(sorted(values) or ["x"])
        match generator.randrange(4):
            case 0:
                values.pop(key, None)
            case 1:
                values[f"{key}_"] = values.get(key)
            case _:
                values[key] = generator.choice(ODD_VALUES)
    return json.dumps(values).encode()


def _changed_bytes(data: bytes, generator: random.Random) -> bytes:
    """Mostly near the beginning, where the header is."""
    place = generator.randrange(min(len(data), 300)) if generator.random() < 0.7 else generator.randrange(len(data))
    match generator.randrange(5):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + data[place + generator.randint(1, 9) :]
        case 2:
            return data[:place] + data[: generator.randint(1, 99)] + data[place:]
        case _:
            return data[:place] + bytes([data[place] ^ 1 << generator.randrange(8)]) + data[place + 1 :]


Change = Callable[[bytes, random.Random], bytes]
CHANGES: list[tuple[str, Change]] = [
    ("config.json", _changed_values),
    ("config.json", _changed_values),
    ("config.json", _changed_bytes),
    ("model.safetensors", _changed_bytes),
]


def _refused(seed: int, count: int, directory: Path) -> int:
    """How many of `count` changed folders were refused; every other one was opened."""
    generator = random.Random(seed)
    models = [small_model(**choices) for choices in (QWEN3, GPT2, MASKED, MARIAN, *OWN_KINDS)]
    for number, model in enumerate(models):
        save_model(model, directory / str(number))
        load_model(directory / str(number))
    refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        folder = directory / str(generator.randrange(len(models)))
        name, change = generator.choice(CHANGES)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(change(whole, generator))
        start = time.process_time()
        try:
            load_model(folder)
        except BadInputError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 2000, (number, error)
        assert time.process_time() - start < 1, (number, folder, name)
        (folder / name).write_bytes(whole)
    gc.collect()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << 10, f"{grown} KiB"
    return refused


def test_changed_folders_are_refused_or_opened(tmp_path: Path) -> None:
    refused = _refused(0, 300, tmp_path)
    assert 150 < refused < 300, "most changes break something, some do not"


@pytest.mark.full
def test_ten_thousand_changed_folders_are_refused_or_opened(tmp_path: Path) -> None:
    refused = _refused(1, 10_000, tmp_path)
    assert 5_000 < refused < 10_000
