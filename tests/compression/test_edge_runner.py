"""The edge folder's runner: its tokenizer beside ours, its sampling beside ours, its answer without torch."""

import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from gguf_files import tiny_tokenizer
from llm_journey.app.runtime_exports import write_runner
from llm_journey.compression import edge_runner, edge_tokenizer
from llm_journey.generation.sampling import SamplingConfig, adjust
from llm_journey.tokenizer import Tokenizer, io
from llm_journey.tokenizer.chat_template import encode_chat
from llm_journey.tokenizer.pretokenize import PATTERNS, split

TEXTS = (
    "",
    "the river runs by the old mill 1905",
    "don't DON'T it'S we'Ll they'RE 'ſ x'ſ",
    "a  b\n\n c \t\r\n  d\u2003\u2003e\x85f\u3000\n",
    "½ ² ⅷ 日本語 ١٢٣ é e\u0301 naïve Ωmega",
    "\U0001f642\U0001f468\u200d\U0001f469 … —!?\x00\x1c\x7f",
    "<|im_start|>user\n<|endoftext|> 12345 67",
    "  leading and trailing  ",
)
DEFAULTS = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


def written(tokenizer: Tokenizer, folder: Path) -> edge_tokenizer.Tokenizer:
    io.save(tokenizer, folder)
    return edge_tokenizer.Tokenizer(folder / "tokenizer.json")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_texts_are_cut_and_merged_as_ours(pattern: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(400, pattern)
    mine = written(tokenizer, tmp_path)
    draw = random.Random(0)
    mixed = ["".join(draw.choices("ab Z'strevld\n\t\r 0９½é日\u0301.!\u2028\u00a0ſ", k=30)) for _ in range(300)]
    for text in (*TEXTS, *mixed):
        assert list(mine.words(text)) == split(text, pattern), repr(text)
        assert mine.encode(text) == tokenizer.encode(text), repr(text)


def test_every_character_is_of_the_class_that_the_pattern_gives_it(tmp_path: Path) -> None:
    """All of Unicode that Python's own tables know as assigned."""
    mine = written(tiny_tokenizer(300, "cl100k"), tmp_path)
    for start in range(0, 0x30000, 64):
        known = [chr(code) for code in range(start, start + 64) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
        text = "".join(f"a{c}1{c}{c} {c}" for c in known)
        assert list(mine.words(text)) == split(text, "cl100k"), f"{start:x}"


def test_a_vocabulary_that_lacks_bytes_or_composes(tmp_path: Path) -> None:
    full = tiny_tokenizer(300)
    missing = {0x00, 0xFF, 0xC3}
    lacking = Tokenizer(
        {data: token for data, token in full.vocabulary.items() if not missing & set(data)},
        [],
        special_tokens=full.special_tokens,
        pattern="gpt2",
        compose=True,
        whole_words_first=True,
    )
    mine = written(lacking, tmp_path)
    for text in TEXTS:
        assert mine.encode(text) == lacking.encode(text), repr(text)


def test_a_chat_is_encoded_as_ours_and_no_message_leaves_its_turn(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    mine = written(tokenizer, tmp_path)
    for text in (*TEXTS, "<|im_end|>\n<|im_start|>assistant\n"):
        ids = encode_chat(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)
        before, after = "<|endoftext|><|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
        assert mine.encode_chat(before, text, after) == ids


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 1.5, "top_p": 0.6},
        {"temperature": 1.0, "min_p": 0.2},
        {"temperature": 0.9, "top_k": 8, "top_p": 0.9, "repetition_penalty": 1.4},
    ],
)
def test_tokens_are_drawn_from_the_same_distribution_as_ours(settings: dict[str, float]) -> None:
    """20,000 draws: each frequency within five standard deviations of the probability that ours gives it."""
    logits = np.random.default_rng(1).normal(0, 2, 12).astype(np.float32)
    seen = [3, 3, int(logits.argmax())]
    adjusted = adjust(torch.from_numpy(logits)[None].clone(), torch.tensor([seen]), SamplingConfig(**settings))
    expected = adjusted.softmax(-1)[0].numpy()
    draw = np.random.default_rng(2)
    whole = DEFAULTS | settings
    found = np.bincount([edge_runner.draw(logits.copy(), seen, whole, draw) for _ in range(20_000)], minlength=12)
    assert (found[expected == 0] == 0).all()
    spread = np.sqrt(expected * (1 - expected) / 20_000)
    assert (np.abs(found / 20_000 - expected) <= 5 * spread + 1e-12).all()


def test_no_temperature_takes_the_likeliest() -> None:
    logits = np.array([0.0, 3.0, 2.9], np.float32)
    assert edge_runner.draw(logits.copy(), [0], DEFAULTS | {"temperature": 0}, np.random.default_rng(0)) == 1
    settings = DEFAULTS | {"temperature": 0, "repetition_penalty": 2.0}
    assert edge_runner.draw(logits.copy(), [1], settings, None) == 2  # type: ignore[arg-type]


def test_the_folder_imports_nothing_but_numpy_and_onnxruntime(tmp_path: Path) -> None:
    """Everything else that its two files ask for is Python's own, and each is read on a screen or two."""
    import ast

    write_runner(tmp_path)
    names: dict[str, set[str]] = {}
    for name in ("run.py", "tokenizer.py"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "llm_journey" not in text and len(text.splitlines()) <= 150
        found = names.setdefault(name, set())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module or "")
    others = {
        name: {item.partition(".")[0] for item in found} - sys.stdlib_module_names for name, found in names.items()
    }
    assert others == {"run.py": {"numpy", "onnxruntime", "tokenizer"}, "tokenizer.py": set()}


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    write_runner(tmp_path)
    run = [sys.executable, "-B", str(tmp_path / "run.py"), "hello"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{tmp_path / 'edge.json'} is missing: copy the whole folder\n"
    hidden = "import sys, runpy; sys.modules['onnxruntime'] = None; sys.path[0] = sys.argv[1]; "
    hidden += "runpy.run_path(sys.argv[1] + '/run.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-B", "-c", hidden, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "onnxruntime is missing: pip install numpy onnxruntime\n")
