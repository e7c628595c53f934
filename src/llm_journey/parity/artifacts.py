"""What crosses to other programs: GGUF's tensor types, and files of ours in gguf's reader, transformers, llama.cpp."""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_journey.checkpoint.gguf.format import TENSOR_TYPES, TensorType
from llm_journey.checkpoint.gguf.model import FILE_TYPES, build_decoder, read_gguf, write_gguf
from llm_journey.checkpoint.gguf.quants import WRITTEN_TYPES, dequantize, quantize
from llm_journey.checkpoint.gguf.reader import GgufFile
from llm_journey.model.decoder import Decoder
from llm_journey.parity.differences import largest, num_differing
from llm_journey.parity.equality import Equality
from llm_journey.parity.random_models import GPT2, LLAMA, QWEN3, plant, quiet, random_decoder, random_ids
from llm_journey.parity.tokens import MESSAGES, TEXTS, trained
from llm_journey.tokenizer.chat_template import render_chat

_SUMS = "float32 sums taken in another order, of logits around 10"
_GGUF = ("gguf",)  # transformers and its own reader need the package
# transformers overlooks a file's key_length (qwen3), context and feed-forward width (gpt2), and takes these instead.
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3": QWEN3 | {"head_width": 128},
    "gpt2": GPT2 | {"context": 1024, "mlp_width": 256},
}
_MOST_TEXTS = 200
_CONTEXT = 256  # the least that llama.cpp takes without a word


def _reading(planted: bool, *, kind: TensorType) -> float:
    """How many numbers of random blocks come out otherwise; the planted error turns one bit of each block."""
    from gguf import GGMLQuantizationType
    from gguf import quants as reference

    blocks = np.random.default_rng(0).integers(0, 256, (500, kind.size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = reference.dequantize(blocks.copy(), GGMLQuantizationType[kind.name]).reshape(500, -1)
    if planted:
        blocks[:, -1] ^= 8
    found = dequantize(kind, blocks.reshape(-1)).reshape(500, -1)
    finite = np.isfinite(expected).all(axis=1)  # an infinite scale makes no number
    return num_differing(found[finite].ravel().tolist(), expected[finite].ravel().tolist())


def _writing(planted: bool, *, kind: TensorType) -> float:
    """How many bytes of quantized random weights differ; the planted error is one weight, the largest of its block."""
    from gguf import GGMLQuantizationType
    from gguf import quants as reference

    numbers = np.random.default_rng(1).normal(size=(40, 256)).astype(np.float32)
    expected = reference.quantize(numbers.copy(), GGMLQuantizationType[kind.name])
    numbers[3, 5] = 9.0 if planted else numbers[3, 5]
    return num_differing(_bytes(quantize(kind, numbers)), _bytes(expected))


def _bytes(array: Any) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@contextmanager
def _written(architecture: str, type: str = "f16") -> Iterator[tuple[Path, Decoder]]:
    """A random model of an architecture, our tokenizer with its chat template beside it, in a file of ours."""
    tokenizer = trained()
    sizes: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "width": 64, "head_width": 16, "mlp_width": 96}
    sizes |= {"context": _CONTEXT}
    model = random_decoder(**sizes | _ARCHITECTURES[architecture])
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.gguf"
        write_gguf(model, tokenizer, path, type=type)
        yield path, model


def _tensors(planted: bool, *, type: str) -> float:
    """Every tensor of a file of ours, read by the gguf package and by us: names, shapes and numbers."""
    from gguf import GGUFReader
    from gguf import quants as reference

    with _written("llama", type) as (path, _):
        file, peer = GgufFile(path), GGUFReader(path)
        ours = {name: file.numbers(name).reshape(facts.shape) for name, facts in file.tensors.items()}
        if planted:
            ours["blk.0.attn_q.weight"] = ours["blk.0.attn_q.weight"].T
        theirs = {
            tensor.name: reference.dequantize(np.asarray(tensor.data), tensor.tensor_type).reshape(
                tensor.shape[::-1].tolist()
            )
            for tensor in peer.tensors
        }
        if ours.keys() != theirs.keys():
            return float("inf")
        return max(largest(value, theirs[name]) for name, value in ours.items())


def _model(planted: bool, *, architecture: str) -> float:
    """A random model through our F16 file: our logits from it, and transformers' from it."""
    with _written(architecture) as (path, _):
        ours = build_decoder(read_gguf(path))
        if planted:
            plant(ours.blocks[0].attention.q.weight)  # type: ignore[union-attr, arg-type]
        return logits_difference(ours, path, random_ids(2, 20, ours.config.vocab_size))


def logits_difference(ours: Decoder, path: Path, ids_bt: Tensor) -> float:
    """The largest difference of logits to transformers' loading of `path`, a folder or a GGUF file."""
    import transformers

    opener: Any = transformers.AutoModelForCausalLM
    where, options = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    with quiet(), torch.inference_mode():
        theirs = opener.from_pretrained(where, dtype=torch.float32, local_files_only=True, **options).eval()
        return largest(ours(ids_bt), theirs(ids_bt).logits)


def tokenizer_in_transformers(path: Path) -> Any:
    """transformers' tokenizer of `path`, a folder or a GGUF file."""
    import transformers

    opener: Any = transformers.AutoTokenizer
    where, options = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    with quiet():
        return opener.from_pretrained(where, local_files_only=True, **options)


def _tokenizer(planted: bool) -> float:
    """How many texts our file's tokenizer encodes otherwise in transformers; the planted error adds a full stop."""
    with _written("llama") as (path, _):
        ours, peer = read_gguf(path).tokenizer, tokenizer_in_transformers(path)
    texts = TEXTS[-_MOST_TEXTS:]
    found = [ours.encode(text + "." * planted) for text in texts]
    return num_differing(found, (peer(text, add_special_tokens=False)["input_ids"] for text in texts))


def _chat(planted: bool) -> float:
    """How many of four conversations our file's template renders otherwise in transformers."""
    with _written("llama") as (path, _):
        ours, peer = read_gguf(path).tokenizer, tokenizer_in_transformers(path)
    conversations = [MESSAGES[:stop] for stop in range(1, len(MESSAGES) + 1)]
    found = [render_chat(ours, messages, add_generation_prompt=not planted) for messages in conversations]
    return num_differing(
        found, (peer.apply_chat_template(row, tokenize=False, add_generation_prompt=True) for row in conversations)
    )


def _llama_cpp(path: Path, **options: Any) -> Any:
    """llama.cpp's model of a file, to be closed."""
    from llama_cpp import Llama  # type: ignore[import-not-found, unused-ignore]

    return closing(Llama(str(path), n_ctx=_CONTEXT, n_threads=1, verbose=False, **options))


def _in_llama_cpp(planted: bool, *, architecture: str, type: str) -> float:
    """The mean KL divergence of the next token over 20 positions: our model of the file, llama.cpp's of it."""
    with _written(architecture, type) as (path, _):
        ours = build_decoder(read_gguf(path))
        ids = random_ids(1, 20, ours.config.vocab_size)
        with _llama_cpp(path, logits_all=True) as peer:
            peer.eval(ids[0].tolist())
            theirs_tv = torch.from_numpy(np.array(peer.scores[:20])).log_softmax(-1)
    with torch.inference_mode():
        if planted:  # one weight moves a KL too little: the whole matrix changes its sign
            ours.blocks[0].attention.o.weight.neg_()  # type: ignore[union-attr, operator]
        ours_tv = ours(ids)[0].log_softmax(-1)
    return float((ours_tv.exp() * (ours_tv - theirs_tv)).sum(-1).mean().abs())


def _tokenizer_in_llama_cpp(planted: bool) -> float:
    """How many texts llama.cpp cuts otherwise. Its own classes of characters end before some of the newest letters."""
    with _written("llama") as (path, _), _llama_cpp(path) as peer:
        ours = read_gguf(path).tokenizer
        texts = TEXTS[-_MOST_TEXTS:]
        found = [ours.encode(text + "." * planted) for text in texts]
        expected = [peer.tokenize(text.encode(), add_bos=False, special=False) for text in texts]
    return num_differing(found, expected)


def _chat_in_llama_cpp(planted: bool) -> float:
    """How many of four conversations the package's chat formatter renders otherwise by the file's template."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter  # type: ignore[import-not-found, unused-ignore]

    with _written("llama") as (path, _), _llama_cpp(path) as peer:
        ours = read_gguf(path).tokenizer
        special = {token: name for name, token in ours.special_tokens.items()}
        formatter = Jinja2ChatFormatter(
            template=peer.metadata["tokenizer.chat_template"],
            eos_token=special[peer.token_eos()],
            bos_token=special[peer.token_bos()],
        )
    conversations = [MESSAGES[:stop] for stop in range(1, len(MESSAGES) + 1)]
    found = [render_chat(ours, messages, add_generation_prompt=not planted) for messages in conversations]
    return num_differing(found, (formatter(messages=messages).prompt for messages in conversations))


_exact = partial(Equality, tolerance=0.0)
# llama.cpp rounds activations to the width that a type's products are taken in; a KL says what that does to the text.
_KL = {
    "f16": (1e-4, "activations are rounded to 11 bits there"),
    "q8_0": (2e-3, "activations are rounded to 8 bits there"),
}

EQUALITIES = (
    *(
        _exact(
            component=f"GGUF type {kind.name}, reading",
            reference="gguf",
            compared="how many numbers of random blocks differ",
            reason="bit for bit",
            difference=partial(_reading, kind=kind),
        )
        for kind in TENSOR_TYPES.values()
    ),
    *(
        _exact(
            component=f"GGUF type {kind.name}, writing",
            reference="gguf",
            compared="how many bytes of random weights differ",
            reason="bit for bit",
            difference=partial(_writing, kind=kind),
        )
        for kind in WRITTEN_TYPES
    ),
    *(
        _exact(
            component=f"GGUF file of ours, tensors as {type}",
            reference="gguf",
            compared="every number of a llama-type model's file, its own reader",
            reason="bit for bit",
            difference=partial(_tensors, type=type),
        )
        for type in FILE_TYPES
    ),
    *(
        Equality(
            component=f"GGUF file of ours, {architecture}",
            reference="transformers",
            compared="logits of a random model from our F16 file",
            tolerance=1e-4,
            reason=_SUMS,
            difference=partial(_model, architecture=architecture),
            also=_GGUF,
        )
        for architecture in _ARCHITECTURES
    ),
    _exact(
        component="GGUF file of ours, tokenizer",
        reference="transformers",
        compared="how many texts differ, its loading of the file",
        reason="id for id",
        difference=_tokenizer,
        also=_GGUF,
    ),
    _exact(
        component="GGUF file of ours, chat template",
        reference="transformers",
        compared="how many conversations differ, its loading of the file",
        reason="byte for byte",
        difference=_chat,
        also=_GGUF,
    ),
    *(
        Equality(
            component=f"GGUF file of ours in llama.cpp, {architecture}, {type}",
            reference="llama-cpp-python",
            compared="mean KL divergence of the next token, our model of the same file",
            tolerance=_KL[type][0],
            reason=_KL[type][1],
            difference=partial(_in_llama_cpp, architecture=architecture, type=type),
        )
        for architecture, type in (("llama", "f16"), ("qwen3", "f16"), ("gpt2", "f16"), ("llama", "q8_0"))
    ),
    _exact(
        component="GGUF file of ours in llama.cpp, tokenizer",
        reference="llama-cpp-python",
        compared="how many texts differ, its own tokenizer",
        reason="id for id",
        difference=_tokenizer_in_llama_cpp,
    ),
    _exact(
        component="GGUF file of ours in llama.cpp, chat template",
        reference="llama-cpp-python",
        compared="how many conversations differ, the package's chat formatter",
        reason="byte for byte",
        difference=_chat_in_llama_cpp,
    ),
)
