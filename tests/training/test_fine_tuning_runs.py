"""Runs that go on from a model: every method begins as the base, resumes bit for bit, and ends as one plain model."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Recorder, rows, steps, validations, write_texts

from gguf_files import random_model, tiny_tokenizer
from llm_journey.checkpoint.decoders import read_decoder
from llm_journey.checkpoint.model_folder import load_decoder, save_model
from llm_journey.checkpoint.training_state import latest_checkpoint
from llm_journey.core.errors import BadInputError
from llm_journey.datasets.chat_preparation import held_out_chats
from llm_journey.datasets.shards import TokenShards
from llm_journey.finetuning.lora import remove
from llm_journey.finetuning.peft_format import load_adapter
from llm_journey.generation.decode import generate
from llm_journey.generation.engine import Engine, EngineConfig
from llm_journey.generation.runner import Runner
from llm_journey.generation.sampling import SamplingConfig
from llm_journey.quantization.layers import quantize_model
from llm_journey.quantization.scheme import Scheme
from llm_journey.reports.run_data import read_run
from llm_journey.reports.run_report import report_html
from llm_journey.tokenizer.chat_template import encode_chat
from llm_journey.tokenizer.tokenizer import Roles
from llm_journey.training.inputs import prepare_inputs
from llm_journey.training.loaders import make_loader
from llm_journey.training.recipe import Recipe, recipe_from
from llm_journey.training.run import train

_METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "frozen": {"frozen": ["embed", "blocks.0.*"]},
    "lora": {"method": "lora", "adapter": {"rank": 4, "dropout": 0.1}},
    "dora": {"method": "lora", "adapter": {"rank": 4, "dora": True, "targets": ["q", "v"]}},
    "qlora": {"method": "qlora", "adapter": {"rank": 64}},
    "prompt": {"method": "prompt", "prompt": {"tokens": 3}},
    "prefix": {"method": "prefix", "prompt": {"tokens": 3}, "optimizer": {"learning_rate": 0.1}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(random_model(tied_embeddings=True), folder, tokenizer=tiny_tokenizer(), generation={"top_k": 7})
    return folder


def write_chats(path: Path, count: int = 24, *extra: str) -> Path:
    """Questions of two numbers, answered."""
    draw = random.Random(0)
    lines = []
    for _ in range(count):
        a, b = draw.randint(0, 99), draw.randint(0, 99)
        chat = [{"role": "user", "content": f"{a} {b}"}, {"role": "assistant", "content": f"{max(a, b)}"}]
        lines.append(json.dumps({"messages": chat}))
    path.write_text("\n".join((*lines, *extra)) + "\n", encoding="utf-8")
    return path


def recipe(base: Path | None, source: Path, *, stage: str = "sft", **choices: Any) -> Recipe:
    training = {"steps": 6, "batch_size": 4, "log_every": 1, "validations": 2, "checkpoints": 2, "order": "packed"}
    optimizer = {"name": "adamw", "learning_rate": 0.01} | choices.pop("optimizer", {})
    mapping = {
        "name": "tuned",
        "stage": stage,
        "base": base and str(base),
        "data": {"source": str(source), "held_out": 0.2},
        "training": training | {"optimizer": optimizer} | choices.pop("training", {}),
    }
    return recipe_from(mapping | choices, "test")


def stop_at(step: int) -> Recorder:
    def stop(number: int) -> None:
        if number == step:
            raise KeyboardInterrupt

    return Recorder(stop)


@pytest.mark.parametrize("method", _METHODS)
def test_every_method_learns_resumes_bit_for_bit_and_ends_as_a_plain_model(
    method: str, base: Path, tmp_path: Path
) -> None:
    wanted = recipe(
        base,
        write_chats(tmp_path / "chats.jsonl"),
        training={"checkpoints": 6},
        **{"optimizer": {"name": "adamw8bit" if method == "qlora" else "adamw"}} | _METHODS[method],
    )
    whole = train(wanted, tmp_path / "whole", base=base)
    assert whole.status == "finished"
    with pytest.raises(KeyboardInterrupt):
        train(wanted, tmp_path / "cut", base=base, observer=stop_at(4))
    resumed = train(wanted, tmp_path / "cut", base=base, resume=True)
    assert steps(resumed.directory) == steps(whole.directory)
    assert validations(resumed.directory) == validations(whole.directory)
    losses = validations(whole.directory)
    assert losses[6] < losses[0]  # step 0: the base as it was
    model, tokenizer = load_decoder(whole.directory / "model")
    assert tokenizer is not None and tokenizer.chat_template is not None
    generation = json.loads((whole.directory / "model" / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["top_k"] == 7 and tokenizer.special_tokens["<|im_end|>"] in generation["eos_token_id"]
    before = read_decoder(base).decoder.state_dict()
    if method in ("prompt", "prefix"):
        return
    changed = {name for name, value in model.state_dict().items() if name in before and not value.equal(before[name])}
    if method == "frozen":
        assert changed and not any(name.startswith(("embed", "blocks.0")) for name in changed)
    if method == "dora":
        assert {name.rpartition(".")[0].rpartition(".")[2] for name in changed} == {"q", "v"}
    saved = latest_checkpoint(whole.directory / "checkpoints")
    assert saved is not None and (saved.config is None) == (method in ("lora", "dora", "qlora"))


@pytest.mark.parametrize("method", ["lora", "dora", "qlora"])
def test_the_adapter_beside_its_base_is_the_merged_model(method: str, base: Path, tmp_path: Path) -> None:
    wanted = recipe(base, write_chats(tmp_path / "chats.jsonl"), **_METHODS[method])
    run = train(wanted, tmp_path / "run", base=base).directory
    adapted, merged = read_decoder(base).decoder, load_decoder(run / "model")[0]
    if method == "qlora":
        quantize_model(adapted.blocks, Scheme(format="nf4"))
    load_adapter(adapted, run / "adapter")
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids), merged(ids), atol=1e-4, rtol=1e-4)
    remove(adapted, merged=False)


def test_a_tuned_prompt_is_pefts(base: Path, tmp_path: Path) -> None:
    """Its files in peft, before a chat of the base's own template, say what the plain model says of the longer one."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    wanted = recipe(base, write_chats(tmp_path / "chats.jsonl"), **_METHODS["prompt"])
    run = train(wanted, tmp_path / "run", base=base).directory
    ours, tokenizer = load_decoder(run / "model")
    assert tokenizer is not None
    messages = [{"role": "user", "content": "1 2"}]
    long = encode_chat(tokenizer, messages, add_generation_prompt=True)
    short = encode_chat(read_decoder(base).tokenizer, messages, add_generation_prompt=True)
    assert long[3:] == short and long[:3] == [300, 301, 302]
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(plain, run / "adapter").eval()
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([short])).logits[:, -1]
        found = ours(torch.tensor([long]))[:, -1]
    torch.testing.assert_close(found[:, :300], expected[:, :300], atol=1e-4, rtol=1e-4)
    everywhere = ours(torch.tensor([long]))[0].softmax(-1)
    assert float(everywhere[:, 300:303].max()) <= 1 / 300  # the prompt's tokens are all but never written
    written = transformers.AutoModelForCausalLM.from_pretrained(run / "model").eval()
    with torch.no_grad():
        torch.testing.assert_close(written(torch.tensor([long])).logits[:, -1], found, atol=1e-4, rtol=1e-4)
    with pytest.raises(BadInputError, match="has such tokens already"):
        train(replace(wanted, base=str(run / "model")), tmp_path / "again", base=run / "model")


def test_a_tuned_prefix_is_pefts_and_the_engines(base: Path, tmp_path: Path) -> None:
    """Its files in peft, before a chat of the base's own template, say what the model with the prefix's tokens says."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    wanted = recipe(base, write_chats(tmp_path / "chats.jsonl"), **_METHODS["prefix"])
    run = train(wanted, tmp_path / "run", base=base).directory
    ours, tokenizer = load_decoder(run / "model")
    assert tokenizer is not None and ours.config.prefix_tokens == 3
    rows = read_decoder(base).decoder.config.vocab_size
    messages = [{"role": "user", "content": "1 2"}]
    long = encode_chat(tokenizer, messages, add_generation_prompt=True)
    short = encode_chat(read_decoder(base).tokenizer, messages, add_generation_prompt=True)
    assert long[3:] == short and long[:3] == [rows, rows + 1, rows + 2]
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(plain, run / "adapter").eval()
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([short])).logits[0]
        found = ours(torch.tensor([long]))[0, 3:]
        without = read_decoder(base).decoder(torch.tensor([short]))[0]
    torch.testing.assert_close(found[:, :rows], expected[:, :rows], atol=1e-4, rtol=1e-4)
    assert (found[:, :rows] - without[:, :rows]).abs().max() > 0.1
    assert float(found.softmax(-1)[:, rows:].max()) == 0  # the prefix's tokens are never written
    drawn = SamplingConfig(temperature=5.0, max_new_tokens=20, seed=1)
    assert max(generate(ours, long, drawn)) < rows
    settings = SamplingConfig(temperature=0, max_new_tokens=12)
    engine = Engine(Runner(ours), EngineConfig(block_size=4, max_tokens=2))  # the prefix is read in pieces
    request = engine.submit(long, settings)
    while engine.busy:
        engine.step()
    assert [token.id for token in request.tokens] == list(generate(ours, long, settings))
    with pytest.raises(BadInputError, match="has a tuned prefix; go on from the model"):
        train(replace(wanted, base=str(run / "model"), method="full"), tmp_path / "again", base=run / "model")


def test_chats_are_prepared_anew_where_roles_differ(base: Path, tmp_path: Path) -> None:
    """A template may name the end token by its role (axolotl#3756): another role is another rendering."""
    source, found = write_chats(tmp_path / "chats.jsonl"), []
    for end in ("<|endoftext|>", "<|im_end|>"):
        tokenizer = tiny_tokenizer().changed(
            roles=Roles(end=end),
            chat_template="{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
        )
        inputs = prepare_inputs(recipe(base, source), base=tokenizer)
        found.append(inputs.directory)
        assert tokenizer.special_tokens[end] in inputs.train.read(0, inputs.train.num_tokens)
    assert found[0] != found[1]


def test_a_prefix_recomputes_nothing(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="does nothing for method prefix"):
        recipe(base, tmp_path / "chats.jsonl", method="prefix", training={"gradient_checkpointing": True})


def test_the_trained_tokens_and_the_figures_are_the_answers(base: Path, tmp_path: Path) -> None:
    wanted = recipe(base, write_chats(tmp_path / "chats.jsonl"), training={"sample_prompts": ["1 2"]})
    run = train(wanted, tmp_path / "run", base=base, sampler=lambda model, tokenizer, prompt: f"{prompt}?").directory
    information = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert 0 <= information["figures"]["answer_accuracy"] <= 1
    assert information["figures"]["trained_parameters"] == information["figures"]["parameters"]
    assert [row["step"] for row in rows(run, "samples.jsonl")] == [0, 3, 6]
    html = report_html(read_run(run))
    assert "Before and after" in html and "of the whole process" in html and "1 2" in html
    asked = {chat["messages"][0]["content"] for chat in held_out_chats(Path(information["paths"]["shards"]))}
    assert asked and len(asked) < 24


def test_running_text_goes_on_from_a_model_with_its_tokenizer(base: Path, texts: Path, tmp_path: Path) -> None:
    wanted = recipe(base, texts, stage="pretrain", training={"order": "documents", "context": 16}, method="lora")
    run = train(wanted, tmp_path / "run", base=base).directory
    _, tokenizer = load_decoder(run / "model")
    assert tokenizer is not None and tokenizer.fingerprint == tiny_tokenizer().fingerprint
    assert validations(run)[6] < validations(run)[0]


def test_general_text_is_replayed_and_what_is_forgotten_is_measured(base: Path, texts: Path, tmp_path: Path) -> None:
    (general := tmp_path / "general").mkdir()
    write_texts(general, seed=5)
    wanted = recipe(
        base,
        texts,
        stage="pretrain",
        training={"order": "documents", "context": 16, "checkpoints": 6},
        replay={"source": str(general), "share": 0.25},
        forgetting={"source": str(general), "tokens": 64},
    )
    whole = train(wanted, tmp_path / "whole", base=base).directory
    with pytest.raises(KeyboardInterrupt):
        train(wanted, tmp_path / "cut", base=base, observer=stop_at(4))
    assert steps(train(wanted, tmp_path / "cut", base=base, resume=True).directory) == steps(whole)
    found = [row["general_perplexity"] for row in rows(whole) if "general_perplexity" in row]
    assert len(found) == 3 and found[0] != found[-1]
    loader = make_loader(wanted.with_base(random_model(tied_embeddings=True).config), *_shards(whole))
    batch = loader.next_batch()
    assert batch.inputs.shape == (4, 16)
    html = report_html(read_run(whole))
    assert "Before and after" in html and "perplexity of general text" in html


def _shards(run: Path) -> tuple[Any, ...]:
    paths = json.loads((run / "run.json").read_text(encoding="utf-8"))["paths"]
    shards = TokenShards.open(Path(paths["shards"]), "train")
    return shards, None, None, frozenset(), shards


def test_other_data_or_another_base_is_not_gone_on_with(base: Path, tmp_path: Path) -> None:
    chats = write_chats(tmp_path / "chats.jsonl")
    wanted = recipe(base, chats, method="lora")
    with pytest.raises(KeyboardInterrupt):
        train(wanted, tmp_path / "run", base=base, observer=stop_at(4))
    save_model(random_model(1, tied_embeddings=True), tmp_path / "other", tokenizer=tiny_tokenizer())
    with pytest.raises(BadInputError, match=r"the base fingerprint was \w{64} and is now \w{64}; the model"):
        train(wanted, tmp_path / "run", base=tmp_path / "other", resume=True)
    write_chats(chats, 30)
    with pytest.raises(BadInputError, match=r"the train fingerprint was \w{64} and is now \w{64}; the data"):
        train(wanted, tmp_path / "run", base=base, resume=True)
    write_chats(chats)
    assert train(wanted, tmp_path / "run", base=base, resume=True).status == "finished"


_BAD = (
    "{broken",
    '{"text": "no chat"}',
    '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]}',
    '{"messages": [{"role": "user", "content": "x"}, {"role": "robot", "content": "y"}]}',
    json.dumps({"messages": [{"role": "user", "content": "x " * 90}, {"role": "assistant", "content": "y"}]}),
)


def test_bad_rows_are_counted_by_line_or_refused(base: Path, tmp_path: Path) -> None:
    chats = write_chats(tmp_path / "chats.jsonl", 24, *_BAD)
    observer = Recorder()
    run = train(recipe(base, chats), tmp_path / "run", base=base, observer=observer).directory
    report = json.loads((run / "preparation.json").read_text(encoding="utf-8"))
    assert report["documents_in"] == 29 and sum(report["dropped"].values()) == 5
    assert any(f"no JSON object (first: {chats}:25)" in message for message in observer.messages)
    assert any("longer than the context of 48" in reason for reason in report["dropped"])
    with pytest.raises(BadInputError, match=r"chats.jsonl:25: no JSON object"):
        train(recipe(base, chats, chats={"bad_rows": "refuse"}), tmp_path / "refused", base=base)
    kept = write_chats(tmp_path / "long.jsonl", 24, _BAD[-1])
    with pytest.raises(BadInputError, match=r"long.jsonl:25: longer than the context of 48"):
        train(recipe(base, kept, chats={"too_long": "refuse"}), tmp_path / "refused", base=base)
    few = write_chats(tmp_path / "few.jsonl", 0, *_BAD)
    with pytest.raises(BadInputError, match=r"0 chats can be used, of 5 rows.*no JSON object"):
        train(recipe(base, few), tmp_path / "refused", base=base)


def test_long_chats_are_cut_where_that_is_asked_for(base: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y " * 90}]
    chats = write_chats(tmp_path / "chats.jsonl", 24, json.dumps({"messages": turns}))
    run = train(recipe(base, chats, chats={"too_long": "cut"}), tmp_path / "run", base=base).directory
    assert not json.loads((run / "preparation.json").read_text(encoding="utf-8"))["dropped"]


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"base": None}, "stage 'sft' needs a model to go on from"),
        ({"method": "lora", "optimizer": {"name": "muon"}}, "needs training.optimizer.name adamw or adamw8bit"),
        ({"method": "lora", "frozen": ["embed"]}, "leave out frozen"),
        ({"training": {"order": "windows"}}, "stage sft takes chats"),
        ({"replay": {"source": "x"}}, "replay goes with running text"),
        ({"stage": "pretrain", "replay": {"source": "x", "share": 0.05}}, "replay.share 0.05 of 4 rows is none"),
        ({"base": None, "stage": "pretrain", "forgetting": {"source": "x"}}, "needs a model to go on from"),
        (
            {
                "objective": "masked",
                "model": {"kind": "encoder"},
                "tokenizer": {"special_tokens": ["<|endoftext|>", "[MASK]"]},
                "training": {"order": "documents"},
            },
            "base goes with objective next_token",
        ),
        ({"method": "prefixed"}, "method"),
    ],
)
def test_recipes_that_do_not_go_together(choices: dict[str, Any], reason: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=reason):
        recipe(choices.pop("base", base), tmp_path, **choices)


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"model": {"width": 8}}, "model is that of base"),
        ({"training": {"context": 49}}, "reads at most 48 tokens"),
        ({"frozen": ["head"]}, "frozen: 'head' names no weights of this model"),
        ({"frozen": ["embed", "blocks", "norm"]}, "nothing is left to train"),
        ({"method": "lora", "adapter": {"targets": ["query"]}}, "'query' names no matrix"),
    ],
)
def test_recipes_that_do_not_fit_their_base(choices: dict[str, Any], reason: str, base: Path, tmp_path: Path) -> None:
    wanted = recipe(base, write_chats(tmp_path / "chats.jsonl"), **choices)
    with pytest.raises(BadInputError, match=reason):
        train(wanted, tmp_path / "run", base=base)
    assert not (tmp_path / "run").exists()


def test_a_base_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    save_model(random_model(), tmp_path / "plain", tokenizer=tokenizer)
    with pytest.raises(BadInputError, match="has no chat template"):
        train(recipe(tmp_path / "plain", write_chats(tmp_path / "c.jsonl")), tmp_path / "run", base=tmp_path / "plain")


def test_what_a_chat_trains_is_what_the_server_asks_for(base: Path) -> None:
    tokenizer = read_decoder(base).tokenizer
    ids = encode_chat(tokenizer, [{"role": "user", "content": "1 2"}], add_generation_prompt=True)
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n")
