"""Models out: a folder that transformers opens, a GGUF file that llama.cpp runs, a graph for a runtime; certified.

An export is a folder, written whole or not at all:

    config.json, model.safetensors, tokenizer.json ...   --to hf
    NAME-TYPE.gguf, Modelfile                            --to gguf (Modelfile: for ollama)
    model.onnx, model.pt2, model.ts                      --to onnx, edge, torch-export, torchscript: app.runtime_exports
    certificate.json                                     what was compared, and how far it is from the source
    README.md                                            the card: the certificate in words, and the source's own card

What was written is opened again, by another project's reader where one is installed, and set beside the source in
float32 on fixed texts; over a bound, nothing is left.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_journey.app.certificates import LOGIT_BOUND, TEXTS, Source, compare, findings, made, measures, require, table
from llm_journey.app.find_models import GGUF_SUFFIX, find_model, model_name
from llm_journey.app.language_model import LanguageModel
from llm_journey.core import files, lineage
from llm_journey.core.errors import BadInputError, JourneyError, unknown_name
from llm_journey.training.observer import Observer

CERTIFICATE, MODELFILE, CARD = "certificate.json", "Modelfile", "README.md"
FORMATS = ("hf", "gguf", "onnx", "torch-export", "torchscript", "edge")
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
            *measures(found),
            ("Certificate", str(self.folder / CERTIFICATE)),
        ]

    def describe(self) -> dict[str, Any]:
        """The export as JSON values."""
        return {"folder": str(self.folder), "file": str(self.file), "certificate": self.certificate}


def export_model(
    name_or_path: str,
    to: str,
    out: Path,
    *,
    type: str | None = None,
    licence: str | None = None,
    observer: Observer | None = None,
) -> Export:
    """Write a model as `to` (one of FORMATS) into the new folder `out`, certified.

    type: of the file's matrices: GGUF's f16 (where none is given), q8_0, q4_0, q4_1; ONNX's float32, int8, int4,
    int8-dynamic; the edge's int4 or int8. licence: of the weights, where the source names none. observer: is
    told of each part of the work. Raises BadInputError for what cannot be asked, JourneyError where the export is over
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
    source = Source(path, model_name(name_or_path, path), name_or_path, licence, observer or Observer())
    write = _writer(to, source)
    with tensor_files.writing(out), files.new_directory(out) as temporary:
        name, certificate = write(source, temporary, type)
        certificate = {"model": source.name, "format": to, **certificate, **_file_facts(temporary / name)}
        files.write_json(temporary / CERTIFICATE, certificate)
        files.write_text(temporary / CARD, _card(source, name, certificate))
    return Export(out, out / name, certificate)


_Write = Callable[[Source, Path, str | None], tuple[str, dict[str, Any]]]


def _writer(to: str, source: Source) -> _Write:
    from llm_journey.app import encoder_exports, runtime_exports

    match to:
        case "hf":
            return _write_folder if source.is_decoder else _write_other_folder
        case "gguf":
            return _write_gguf
        case "onnx":
            encoder = source.config.kind == "encoder"
            return encoder_exports.write_onnx_encoder if encoder else runtime_exports.write_onnx
        case "edge":
            return runtime_exports.write_edge
        case "torch-export":
            return runtime_exports.write_torch_export
        case _:
            return runtime_exports.write_torchscript


def _check_target(out: Path) -> None:
    if out.suffix == GGUF_SUFFIX:
        raise BadInputError(f"{out}: --out names a folder; the file in it is named after the model and its type")
    if out.exists() and not out.is_dir():
        raise BadInputError(f"{out}: a file is in the way; choose another folder")
    if out.is_dir() and any(out.iterdir()):
        raise BadInputError(f"{out}: holds files already, which an export would replace; choose a new folder")


def _write_folder(source: Source, folder: Path, type: str | None) -> tuple[str, dict[str, Any]]:  # noqa: ARG001
    """A folder in Hugging Face layout, and transformers' logits of it beside ours."""
    from llm_journey.app.imports import write_model_folder
    from llm_journey.checkpoint.families import FAMILIES, family_of
    from llm_journey.checkpoint.verify import open_with_transformers

    if family_of(source.config) is None:
        raise BadInputError(
            f"{source.name}: its choices fit none of {', '.join(FAMILIES)}; transformers cannot open it"
        )
    model = source.model
    source.observer.stage("writing the folder")
    write_model_folder(source.path, folder)
    source.observer.stage("comparing what transformers makes of it with the model")
    theirs = open_with_transformers(folder)
    _require_same_ids(model, folder)
    agreement = compare(model, model.decoder, lambda ids_bt: theirs(ids_bt).logits)
    require(agreement.largest_logit_difference, LOGIT_BOUND, "the largest logit difference to transformers")
    version = lineage.versions()["transformers"]
    compared = f"{model.name} in float32 with this folder opened by transformers {version}, and the ids of each text"
    return "model.safetensors", findings(compared, agreement, {"largest_logit_difference": LOGIT_BOUND})


def _write_other_folder(source: Source, folder: Path, type: str | None) -> tuple[str, dict[str, Any]]:  # noqa: ARG001
    """An encoder's or an encoder-decoder's folder, and transformers' output of it beside ours on random ids."""
    from llm_journey.app.imports import write_model_folder
    from llm_journey.app.text_agreement import text_agreement
    from llm_journey.checkpoint.verify import compare_with_transformers

    write_model_folder(source.path, folder)
    config, draw = source.config, random.Random(0)
    ids = [draw.randrange(config.vocab_size) for _ in range(min(config.context, 64))]
    difference = compare_with_transformers(folder, ids)
    require(difference, LOGIT_BOUND, "the largest difference to transformers")
    version = lineage.versions()["transformers"]
    return "model.safetensors", text_agreement(folder, TEXTS) | {
        "compared": f"{source.name} in float32 with this folder opened by transformers {version}",
        "positions": len(ids),
        "largest_logit_difference": difference,
        **made({"largest_logit_difference": LOGIT_BOUND}),
    }


def _write_gguf(source: Source, folder: Path, type: str | None) -> tuple[str, dict[str, Any]]:
    """A GGUF file, and its logits, read back from the file, beside the model's own."""
    from llm_journey.checkpoint.gguf.independent import read_independently
    from llm_journey.checkpoint.gguf.model import FILE_TYPES, build_decoder, read_gguf, write_gguf
    from llm_journey.checkpoint.model_folder import build
    from llm_journey.model.decoder import Decoder

    type = type or "f16"
    if type not in FILE_TYPES:
        raise unknown_name("GGUF type", type, FILE_TYPES)
    model = source.model
    name = f"{model.name.removesuffix(GGUF_SUFFIX)}-{type}{GGUF_SUFFIX}"
    source.observer.stage("writing the file")
    write_gguf(
        model.decoder,
        model.tokenizer,
        folder / name,
        type=type,
        generation=model.defaults,
        facts={"name": model.name, **({} if (licence := _licence(source)) is None else {"license": licence})},
    )
    source.observer.stage("comparing what was read back with the model")
    found, peer = read_gguf(folder / name), read_independently(folder / name)
    _require_same_text(model, found.tokenizer)
    ours = build_decoder(found)
    theirs = ours if peer is None else build(found.config, peer.state.items(), Decoder)
    agreement = compare(model, model.decoder, theirs)
    readers: dict[str, Any] = {"read_by": _ONLY_OURS}
    if peer is not None:
        difference = compare(model, ours, theirs).largest_logit_difference
        require(difference, LOGIT_BOUND, f"the largest logit difference between our reading and {peer.read_by}'s")
        readers = {"read_by": peer.read_by, "tensors_equal": peer.tensors, "reader_logit_difference": difference}
    require(agreement.mean_kl, KL_BOUNDS[type], f"the mean KL of {type}", "; choose a type with more bits")
    if type == "f16":
        require(1 - agreement.decided_agreement, 0.0, "the share of positions whose decided token changed")
    files.write_text(folder / MODELFILE, _modelfile(model, name))
    compared = f"{model.name} in float32 with this file, read by {readers['read_by']}, computed in float32"
    bounds = {"mean_kl": KL_BOUNDS[type], **({} if peer is None else {"reader_logit_difference": LOGIT_BOUND})}
    notes = [_NOT_COMPOSED] if model.tokenizer.compose else []
    return name, {"type": type, **readers, **findings(compared, agreement, bounds), "notes": notes}


def _require_same_text(model: LanguageModel, written: Any) -> None:
    """The file's tokenizer must cut text alike, and its template must write a chat alike."""
    from llm_journey.tokenizer.chat_template import render_chat

    same = model.tokenizer.fingerprint == written.fingerprint and model.tokenizer.frame([0]) == written.frame([0])
    same = same and all(model.tokenizer.encode(text) == written.encode(text) for text in TEXTS)
    if model.tokenizer.chat_template is not None:
        chat = [{"role": "user", "content": TEXTS[0]}]
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
    same = all(peer(text)["input_ids"] == model.prompt_ids(text) for text in TEXTS)
    if same and model.tokenizer.chat_template is not None:
        chat = [{"role": "user", "content": TEXTS[0]}]
        rendered = peer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        same = rendered == render_chat(model.tokenizer, chat, add_generation_prompt=True)
    if not same:
        raise JourneyError("transformers makes other ids, or another chat, of the same text; nothing is written")


def _file_facts(path: Path) -> dict[str, Any]:
    """Name, size and hash of the main file; where its tensors lie beside it, their hash too, and the size of both."""
    facts: dict[str, Any] = {"file": path.name, "bytes": path.stat().st_size, "sha256": files.sha256_file(path)}
    data = path.with_name(f"{path.name}.data")
    if data.is_file():
        facts |= {"bytes": facts["bytes"] + data.stat().st_size, "data_sha256": files.sha256_file(data)}
    return facts


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
    lines += [f'PARAMETER stop "{text}"' for text in sorted(ends) if _is_plain(text)]
    theirs = {"repetition_penalty": "repeat_penalty", "max_new_tokens": "num_predict"}
    numbers = {key: value for key, value in model.defaults.items() if type(value) in (int, float)}
    lines += [f"PARAMETER {theirs.get(key, key)} {value}" for key, value in numbers.items()]
    lines.append(f"PARAMETER num_ctx {model.decoder.config.context}")
    return "\n".join(lines) + "\n"


def _is_plain(text: str) -> bool:
    """Whether a token's name, which may come from anybody, can stand in a Modelfile and mean itself alone."""
    return text.isprintable() and not set(text) & set('"\\{}')


def _ends_quotation(text: str) -> bool:
    return '"""' in text or text.endswith('"')


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
    if begin and not _is_plain(begin):
        return None
    begins, adds = bool(begin) and before.startswith(begin), model.tokenizer.adds_begin
    before = before.removeprefix(begin) if begins else before
    system = before.removeprefix("<|im_start|>system\n").removesuffix("<|im_end|>\n")
    if (
        before not in ("", f"<|im_start|>system\n{system}<|im_end|>\n")
        or _ends_quotation(system)
        or (adds and not begins)
    ):
        return None
    return begin if begins and not adds else "", system


def _licence(source: Source) -> str | None:
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


def _source_card(source: Source) -> tuple[str, str]:
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


def _card(source: Source, name: str, certificate: dict[str, Any]) -> str:
    """The certificate for people. The source's own card follows, without its metadata block."""
    from llm_journey.app import runtime_exports
    from llm_journey.core.config import to_yaml
    from llm_journey.model.cost import count_parameters

    config, licence = source.config, _licence(source) or "not stated by its source"
    shape = f"{config.num_layers} layers, {config.width} wide, {config.num_heads} heads, {config.context:,} tokens"
    if name.endswith(GGUF_SUFFIX):
        use = f"llama-cli -m {name}\nollama create {source.name.removesuffix(GGUF_SUFFIX)} -f {MODELFILE}"
    elif certificate["format"] in runtime_exports.USES:
        use = runtime_exports.USES[certificate["format"]]
    else:
        use = 'journey models show .   # in transformers: from_pretrained(".")'
    bounds = ", ".join(f"{key} <= {value:g}" for key, value in certificate["bounds"].items())
    sections = [
        f"---\n{to_yaml({'license': licence, 'tags': ['llm-journey']})}---",
        f"# {source.name}",
        f"{count_parameters(config).total:,} parameters: {shape}. Licence of the weights: {licence}.",
        f"## Use\n\n```\n{use}\n```",
        f"## Certificate\n\nCompared: {certificate['compared']}, at {certificate['positions']} positions. "
        f"Bound: {bounds}.\n\n{table(certificate)}",
        *(f"Note: {note}" for note in certificate.get("notes", ())),
    ]
    if body := _source_card(source)[1]:
        sections.append(f"## The source's own card\n\n{body}")
    return "\n\n".join(sections) + "\n"
