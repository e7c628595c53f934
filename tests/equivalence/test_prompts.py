"""What a model continues from, and how: from text to text beside transformers, by folder, GGUF file and chat.

Both sides begin with the same text and nothing else, so that a begin token which one adds and the other does not is
seen.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import llm_journey
from gguf_files import GPT2, LLAMA, TEXTS, random_model, tiny_tokenizer
from llm_journey.app.exports import export_model
from llm_journey.app.language_model import LanguageModel
from llm_journey.checkpoint.gguf.model import write_gguf
from llm_journey.checkpoint.model_folder import save_model
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.chat_template import encode_chat

NEW_TOKENS = 12
PROMPTS = (*TEXTS, "The river", " two  spaces", "1905")
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is the mill?"}]


class Peer:
    """transformers' tokenizer and model of a folder, or of the GGUF file in it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        import transformers

        library: Any = transformers
        library.utils.logging.disable_progress_bar()
        self.tokenizer = library.AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
        opener = library.AutoModelForCausalLM
        self.model = opener.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **options).eval()

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text)["input_ids"]
        return found

    def generate(self, ids: Sequence[int]) -> str:
        ids_bt = torch.tensor([list(ids)])
        written = self.model.generate(
            ids_bt, attention_mask=torch.ones_like(ids_bt), do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0
        )
        ids_new = [token for token in written[0, len(ids) :].tolist() if token != self.tokenizer.eos_token_id]
        found: str = self.tokenizer.decode(ids_new)
        return found


def ours_of(path: Path) -> LanguageModel:
    opened = llm_journey.load(path)
    assert isinstance(opened, LanguageModel)
    return opened


def require_equal(ours: LanguageModel, peer: Peer) -> None:
    written = set()
    for text in PROMPTS:
        assert peer.ids(text) == ours.prompt_ids(text), text
        written.add(ours.generate(text, temperature=0, max_new_tokens=NEW_TOKENS))
        assert peer.generate(peer.ids(text)) == ours.generate(text, temperature=0, max_new_tokens=NEW_TOKENS), text
    assert len(written) > 1, "one text for every prompt proves nothing"


def beginning(adds_begin: bool) -> Tokenizer:
    tokenizer = tiny_tokenizer(304)
    tokenizer.adds_begin = adds_begin
    return tokenizer


@pytest.mark.parametrize("adds_begin", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_text_goes_on_as_in_transformers(architecture: str, adds_begin: bool, tmp_path: Path) -> None:
    """The folder, and the GGUF file: published GPT-2 begins with nothing, what is trained here with the end token."""
    choices = {"llama": LLAMA, "gpt2": GPT2 | {"context": 1024, "mlp_width": 256}}[architecture]
    model, tokenizer = random_model(**choices), beginning(adds_begin)
    save_model(model, tmp_path / "folder", tokenizer=tokenizer)
    ours = ours_of(tmp_path / "folder")
    assert ours.prompt_ids("x") == [tokenizer.end_id] * adds_begin + tokenizer.encode("x")
    require_equal(ours, Peer(tmp_path / "folder"))
    write_gguf(model, tokenizer, tmp_path / "model.gguf")
    require_equal(ours_of(tmp_path / "model.gguf"), Peer(tmp_path, gguf_file="model.gguf"))


def test_a_trained_run_goes_on_as_in_transformers(shared_home: Path, tmp_path: Path) -> None:
    """What `journey train` made and `journey export` wrote: the begin token is in the files."""
    export_model("rivers", "hf", tmp_path / "new")
    ours, peer = ours_of(Path("rivers")), Peer(tmp_path / "new")
    assert peer.ids("The river")[0] == ours.tokenizer.end_id
    for text in PROMPTS:
        assert peer.ids(text) == ours.prompt_ids(text)
    for text in ("The river", "x"):  # the run's context is 32
        assert peer.generate(peer.ids(text)) == ours.generate(text, temperature=0, max_new_tokens=NEW_TOKENS)


def test_an_empty_prompt_is_the_begin_token(tmp_path: Path) -> None:
    """Whatever is added to others: a model needs something to go on from."""
    for adds_begin in (True, False):
        folder = tmp_path / str(adds_begin)
        save_model(random_model(), folder, tokenizer=beginning(adds_begin))
        ours = ours_of(folder)
        assert ours.prompt_ids("") == [ours.tokenizer.end_id]


def test_a_chat_begins_once(tmp_path: Path) -> None:
    """Our template writes the begin token; transformers adds none to a rendered chat."""
    save_model(random_model(), tmp_path, tokenizer=beginning(True))
    ours, peer = ours_of(tmp_path), Peer(tmp_path)
    ids = encode_chat(ours.tokenizer, CHAT, add_generation_prompt=True)
    theirs = peer.tokenizer.apply_chat_template(CHAT, tokenize=True, add_generation_prompt=True)
    assert theirs["input_ids"] == ids
    assert ids.count(ours.tokenizer.end_id) == 1 and ids[0] == ours.tokenizer.end_id


@pytest.mark.full
@pytest.mark.parametrize("adds_begin", [True, False])
def test_llama_cpp_begins_alike(adds_begin: bool, tmp_path: Path) -> None:
    """Bare prompts by its own switch, a chat by its own template application. (What it says then is compared by
    benchmarks/gguf.py: it rounds activations, so that nearly equal tokens change places.)"""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed here (pip builds it from source, which takes many minutes)")
    import llama_cpp
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    path = tmp_path / "model.gguf"
    write_gguf(random_model(**LLAMA), beginning(adds_begin), path)
    ours = ours_of(path)
    peer = llama_cpp.Llama(str(path), vocab_only=True, n_threads=1, verbose=False)
    for text in PROMPTS:
        ids = peer.tokenize(text.encode(), add_bos=True, special=False)
        assert ids == ours.prompt_ids(text), text
    template = peer.metadata["tokenizer.chat_template"]
    done = Jinja2ChatFormatter(template, eos_token="<|endoftext|>", bos_token="<|endoftext|>")(messages=CHAT)
    chat = peer.tokenize(done.prompt.encode(), add_bos=not done.added_special, special=True)
    assert chat == encode_chat(ours.tokenizer, CHAT, add_generation_prompt=True)
    peer.close()
