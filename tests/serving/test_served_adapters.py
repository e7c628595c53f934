"""Adapters of a served model by request: each under its own name, over one copy of the weights."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
from small_server import MODEL, Running, running, small_model

from llm_journey.finetuning.config import LoraConfig
from llm_journey.finetuning.lora import inject, remove
from llm_journey.finetuning.peft_format import load_adapter, save_adapter
from llm_journey.generation.decode import generate
from llm_journey.generation.sampling import SamplingConfig
from llm_journey.tokenizer.chat_template import encode_chat

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]
USER = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for seed, name in enumerate(("calls", "other")):
        decoder = small_model().decoder
        config = LoraConfig(rank=4, dora=name == "other")
        inject(decoder, config)
        torch.manual_seed(seed)
        for parameter in decoder.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        save_adapter(decoder, tmp_path / name, config, base=MODEL)
        found[name] = tmp_path / name
    return found


@pytest.fixture
def server(folders: dict[str, Path]) -> Iterator[Running]:
    with running(adapters=folders) as found:
        yield found


def expected(folder: Path | None) -> str:
    """What the merged model answers, decoded plainly."""
    model = small_model()
    if folder is not None:
        load_adapter(model.decoder, folder)
        remove(model.decoder, merged=True)
    ids = encode_chat(model.tokenizer, USER, add_generation_prompt=True)
    found = generate(model.decoder, ids, SamplingConfig(temperature=0, max_new_tokens=20), stop_ids=model.stop_ids)
    hidden = set(model.tokenizer.special_tokens.values())
    return b"".join(model.tokenizer.id_to_bytes(token) for token in found if token not in hidden).decode(
        "utf-8", "replace"
    )


def test_the_models_name_chooses_the_adapter(server: Running, folders: dict[str, Path]) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        cards = {card.id: card.model_dump().get("parent") for card in client.models.list()}
        assert cards == {MODEL: None, "calls": MODEL, "other": MODEL}
        answers = {}
        for name in (MODEL, "calls", "other", "calls", MODEL):
            reply = client.chat.completions.create(model=name, messages=USER, temperature=0, max_tokens=20)
            answers[name] = reply.choices[0].message.content
            assert reply.model == name
            assert answers[name] == expected(folders.get(name))
        assert len(set(answers.values())) == 3
        with pytest.raises(openai.NotFoundError, match="there is: small, calls, other"):
            client.chat.completions.create(model="none", messages=USER)


def test_one_engine_and_one_room(server: Running) -> None:
    models, places = server.service.models, server.service.places
    assert len({id(model.worker) for model in models.values()}) == 1
    assert len({id(places[name]) for name in models}) == 1
