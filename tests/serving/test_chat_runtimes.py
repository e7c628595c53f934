"""A model that has just learned chats answers alike wherever it runs: transformers, our folder, our GGUF file, our
server under the official client; ids, text and the end of its turn."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from serve_process import served

from gguf_files import random_model, tiny_tokenizer
from llm_journey.app.exports import export_model
from llm_journey.app.language_model import open_model
from llm_journey.checkpoint.model_folder import save_model
from llm_journey.tokenizer.chat_template import encode_chat
from llm_journey.training.recipe import recipe_from
from llm_journey.training.run import train

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]
QUESTIONS = ("3 4", "7 7", "What is 1 2?")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that learned to answer "a b" by the larger of the two, a little."""
    folder = tmp_path_factory.mktemp("chats")
    save_model(random_model(tied_embeddings=True), folder / "base", tokenizer=tiny_tokenizer())
    chats = [
        [{"role": "user", "content": f"{a} {b}"}, {"role": "assistant", "content": str(max(a, b))}]
        for a in range(10)
        for b in range(10)
    ]
    lines = [json.dumps({"messages": chat}) for chat in chats]
    (folder / "chats.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = recipe_from(
        {
            "name": "chats",
            "stage": "sft",
            "base": str(folder / "base"),
            "data": {"source": str(folder / "chats.jsonl"), "held_out": 0.1},
            "training": {
                "steps": 60,
                "batch_size": 8,
                "precision": "fp32",
                "optimizer": {"name": "adamw", "learning_rate": 0.003},
            },
        },
        "test",
    )
    return train(recipe, folder / "run", base=folder / "base").directory / "model"


def test_everywhere(learned: Path, tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(learned).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(learned)
    ours = open_model(str(learned))
    of_gguf = open_model(str(export_model(str(learned), "gguf", tmp_path / "gguf").file))
    ended = 0
    with (
        served(learned, warm=0) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60) as client,
    ):
        (card,) = client.models.list()
        for question in QUESTIONS:
            messages: Any = [{"role": "user", "content": question}]
            ids = encode_chat(ours.tokenizer, messages, add_generation_prompt=True)
            rendered = their_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            assert list(rendered) == ids == encode_chat(of_gguf.tokenizer, messages, add_generation_prompt=True)
            reply = ours.stream_chat(messages, temperature=0, max_new_tokens=16)
            text = "".join(reply)
            with torch.no_grad():
                written = theirs.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, len(ids) :]
            assert their_tokenizer.decode(written, skip_special_tokens=True) == text
            assert of_gguf.chat(messages, temperature=0, max_new_tokens=16) == text
            answer = client.chat.completions.create(model=card.id, messages=messages, temperature=0, max_tokens=16)
            assert answer.choices[0].message.content == text
            assert answer.choices[0].finish_reason == reply.finish_reason
            assert answer.usage is not None and answer.usage.prompt_tokens == len(ids)
            ended += reply.finish_reason == "stop"
    assert ended == len(QUESTIONS)  # it stops by itself
