"""LoRA by peft in transformers' Trainer, for benchmarks/finetune.py: the same model, examples, batches and settings.

    python peft_trainer.py MODEL EXAMPLES.json RESULT.json

EXAMPLES: {"batches": [[{"ids": [...], "trained": [0, 1, ...]}, ...], ...], "rank", "alpha", "learning_rate", "warm"}.
Writes the seconds of each step behind the first `warm`, and the losses.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments


class Clock(TrainerCallback):
    """The time of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.began)


class InOrder(Trainer):
    """Takes the examples as they come."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(each["ids"]) for each in examples)
    ids, labels, mask = (torch.full((len(examples), longest), fill) for fill in (0, -100, 0))
    for row, each in enumerate(examples):
        size = len(each["ids"])
        ids[row, :size] = torch.tensor(each["ids"])
        mask[row, :size] = 1
        labels[row, :size] = torch.where(torch.tensor(each["trained"]) == 1, ids[row, :size], -100)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def main(model: str, examples: str, result: str) -> None:
    given = json.loads(Path(examples).read_text(encoding="utf-8"))
    torch.manual_seed(0)
    config = LoraConfig(r=given["rank"], lora_alpha=given["alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config)
    clock = Clock()
    arguments = TrainingArguments(
        output_dir=str(Path(result).parent / "trainer"),
        per_device_train_batch_size=len(given["batches"][0]),
        max_steps=len(given["batches"]),
        learning_rate=given["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        dataloader_num_workers=0,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    dataset = [example for batch in given["batches"] for example in batch]
    trainer = InOrder(adapted, arguments, train_dataset=dataset, data_collator=collate, callbacks=[clock])
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    found = {"seconds": clock.seconds[given["warm"] :], "losses": losses}
    Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
