"""Models through GGUF files and back: names, layout, tokenizer, template; and files that contradict themselves."""

import random
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gguf_files import ARCHITECTURES, TEXTS, mutate, random_model, tiny_tokenizer
from llm_journey.checkpoint.gguf import format as gguf
from llm_journey.checkpoint.gguf.format import TENSOR_TYPES
from llm_journey.checkpoint.gguf.model import FILE_TYPES, build_decoder, read_gguf, read_tokenizer, write_gguf
from llm_journey.checkpoint.gguf.reader import GgufFile
from llm_journey.checkpoint.gguf.vocabulary import read_vocabulary, write_vocabulary
from llm_journey.checkpoint.gguf.writer import TensorToWrite, write_file
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.chat_template import render_chat
from llm_journey.tokenizer.tokenizer import Roles

CHAT = [{"role": "user", "content": "Where is the mill?"}]


def rewritten(path: Path, **changes: Any) -> Path:
    """A copy of a file, in float32, with keys changed (None: left out) and a tensor dropped, or added (name, array)."""
    file = GgufFile(path)
    keys = {key.replace("__", "."): value for key, value in changes.items() if key not in ("drop", "add")}
    metadata = {key: value for key, value in (file.metadata | keys).items() if value is not None}
    arrays = {name: file.numbers(name) for name in file.tensors if name != changes.get("drop")}
    arrays |= dict([changes["add"]]) if "add" in changes else {}
    target = path.with_name("changed.gguf")
    tensors = [
        TensorToWrite(name, value.shape, TENSOR_TYPES["F32"], lambda value=value: value)
        for name, value in arrays.items()
    ]
    write_file(target, metadata, tensors)
    return target


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_model_comes_back(architecture: str, tmp_path: Path) -> None:
    """In F16: every parameter rounded as float16 rounds it, none swapped, and configuration and text side the same."""
    model, tokenizer = random_model(**ARCHITECTURES[architecture]), tiny_tokenizer()
    settings = {"temperature": 0.7, "top_k": 5, "repetition_penalty": 1.1, "eos_token_id": 3}
    write_gguf(model, tokenizer, tmp_path / "a.gguf", generation=settings, facts={"name": "mill"})
    found = read_gguf(tmp_path / "a.gguf")
    assert found.config == model.config
    assert found.generation == {"temperature": 0.7, "top_k": 5, "repetition_penalty": 1.1}
    state = model.state_dict()
    assert found.state.keys() == state.keys()
    for name, value in state.items():
        exact = value.ndim == 1 or name.startswith("position")
        assert torch.equal(found.state[name], value if exact else value.half().float()), name
    assert found.tokenizer.fingerprint == tokenizer.fingerprint
    assert found.tokenizer.roles == tokenizer.roles
    assert render_chat(found.tokenizer, CHAT) == render_chat(tokenizer, CHAT)
    assert read_tokenizer(tmp_path / "a.gguf").fingerprint == tokenizer.fingerprint
    assert build_decoder(found).config == model.config
    metadata = GgufFile(tmp_path / "a.gguf").metadata
    assert next(iter(metadata)) == "general.architecture" and metadata["general.name"] == "mill"


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_which_tensor_gets_which_type(kind: str, tmp_path: Path) -> None:
    """Vectors stay float32; 4-bit files keep embedding and head at 8; rows that are no whole blocks get F16."""
    write_gguf(random_model(tied_embeddings=False, mlp_width=72), tiny_tokenizer(), tmp_path / "a.gguf", type=kind)
    file = GgufFile(tmp_path / "a.gguf")
    types = {name: facts.kind.name for name, facts in file.tensors.items()}
    matrices = FILE_TYPES[kind]
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert types["blk.1.attn_q.weight"] == types["blk.1.ffn_up.weight"] == matrices
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["token_embd.weight"] == types["output.weight"] == ("Q8_0" if kind.startswith("q4") else matrices)
    assert file.metadata["general.file_type"] == TENSOR_TYPES[matrices].file_type


def test_what_llama_cpp_cannot_do_is_not_written(tmp_path: Path) -> None:
    target, tokenizer = tmp_path / "a.gguf", tiny_tokenizer()
    with pytest.raises(BadInputError, match=r"fit none of llama\.cpp's llama, qwen3, gpt2"):
        write_gguf(random_model(mlp="relu2"), tokenizer, target)
    with pytest.raises(BadInputError, match="no sliding window"):
        write_gguf(random_model(qk_norm=True, sliding_window=8), tokenizer, target)
    with pytest.raises(BadInputError, match=r"unknown GGUF type 'q2_k'; known: f16, q4_0, q4_1, q8_0"):
        write_gguf(random_model(), tokenizer, target, type="q2_k")
    with pytest.raises(BadInputError, match="has 303 ids, the model embeds only 280"):
        write_gguf(random_model(vocab_size=280), tiny_tokenizer(303), target)
    endless = Tokenizer(
        tokenizer.vocabulary, tokenizer.merges, special_tokens={}, pattern="gpt2", roles=Roles(end=None)
    )
    with pytest.raises(BadInputError, match="names no end token"):
        write_gguf(random_model(), endless, target)
    model = random_model()
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[3, 4] = 1e6  # type: ignore[union-attr]
    with pytest.raises(JourneyError, match=r"blk\.1\.ffn_up\.weight holds numbers that are .* too large for F16"):
        write_gguf(model, tokenizer, target)


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "qwen2", "gpt2_digits"])
def test_a_vocabulary_comes_back(pattern: str) -> None:
    """Ids, unused ids, roles, visible tokens and the template, for every split pattern."""
    base = tiny_tokenizer()
    special = {"<|endoftext|>": 300, "<think>": 302, "<|im_start|>": 303, "<|im_end|>": 305}
    ordinary = {data: token for data, token in base.vocabulary.items() if token < 290}
    tokenizer = Tokenizer(
        ordinary,
        [pair for pair in base.merges if ordinary.keys() >= {base.id_to_bytes(pair[0]) + base.id_to_bytes(pair[1])}],
        special_tokens=special,
        pattern=pattern,
        roles=Roles(end="<|im_end|>", begin="<|endoftext|>", padding=None),
        chat_template="{{ messages[0]['content'] }}\n naïve",
        compose=pattern == "qwen2",
        visible_tokens=["<think>"],
    )
    metadata = write_vocabulary(tokenizer, 310)
    assert metadata["tokenizer.ggml.tokens"][301] == "[PAD301]" and len(metadata["tokenizer.ggml.tokens"]) == 310
    found = read_vocabulary(metadata, 310, "a file")
    assert found.fingerprint == tokenizer.fingerprint
    assert (found.roles, found.visible_tokens) == (tokenizer.roles, tokenizer.visible_tokens)
    assert found.chat_template == tokenizer.chat_template
    for text in TEXTS:
        assert found.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("adds", [(True, False), (False, True), (False, False)])
def test_what_stands_around_a_text_comes_back(adds: tuple[bool, bool]) -> None:
    """A file that leaves it open means what llama.cpp does then: a begin token for Llama 3's vocabulary only."""
    tokenizer = tiny_tokenizer()
    tokenizer.adds_begin, tokenizer.adds_end = adds
    metadata = write_vocabulary(tokenizer, 304)
    found = read_vocabulary(metadata, 304, "a file")
    assert (found.adds_begin, found.adds_end) == adds
    silent = {key: value for key, value in metadata.items() if "ggml.add_" not in key}
    assert read_vocabulary(silent, 304, "a file").frame([5]) == [5]
    llama3 = silent | {"tokenizer.ggml.pre": "llama-bpe"}
    assert read_vocabulary(llama3, 304, "a file").frame([5]) == [tokenizer.end_id, 5]


CONTRADICTIONS = {
    "another architecture": ({"general__architecture": "mamba"}, "'mamba': must be one of llama, qwen3, gpt2"),
    "no architecture": ({"general__architecture": None}, "must be one of llama"),
    "a shape that lies": ({"llama__embedding_length": 96}, "has shape [304, 64], its config asks for [304, 96]"),
    "more layers than tensors": ({"llama__block_count": 10**6}, "claims 1000000 layers"),
    "one layer too many": ({"llama__block_count": 3}, "tensors are missing: blk.2."),
    "one layer too few": ({"llama__block_count": 1}, "tensors that this model has no place for: blk.1."),
    "no context": ({"llama__context_length": None}, "key 'context_length' is missing"),
    "an endless context": ({"llama__context_length": 1 << 30}, "from 1 to 1048576"),
    "heads that do not divide": ({"llama__attention__head_count_kv": 3}, "must be a multiple of num_kv_heads"),
    "a list for a number": (
        {"llama__attention__head_count": np.array([4, 4], dtype=np.int32)},
        "must be a whole number",
    ),
    "a scaled rotation": ({"llama__rope__scaling__type": "yarn"}, "must be 'none'"),
    "part of a rotation": ({"llama__rope__dimension_count": 8}, "must be 16"),
    "experts": ({"llama__expert_count": 8}, "must be 0"),
    "a tensor missing": ({"drop": "blk.0.ffn_gate.weight"}, "tensors are missing: blk.0.ffn_gate.weight"),
    "a tensor left over": (
        {"add": ("blk.0.extra.weight", np.zeros((2, 2), dtype=np.float32))},
        "no place for: blk.0.extra.weight",
    ),
    "factors of a rotation": (
        {"add": ("rope_freqs.weight", np.ones(8, dtype=np.float32))},
        "rope_freqs.weight scales the rotation",
    ),
    "another kind of tokenizer": ({"tokenizer__ggml__model": "llama"}, "only byte-level BPE"),
    "no tokenizer": ({"tokenizer__ggml__model": None}, "only byte-level BPE"),
    "an unknown pattern": ({"tokenizer__ggml__pre": "tekken"}, "'tekken'; known split patterns: gpt-2"),
    "another model's tokens": ({"tokenizer__ggml__tokens": ["a", "b"]}, "token_type' has 304 entries for 2 tokens"),
    "token types missing": ({"tokenizer__ggml__token_type": None}, "token_type' is missing"),
    "an end token that is none": ({"tokenizer__ggml__eos_token_id": 10**6}, "the tokens' ids are 0 to 303"),
    "a flag that is none": ({"tokenizer__ggml__add_bos_token": "yes"}, "add_bos_token' is yes; true or false"),
    "a merge of nothing": ({"tokenizer__ggml__merges": ["x"]}, "merge 0 is no pair of tokens: 'x'"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_file_that_contradicts_itself_is_refused(name: str, tmp_path: Path) -> None:
    changes, reason = CONTRADICTIONS[name]
    write_gguf(random_model(), tiny_tokenizer(), tmp_path / "a.gguf")
    path = rewritten(tmp_path / "a.gguf", **changes)
    with pytest.raises(BadInputError) as caught:
        read_gguf(path)
    message = str(caught.value)
    assert reason in message and message.startswith(str(path)) and "\n" not in message


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    write_gguf(random_model(), tiny_tokenizer(), tmp_path / "a.gguf")
    tokens = GgufFile(tmp_path / "a.gguf").metadata["tokenizer.ggml.tokens"][:-1]
    types = np.ones(len(tokens), dtype=np.int32)
    path = rewritten(tmp_path / "a.gguf", tokenizer__ggml__tokens=tokens, tokenizer__ggml__token_type=types)
    with pytest.raises(BadInputError, match="lists 303 tokens, the model embeds 304: they do not belong"):
        read_gguf(path)


def fuzz(folder: Path, count: int, seed: int) -> None:
    """Mutated files: a BadInputError in one line, or a model; each in under a second of the processor."""
    whole = []
    for number, choices in enumerate(ARCHITECTURES.values()):
        path = folder / f"{number}.gguf"
        kind = list(FILE_TYPES)[number]
        write_gguf(random_model(width=32, mlp_width=32, context=8, **choices), tiny_tokenizer(), path, type=kind)
        whole.append(path.read_bytes())
    draw, path = random.Random(seed), folder / "mutated.gguf"
    refused = 0
    for _ in range(count):
        path.write_bytes(mutate(draw.choice(whole), draw))
        began = time.process_time()
        try:
            found = read_gguf(path)
            assert sum(value.numel() for value in found.state.values()) < 8 * path.stat().st_size
        except BadInputError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error)
        assert time.process_time() - began < 1
    assert refused > count // 4


def test_mutated_files(tmp_path: Path) -> None:
    fuzz(tmp_path, 300, seed=1)


@pytest.mark.full
def test_very_many_mutated_files(tmp_path: Path) -> None:
    """Ten thousand, and the memory that they took at most: the file's size and 64 MB more than before."""
    fuzz(tmp_path, 20, seed=2)
    before = peak_kilobytes()
    fuzz(tmp_path, 10_000, seed=3)
    assert peak_kilobytes() - before < 65 << 10


def peak_kilobytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def test_sizes_of_the_written_file_are_what_its_head_says(tmp_path: Path) -> None:
    """Data begin on the alignment and end with the file: other readers need no luck."""
    write_gguf(random_model(), tiny_tokenizer(), tmp_path / "a.gguf", type="q4_0")
    data = (tmp_path / "a.gguf").read_bytes()
    file = GgufFile(tmp_path / "a.gguf")
    assert struct.unpack_from("<IQQ", data, 4) == (3, len(file.tensors), len(file.metadata))
    ends = [facts.start + facts.num_bytes for facts in file.tensors.values()]
    assert all(facts.start % gguf.DEFAULT_ALIGNMENT == 0 for facts in file.tensors.values())
    assert len(data) == -(-max(ends) // 32) * 32
