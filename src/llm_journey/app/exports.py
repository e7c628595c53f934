"""Models out: a folder that transformers opens, or a GGUF file that llama.cpp runs, each with its certificate.

An export is a folder, written whole or not at all:

    config.json, model.safetensors, tokenizer.json ...   --to hf
    NAME-TYPE.gguf, Modelfile                            --to gguf (Modelfile: for ollama)
    certificate.json                                     what was compared, and how far it is from the source
    README.md                                            the card: the certificate in words, and the source's own card

What was written is opened again, by another project's reader where one is installed, and set beside the source in
float32 on fixed texts; over a bound, nothing is left.
"""

import datetime
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_journey.app.language_model import GGUF_SUFFIX, LanguageModel, find_model, model_name, open_model
from llm_journey.core import files, lineage
from llm_journey.core.errors import BadInputError, JourneyError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

    from llm_journey.evaluation.agreement import Agreement
    from llm_journey.model.config import TransformerConfig

CERTIFICATE, MODELFILE, CARD = "certificate.json", "Modelfile", "README.md"
FORMATS = ("hf", "gguf")
# Bound of what should be equal: float32 sums taken in another order.
LOGIT_BOUND = 1e-4
# What a GGUF type may cost: mean KL to float32 in nats, over what is measured by a small factor, since it grows with
# depth. The quickstart's model: 2e-7 (f16), 9e-5 (q8_0), 8e-3 (q4_1), 9e-3 (q4_0). SmolLM2, 30 layers: 3e-6, 2.2e-3,
# 0 (its weights lie on Q4_1's grid already), and 0.56 for q4_0, which is no longer the same model, and refused.
KL_BOUNDS = {"f16": 1e-4, "q8_0": 5e-3, "q4_1": 5e-2, "q4_0": 5e-2}
_ONLY_OURS = "llm-journey's own reader only (the package gguf, which would read it independently, is not installed)"
_NOT_COMPOSED = (
    "the model's tokenizer brings text to Unicode's form NFC first, which llama.cpp does not do: text with separate "
    "accents gets other ids there"
)
_MAX_LICENCE = 200
_TEXTS = (
    "The city lies at the mouth of a river, and its harbour has been in use since the thirteenth century.",
    "Water boils at a lower temperature on a mountain, because the air above it weighs less.",
    "She opened the letter, read it twice, and put it back into the drawer without a word.",
    "In 1905 four papers appeared that changed how physicists think about space, time and light.",
    "To make the dough, mix 500 grams of flour with water, salt and a little yeast; let it rest for an hour.",
    "def add(first, second):\n    return first + second\n",
    "The committee met on Tuesday. It discussed the budget, the roof of the library and the new bus line.",
    "What is the capital of France? And which river flows through it?",
    "The species is found in wet forests, where it feeds on insects, seeds and the fruit of palms.",
    "He was born in a small village in the north, the third of five children of a carpenter.",
    "A prime number has exactly two divisors: 1 and itself. The first ones are 2, 3, 5, 7 and 11.",
    "Le train part à sept heures du matin, et il arrive à midi.",
)


@dataclass(frozen=True)
class Export:
    """A finished export: its folder, its main file, and what its certificate says."""

    folder: Path
    file: Path
    certificate: dict[str, Any]

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) rows that describe it."""
        found = self.certificate
        return [
            ("Written", str(self.file)),
            ("Size", f"{found['bytes'] / 1e6:,.1f} MB"),
            ("Compared", found["compared"]),
            *_measures(found),
            ("Certificate", str(self.folder / CERTIFICATE)),
        ]

    def describe(self) -> dict[str, Any]:
        """The export as JSON values."""
        return {"folder": str(self.folder), "file": str(self.file), "certificate": self.certificate}


def export_model(
    name_or_path: str, to: str, out: Path, *, type: str | None = None, licence: str | None = None
) -> Export:
    """Write a model as `to` ("hf" or "gguf") into the new folder `out`, certified.

    type: of a GGUF file's matrices (f16 where none is given, q8_0, q4_0, q4_1). licence: of the weights, where the
    source names none. Raises BadInputError for what cannot be asked, JourneyError where the export is over
    its bound: nothing is left.
    """
    if to not in FORMATS:
        raise unknown_name("export format", to, FORMATS)
    if to == "hf" and type is not None:
        raise BadInputError("a type is of a GGUF file's matrices; a folder for transformers keeps the model's numbers")
    from llm_journey.checkpoint import tensor_files

    _check_licence(licence)
    _check_target(out)
    path = find_model(name_or_path)
    source = _Source(path, model_name(name_or_path, path), name_or_path, licence)
    write = _write_gguf if to == "gguf" else _write_folder if source.is_decoder else _write_other_folder
    with tensor_files.writing(out), files.new_directory(out) as temporary:
        name, certificate = write(source, temporary, type or "f16")
        certificate = {"model": source.name, "format": to, **certificate, **_file_facts(temporary / name)}
        files.write_json(temporary / CERTIFICATE, certificate)
        files.write_text(temporary / CARD, _card(source, name, certificate))
    return Export(out, out / name, certificate)


@dataclass(frozen=True)
class _Source:
    """What is exported. asked: the name or path that it was asked for by; licence: what the person says of it."""

    path: Path
    name: str
    asked: str
    licence: str | None

    @cached_property
    def config(self) -> "TransformerConfig":
        from llm_journey.checkpoint.model_folder import load_config

        return self.model.decoder.config if self.path.suffix == GGUF_SUFFIX else load_config(self.path)

    @property
    def is_decoder(self) -> bool:
        return self.config.kind == "decoder"

    @cached_property
    def model(self) -> LanguageModel:
        return open_model(self.asked)


def _check_target(out: Path) -> None:
    if out.suffix == GGUF_SUFFIX:
        raise BadInputError(f"{out}: --out names a folder; the file in it is named after the model and its type")
    if out.exists() and not out.is_dir():
        raise BadInputError(f"{out}: a file is in the way; choose another folder")
    if out.is_dir() and any(out.iterdir()):
        raise BadInputError(f"{out}: holds files already, which an export would replace; choose a new folder")


def _write_folder(source: _Source, folder: Path, type: str) -> tuple[str, dict[str, Any]]:  # noqa: ARG001
    """A folder in Hugging Face layout, and transformers' logits of it beside ours."""
    from llm_journey.app.imports import write_model_folder
    from llm_journey.checkpoint.families import FAMILIES, family_of
    from llm_journey.checkpoint.verify import open_with_transformers

    if family_of(source.config) is None:
        raise BadInputError(
            f"{source.name}: its choices fit none of {', '.join(FAMILIES)}; transformers cannot open it"
        )
    model = source.model
    write_model_folder(source.path, folder)
    theirs = open_with_transformers(folder)
    _require_same_ids(model, folder)
    agreement = _compare(model, model.decoder, lambda ids_bt: theirs(ids_bt).logits)
    _require(agreement.largest_logit_difference, LOGIT_BOUND, "the largest logit difference to transformers")
    version = lineage.versions()["transformers"]
    compared = f"{model.name} in float32 with this folder opened by transformers {version}, and the ids of each text"
    return "model.safetensors", _findings(compared, agreement, {"largest_logit_difference": LOGIT_BOUND})


def _write_other_folder(source: _Source, folder: Path, type: str) -> tuple[str, dict[str, Any]]:  # noqa: ARG001
    """An encoder's or an encoder-decoder's folder, and transformers' output of it beside ours on random ids."""
    from llm_journey.app.imports import write_model_folder
    from llm_journey.app.text_agreement import text_agreement
    from llm_journey.checkpoint.verify import compare_with_transformers

    write_model_folder(source.path, folder)
    config, draw = source.config, random.Random(0)
    ids = [draw.randrange(config.vocab_size) for _ in range(min(config.context, 64))]
    difference = compare_with_transformers(folder, ids)
    _require(difference, LOGIT_BOUND, "the largest difference to transformers")
    version = lineage.versions()["transformers"]
    return "model.safetensors", text_agreement(folder, _TEXTS) | {
        "compared": f"{source.name} in float32 with this folder opened by transformers {version}",
        "positions": len(ids),
        "largest_logit_difference": difference,
        **_made({"largest_logit_difference": LOGIT_BOUND}),
    }


def _write_gguf(source: _Source, folder: Path, type: str) -> tuple[str, dict[str, Any]]:
    """A GGUF file, and its logits, read back from the file, beside the model's own."""
    from llm_journey.checkpoint.gguf.independent import read_independently
    from llm_journey.checkpoint.gguf.model import FILE_TYPES, build_decoder, read_gguf, write_gguf
    from llm_journey.checkpoint.model_folder import build
    from llm_journey.model.decoder import Decoder

    if type not in FILE_TYPES:
        raise unknown_name("GGUF type", type, FILE_TYPES)
    model = source.model
    name = f"{model.name.removesuffix(GGUF_SUFFIX)}-{type}{GGUF_SUFFIX}"
    write_gguf(
        model.decoder,
        model.tokenizer,
        folder / name,
        type=type,
        generation=model.defaults,
        facts={"name": model.name, **({} if (licence := _licence(source)) is None else {"license": licence})},
    )
    found, peer = read_gguf(folder / name), read_independently(folder / name)
    _require_same_text(model, found.tokenizer)
    ours = build_decoder(found)
    theirs = ours if peer is None else build(found.config, peer.state, Decoder)
    agreement = _compare(model, model.decoder, theirs)
    readers: dict[str, Any] = {"read_by": _ONLY_OURS}
    if peer is not None:
        difference = _compare(model, ours, theirs).largest_logit_difference
        _require(difference, LOGIT_BOUND, f"the largest logit difference between our reading and {peer.read_by}'s")
        readers = {"read_by": peer.read_by, "tensors_equal": peer.tensors, "reader_logit_difference": difference}
    _require(agreement.mean_kl, KL_BOUNDS[type], f"the mean KL of {type}", "; choose a type with more bits")
    if type == "f16":
        _require(1 - agreement.decided_agreement, 0.0, "the share of positions whose decided token changed")
    files.write_text(folder / MODELFILE, _modelfile(model, name))
    compared = f"{model.name} in float32 with this file, read by {readers['read_by']}, computed in float32"
    bounds = {"mean_kl": KL_BOUNDS[type], **({} if peer is None else {"reader_logit_difference": LOGIT_BOUND})}
    notes = [_NOT_COMPOSED] if model.tokenizer.compose else []
    return name, {"type": type, **readers, **_findings(compared, agreement, bounds), "notes": notes}


def _compare(
    model: LanguageModel, reference: "Callable[[Tensor], Tensor]", other: "Callable[[Tensor], Tensor]"
) -> "Agreement":
    """The logits of two, on the fixed texts and as the same texts in a chat, cut as `model` cuts them."""
    import torch

    from llm_journey.evaluation.agreement import compare_logits

    def pairs() -> "Iterator[tuple[Tensor, Tensor]]":
        for ids in _probes(model):
            ids_bt = torch.tensor([ids])
            yield reference(ids_bt)[0], other(ids_bt)[0]

    with torch.inference_mode():
        return compare_logits(pairs())


def _probes(model: LanguageModel) -> Iterator[list[int]]:
    from llm_journey.tokenizer.chat_template import encode_chat

    context = model.decoder.config.context
    for text in _TEXTS:
        yield model.prompt_ids(text)[:context]
        if model.tokenizer.chat_template is not None:
            yield encode_chat(model.tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)[
                :context
            ]


def _require_same_text(model: LanguageModel, written: Any) -> None:
    """The file's tokenizer must cut text alike, and its template must write a chat alike."""
    from llm_journey.tokenizer.chat_template import render_chat

    same = model.tokenizer.fingerprint == written.fingerprint and model.tokenizer.frame([0]) == written.frame([0])
    same = same and all(model.tokenizer.encode(text) == written.encode(text) for text in _TEXTS)
    if model.tokenizer.chat_template is not None:
        chat = [{"role": "user", "content": _TEXTS[0]}]
        first, second = (render_chat(item, chat, add_generation_prompt=True) for item in (model.tokenizer, written))
        same = same and first == second
    if not same:
        raise JourneyError("the tokenizer in the GGUF file gives other ids than the model's own; nothing is written")


def _require_same_ids(model: LanguageModel, folder: Path) -> None:
    """transformers' own tokenizer must make the same ids of a bare text, begin token and all, and the same chat."""
    import transformers

    from llm_journey.tokenizer.chat_template import render_chat

    opener: Any = transformers.AutoTokenizer
    peer = opener.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    same = all(peer(text)["input_ids"] == model.prompt_ids(text) for text in _TEXTS)
    if same and model.tokenizer.chat_template is not None:
        chat = [{"role": "user", "content": _TEXTS[0]}]
        rendered = peer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        same = rendered == render_chat(model.tokenizer, chat, add_generation_prompt=True)
    if not same:
        raise JourneyError("transformers makes other ids, or another chat, of the same text; nothing is written")


def _require(value: float, bound: float, what: str, advice: str = "") -> None:
    if not value <= bound:  # NaN fails too
        raise JourneyError(f"{what} is {value:.2e}, over the bound {bound:.0e}; the export is not written{advice}")


def _findings(compared: str, agreement: "Agreement", bounds: dict[str, float]) -> dict[str, Any]:
    return {"compared": compared, "texts": len(_TEXTS), **agreement.describe(), **_made(bounds)}


def _made(bounds: dict[str, float]) -> dict[str, Any]:
    """The bounds that were held, when, and by which versions."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"bounds": bounds, "date": date, "versions": lineage.versions()}


def _file_facts(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": files.sha256_file(path)}


def _modelfile(model: LanguageModel, name: str) -> str:
    """What `ollama create` reads. Where the template is ChatML, it is spelled out in ollama's own language."""
    lines = [f"FROM ./{name}"]
    found = _chatml_system(model)
    if found is not None:
        begin, system = found
        lines += [
            f'TEMPLATE """{begin}{{{{- if .System }}}}<|im_start|>system',
            "{{ .System }}<|im_end|>",
            "{{ end }}{{- range .Messages }}<|im_start|>{{ .Role }}",
            "{{ .Content }}<|im_end|>",
            "{{ end }}<|im_start|>assistant",
            '"""',
            *([f'SYSTEM """{system}"""'] if system else []),
        ]
    ends = {model.tokenizer.id_to_bytes(token).decode("utf-8", "replace") for token in model.stop_ids}
    lines += [f'PARAMETER stop "{text}"' for text in sorted(ends)]
    theirs = {"repetition_penalty": "repeat_penalty", "max_new_tokens": "num_predict"}
    lines += [f"PARAMETER {theirs.get(key, key)} {value}" for key, value in model.defaults.items()]
    lines.append(f"PARAMETER num_ctx {model.decoder.config.context}")
    return "\n".join(lines) + "\n"


def _chatml_system(model: LanguageModel) -> tuple[str, str] | None:
    """What a ChatML template writes first (the begin token, save where ollama adds it by the file's own flag), and the
    system message that it adds ("" for none); None where the template is another one."""
    from llm_journey.tokenizer.chat_template import render_chat

    if model.tokenizer.chat_template is None:
        return None
    text = render_chat(model.tokenizer, [{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    before, found, _ = text.rpartition("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    if not found or not text.endswith(found):
        return None
    begin = model.tokenizer.roles.begin or ""
    begins, adds = bool(begin) and before.startswith(begin), model.tokenizer.adds_begin
    before = before.removeprefix(begin) if begins else before
    system = before.removeprefix("<|im_start|>system\n").removesuffix("<|im_end|>\n")
    if before not in ("", f"<|im_start|>system\n{system}<|im_end|>\n") or '"""' in system or (adds and not begins):
        return None
    return begin if begins and not adds else "", system


def _licence(source: _Source) -> str | None:
    """The licence of the weights: what the person says, what the catalog or the source's own card says; else None."""
    from llm_journey.datasets.catalog import CATALOG

    if source.licence:
        return source.licence
    if source.asked in CATALOG:
        return CATALOG[source.asked].licence
    for line in _source_card(source)[0].splitlines():
        key, _, value = line.partition(":")
        if key == "license" and value.strip():
            return value.strip().strip("'\"")
    return None


def _source_card(source: _Source) -> tuple[str, str]:
    """The metadata block of the source's own card, and the text behind it; either may be empty."""
    path = source.path / CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if text.startswith("---\n") and "\n---\n" in text:
        metadata, _, body = text.removeprefix("---\n").partition("\n---\n")
        return metadata, body.strip()
    return "", text.strip()


def _check_licence(licence: str | None) -> None:
    if licence is not None and not (0 < len(licence.strip()) <= _MAX_LICENCE and licence.isprintable()):
        raise BadInputError(
            f"--licence {licence[:40]!r}: give an identifier such as 'mit' or 'cc-by-sa-4.0', or a name, in one line "
            f"of at most {_MAX_LICENCE} characters"
        )


def _card(source: _Source, name: str, certificate: dict[str, Any]) -> str:
    """The certificate for people. The source's own card follows, without its metadata block."""
    from llm_journey.core.config import to_yaml
    from llm_journey.model.cost import count_parameters

    config, licence = source.config, _licence(source) or "not stated by its source"
    shape = f"{config.num_layers} layers, {config.width} wide, {config.num_heads} heads, {config.context:,} tokens"
    if name.endswith(GGUF_SUFFIX):
        use = f"llama-cli -m {name}\nollama create {source.name.removesuffix(GGUF_SUFFIX)} -f {MODELFILE}"
    else:
        use = 'journey models show .   # in transformers: from_pretrained(".")'
    bounds = ", ".join(f"{key} <= {value:g}" for key, value in certificate["bounds"].items())
    sections = [
        f"---\n{to_yaml({'license': licence, 'tags': ['llm-journey']})}---",
        f"# {source.name}",
        f"{count_parameters(config).total:,} parameters: {shape}. Licence of the weights: {licence}.",
        f"## Use\n\n```\n{use}\n```",
        f"## Certificate\n\nCompared: {certificate['compared']}, at {certificate['positions']} positions. "
        f"Bound: {bounds}.\n\n{_table(certificate)}",
        *(f"Note: {note}" for note in certificate.get("notes", ())),
    ]
    if body := _source_card(source)[1]:
        sections.append(f"## The source's own card\n\n{body}")
    return "\n\n".join(sections) + "\n"


def _table(certificate: dict[str, Any]) -> str:
    lines = [f"| {label} | {value} |" for label, value in _measures(certificate)]
    return "\n".join(["| measure | value |", "| --- | ---: |", *lines])


def _measures(certificate: dict[str, Any]) -> list[tuple[str, str]]:
    """(label, value) of what was measured; an encoder's folder has fewer."""
    shown = {
        "reader_logit_difference": ("Largest logit difference between two readers of the file", ".2e"),
        "largest_logit_difference": ("Largest logit difference", ".2e"),
        "greedy_agreement": ("Same most likely token", ".2%"),
        "decided_agreement": ("The same where the lead exceeds 0.05", ".2%"),
        "mean_kl": ("Mean KL, nats", ".2e"),
        "largest_kl": ("Largest KL, nats", ".2e"),
        "same_ids": ("Same ids of a text", ".2%"),
        "same_answers": ("Same answer to a text", ".2%"),
    }
    return [(label, f"{certificate[key]:{form}}") for key, (label, form) in shown.items() if key in certificate]
