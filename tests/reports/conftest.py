"""A run folder as training leaves it, with curves of a realistic shape; tests change or remove parts of it."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from llm_journey.datasets.prepare import PreparationReport
from llm_journey.tokenizer.report import TokenRow, VocabularyReport

MakeRun = Callable[..., Path]

RECIPE = """name: small
seed: 0
data:
  source: wiki-summaries
  held_out: 0.05
model:
  width: 192
  num_layers: 4
training:
  seconds: 90
"""
BASELINES = {
    "gzip": 3.12, "xz": 2.70, "xz_primed": 2.05, "kneser_ney_1": 2.76, "kneser_ney_2": 1.91,
    "kneser_ney_3": 1.68, "kneser_ney_4": 1.655, "kneser_ney_5": 1.65,
}  # fmt: skip


def _metrics(steps: int) -> list[dict[str, Any]]:
    generator = random.Random(0)
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 3.6 + 4.7 * math.exp(-step / 45) + 0.9 * math.exp(-step / 400) + generator.gauss(0, 0.06)
        rate = 3e-3 * min(1, step / 40) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        rows.append(
            {
                "step": step, "tokens": 1024 * step, "seconds": 0.19 * step, "loss": loss, "learning_rate": rate,
                "gradient_norm": 0.4 + 3 * math.exp(-step / 30) + abs(generator.gauss(0, 0.05)),
                "tokens_per_second": 5400 + generator.gauss(0, 130), "mfu": 0.55 + generator.gauss(0, 0.012),
            }
        )  # fmt: skip
        if step % 80 == 0:
            validation = loss + 0.05
            bits = validation / math.log(2) / 3.64
            rows.append(
                {"step": step, "validation_loss": validation, "perplexity": math.exp(validation), "bits_per_byte": bits}
            )
    return rows


def _vocabulary() -> VocabularyReport:
    def token(text: str, count: int) -> TokenRow:
        return TokenRow(id=len(text), text=text, num_bytes=len(text.encode()), count=count)

    return VocabularyReport(
        vocab_size=4096, num_special_tokens=3, num_texts=490, num_bytes=243948, num_tokens=66971, num_words=38012,
        bytes_per_token=3.6426, fertility=1.7618, whole_words=0.6123, coverage=0.9731, num_unused=110,
        unused=(token("\x00", 0), token("\ufffd", 0)), most_used=(token(" the", 9123), token(",", 8001)),
        longest=(token(" representatives", 12), token("\n\n", 9)),
        tokens_by_script={"Latin": 3702, "Parts of characters": 240, "Numbers": 31, "Greek": 19, "Cyrillic": 4},
        bytes_by_script={"Latin": 230123, "Numbers": 5031, "Greek": 190},
        lengths={1: 256, 2: 801, 3: 903, 4: 700, 5: 500, 12: 40, 16: 1},
    )  # fmt: skip


def _information(last: dict[str, Any], steps: int) -> dict[str, Any]:
    return {
        "name": "small", "status": "finished", "created": "2026-05-04T10:11:12+00:00", "seconds": 91.3, "step": steps,
        "figures": {
            **{key: last[key] for key in ("validation_loss", "perplexity", "bits_per_byte")},
            "tokens": 1024 * steps, "tokens_per_second": 5400.0, "mfu": 0.551, "flops": 1.02e13,
            "parameters": 1_802_240, "energy_joules_estimate": 1460.8, "logit_difference": 3.1e-6,
        },
        "lineage": {
            "command": "journey train recipes/small.yaml --set training.seconds=90", "commit": "0123456789ab",
            "versions": {"python": "3.11.2", "torch": "2.13.0"},
            "hardware": {"processor": "Example CPU @ 2.50GHz", "cores": 2, "memory_bytes": 8 << 30},
        },
        "fingerprints": {"data": "ab" * 32, "tokenizer": "cd" * 32},
        "baselines": BASELINES,
    }  # fmt: skip


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """make_run(name="small", steps=480, **changes to run.json) writes a run folder and returns its path."""

    def make(name: str = "small", steps: int = 480, **changes: Any) -> Path:
        directory = tmp_path / name.replace("/", "_")
        directory.mkdir()
        rows = _metrics(steps)
        last = next((row for row in reversed(rows) if "validation_loss" in row), None)
        information = _information(last or {"validation_loss": 9, "perplexity": 9, "bits_per_byte": 9}, steps)
        if last is None:
            for key in ("validation_loss", "perplexity", "bits_per_byte"):
                del information["figures"][key]
        samples = [
            {"step": step, "prompt": "The city of", "text": f"The city of {text}"}
            for step, text in ((80, "the the of and in the"), (240, "the first century was"), (480, "Rome is a"))
        ]
        (directory / "run.json").write_text(json.dumps({**information, "name": name, **changes}))
        for file, content in (("metrics.jsonl", rows), ("samples.jsonl", samples)):
            (directory / file).write_text("".join(json.dumps(row) + "\n" for row in content))
        (directory / "recipe.yaml").write_text(RECIPE)
        report = PreparationReport(
            source="wiki-summaries", documents_in=10033, dropped={"too_short": 211, "few_letters": 12}, duplicates=8,
            near_duplicates=0, train_documents=9312, validation_documents=490, train_bytes=4641587,
            validation_bytes=243948, seconds=2.4, notices=("the last 5% is held out",),
        )  # fmt: skip
        (directory / "preparation.json").write_text(json.dumps({"report": asdict(report)}))
        (directory / "vocabulary.json").write_text(json.dumps(_vocabulary().to_json()))
        return directory

    return make
