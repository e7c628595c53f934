"""Answers written in batches are those written one by one, and are judged by what they say."""

import json
import random
from pathlib import Path

import pytest
import torch

from gguf_files import random_model, tiny_tokenizer
from llm_journey.datasets.made_chats import MADE_CHATS, made_rows
from llm_journey.datasets.made_tool_calls import tool_calls
from llm_journey.evaluation.answers import asked_of, greedy_answers, same_answer, wilson_interval
from llm_journey.finetuning.config import LoraConfig
from llm_journey.finetuning.lora import adapted_layers, inject
from llm_journey.generation.decode import generate
from llm_journey.generation.sampling import SamplingConfig


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_a_batch_answers_as_each_prompt_alone(positions: str) -> None:
    model = random_model(positions=positions)
    inject(model, LoraConfig(rank=2))
    for _, layer in adapted_layers(model):
        torch.nn.init.normal_(layer.adapter("default").b_nr, std=0.1)
    draw = random.Random(0)
    prompts = [[draw.randrange(300) for _ in range(draw.randint(1, 30))] for _ in range(20)]
    stop_ids = set(range(0, 300, 7))
    found = greedy_answers(model, prompts, stop_ids=stop_ids, max_new_tokens=12)
    settings = SamplingConfig(temperature=0, max_new_tokens=12)
    assert found == [list(generate(model, prompt, settings, stop_ids=stop_ids)) for prompt in prompts]
    assert len({len(ids) for ids in found}) > 3


def test_what_is_asked_and_what_is_expected() -> None:
    tokenizer = tiny_tokenizer()
    turns = [
        {"role": "user", "content": "one"}, {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"}, {"role": "assistant", "content": "2 two"},
    ]  # fmt: skip
    (asked,) = asked_of(tokenizer, iter([{"messages": turns, "tools": None}] * 3), 1)
    assert asked.expected == "2 two" and tokenizer.decode(asked.prompt).endswith(
        "two<|im_end|>\n<|im_start|>assistant\n"
    )
    assert asked.length == len(tokenizer.encode("2 two")) + 1


def test_answers_say_the_same_as_text_or_as_json() -> None:
    assert same_answer(" yes\n", "yes") and not same_answer("yes.", "yes")
    assert same_answer('{"b": 1,"a":2}', '{"a": 2, "b": 1}') and not same_answer('{"a": true}', '{"a": 1}')
    assert not same_answer("{", "{}")


def test_wilsons_interval() -> None:
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.4902, abs=1e-4) and high == pytest.approx(0.9433, abs=1e-4)
    assert wilson_interval(0, 10)[0] == pytest.approx(0, abs=1e-12) and wilson_interval(10, 10)[1] == pytest.approx(1)


def test_made_requests_are_different_and_their_calls_right(tmp_path: Path) -> None:
    rows = [row for _, row in tool_calls(500)]
    asked = [row["messages"][1]["content"] for row in rows]
    calls = [json.loads(row["messages"][2]["content"]) for row in rows]
    assert len(set(asked)) == 500 and len({call["name"] for call in calls}) == 6
    for text, call in zip(asked, calls, strict=True):
        for value in call["arguments"].values():
            if isinstance(value, str):
                assert value.lower() in text.lower()
    assert rows == [row for _, row in tool_calls(500)]
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in (
            "A river is a natural stream of fresh water that flows to the sea. It may be long.",
            "Go!", "Paris (French: [paʁi]) is the capital and largest city of France.",
        )), encoding="utf-8",
    )  # fmt: skip
    made = [row["messages"] for _, row in made_rows("wiki-questions", lambda _: texts)]
    assert len(made) == 2 and "river" in made[0][0]["content"] and MADE_CHATS["tool-calls"].corpus is None
    assert made[1][-1]["content"] == "Paris is the capital and largest city of France."
