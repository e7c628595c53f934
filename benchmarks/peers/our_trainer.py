"""Our side of benchmarks/finetune.py, in a process of its own as the peer is: same arguments, same result."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_journey.checkpoint.decoders import read_decoder
from llm_journey.datasets.batching import Batch
from llm_journey.datasets.chat_loader import join_examples
from llm_journey.training import methods
from llm_journey.training.precision import Precision
from llm_journey.training.recipe import recipe_from
from llm_journey.training.trainer import Trainer


class Given:
    """The batches of a file, once each."""

    def __init__(self, batches: list[list[dict[str, Any]]]) -> None:
        self._batches = iter(batches)

    def next_batch(self) -> Batch:
        arrays = [(np.array(each["ids"]), np.array(each["trained"])) for each in next(self._batches)]
        return join_examples(arrays, context=2048, pad_id=0)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...


def main(model: str, examples: str, result: str) -> None:
    given = json.loads(Path(examples).read_text(encoding="utf-8"))
    recipe = recipe_from(
        {
            "base": model,
            "stage": "sft",
            "method": "lora",
            "adapter": {"rank": given["rank"], "alpha": given["alpha"]},
            "data": {"source": "given"},
            "training": {
                "steps": len(given["batches"]),
                "schedule": {"name": "constant", "warmup": 0},
                "optimizer": {"name": "adamw", "learning_rate": given["learning_rate"], "betas": [0.9, 0.999]},
            },
        },
        "finetune",
    )
    torch.manual_seed(0)
    stored = read_decoder(Path(model))
    decoder = stored.decoder
    methods.prepare(decoder, recipe, stored.tokenizer)
    decoder.train()
    trainer = Trainer(recipe, decoder, Given(given["batches"]), Precision("fp32", torch.device("cpu")))
    seconds, losses = [], []
    for _ in given["batches"]:
        began = time.perf_counter()
        losses.append(trainer.step().loss)
        seconds.append(time.perf_counter() - began)
    found = {"seconds": seconds[given["warm"] :], "losses": losses}
    Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
