"""`journey models merge`: the folder is the arithmetic on the models' weights; what does not fit is refused."""

from pathlib import Path

import pytest
import torch

from command_line import Journey
from llm_journey.checkpoint.model_folder import load_decoder, save_model
from llm_journey.finetuning.merging import linear, slerp, task_arithmetic, ties
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.tokenizer.tokenizer import from_merges

State = dict[str, torch.Tensor]


def save(folder: Path, seed: int, special: str = "<|endoftext|>", width: int = 32) -> State:
    tokenizer = from_merges([], pattern="gpt2", special_tokens=[special])
    torch.manual_seed(seed)
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, width=width, num_layers=2, num_heads=4, context=64)
    decoder = Decoder(config)
    for parameter in decoder.parameters():  # the layers that write into the residual stream begin at zero
        torch.nn.init.normal_(parameter, std=0.1)
    save_model(decoder, folder, tokenizer=tokenizer)
    return {name: value.clone() for name, value in decoder.state_dict().items()}


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, State]:
    monkeypatch.chdir(tmp_path)
    return {name: save(tmp_path / name, seed) for seed, name in enumerate(("base", "one", "two"))}


def test_each_method_is_its_arithmetic(states: dict[str, State], journey: Journey) -> None:
    base, one, two = states.values()
    cases = {
        "linear": (["./one", "./two"], [], linear([one, two], [0.5, 0.5])),
        "slerp": (["./one", "./two"], ["--weight", "0.3", "--weight", "0.7"], slerp(one, two, 0.7)),
        "task-arithmetic": (
            ["./one", "./two"],
            ["--base", "./base", "--weight", "1", "--weight", "-0.5"],
            task_arithmetic(base, [one, two], [1, -0.5]),
        ),
        "ties": (
            ["./one", "./two"],
            ["--base", "./base", "--density", "0.4"],
            ties(base, [one, two], [1, 1], density=0.4),
        ),
    }
    for method, (models, options, expected) in cases.items():
        done = journey("models", "merge", *models, "--method", method, *options, "--out", method, "--json")
        assert done.code == 0, done.err
        certificate = done.json["certificate"]
        assert certificate["method"] == method and certificate["largest_logit_difference"] == 0
        assert [each["model"] for each in certificate["sources"]] == ["one", "two"]
        assert all(each["kl"] > 0 for each in certificate["sources"])
        found = load_decoder(Path(method))[0].state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert journey("generate", "ties", "abc", "--set", "max_new_tokens=3", "--set", "seed=1").code == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["./one"], "merges two or more models"),
        (["./one", "./two", "--method", "average"], "unknown method 'average'"),
        (["./one", "./two", "--method", "ties"], "needs --base"),
        (["./one", "./two", "--base", "./base"], "takes no --base"),
        (["./one", "./two", "./base", "--method", "slerp"], "goes from one model to another"),
        (["./one", "./two", "--weight", "1"], "2 models and 1 weights"),
        (["./one", "./two", "--weight", "nan", "--weight", "1"], "must be finite"),
        (["./one", "./two", "--method", "slerp", "--weight", "1", "--weight", "1"], "must add up to 1"),
        (["./one", "./two", "--method", "ties", "--base", "./base", "--density", "2"], "density must lie"),
        (["./one", "./other"], "have different tokenizers"),
        (["./one", "./wide"], "are not of one shape"),
    ],
)
def test_refused(arguments: list[str], reason: str, states: dict[str, State], journey: Journey) -> None:
    save(Path("other"), 1, special="<|stop|>")
    save(Path("wide"), 1, width=64)
    done = journey("models", "merge", *arguments, "--out", "new")
    assert done.code == 2 and reason in done.err
    assert not Path("new").exists()
