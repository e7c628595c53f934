"""A model in few bits as a folder that every other command takes, with its certificate.

    config.json, model.safetensors   the codes (checkpoint.quantized); every other file as in any model folder
    certificate.json                 what the rounding cost on text that nothing was fitted to
    README.md                        the card: the certificate in words

The text is split as a training run splits it: GPTQ is fitted to its training part, the loss is measured on its
validation part. What was written is opened again and set beside the source in float32; over the bound, nothing is left.
"""

import copy
import datetime
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from pydantic import ConfigDict

from llm_journey.app.language_model import LanguageModel, open_model
from llm_journey.core import files, lineage
from llm_journey.core.config import STRICT, dump
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.training.observer import Observer

if TYPE_CHECKING:
    from torch import Tensor

    from llm_journey.evaluation.on_text import TextComparison
    from llm_journey.model.decoder import Decoder
    from llm_journey.quantization.scheme import Scheme

MethodName = Literal["int8", "dynamic-int8", "int4", "nf4", "gptq"]
METHODS: tuple[str, ...] = get_args(MethodName)
CERTIFICATE, CARD = "certificate.json", "README.md"
DEFAULT_TEXT = "wiki-summaries"
# What a method may cost where the person says nothing: mean KL to float32 in nats. Measured on the validation part of
# the summaries, model of small.yaml: 2e-4 (int8), 4e-4 (dynamic-int8), 8e-3 (int4), 1.2e-2 (nf4), 5e-3 (gptq).
KL_BOUNDS = {"int8": 1e-2, "dynamic-int8": 5e-2, "int4": 1e-1, "nf4": 1e-1, "gptq": 1e-1}
# The fast kernels beside the readable form, on the same codes: they round activations to bf16.
KERNEL_BOUND = 1e-2
_WINDOW, _CALIBRATION_TOKENS, _MEASURED_TOKENS = 512, 16_384, 4_096
_KERNEL_TOKENS, _KERNEL_ROWS = 96, 8
_KEPT = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "NOTICE", "NOTICE.txt", "USE_POLICY.md")


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """bits, group_size, symmetric: of int4 and gptq. act_order: gptq takes the columns with the largest inputs first.

    text: a catalog name, a folder or a file. max_kl: the most that the rounding may cost, in nats (None: `KL_BOUNDS`).
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    method: MethodName
    bits: int = 4
    group_size: int = 32
    symmetric: bool = False
    act_order: bool = False
    text: str = DEFAULT_TEXT
    max_kl: float | None = None

    def __post_init__(self) -> None:
        grouped = self.method in ("int4", "gptq")
        if not grouped and (self.bits, self.group_size, self.symmetric) != (4, 32, False):
            raise ValueError(f"--bits, --group and --symmetric are int4's and gptq's; {self.method} has none of them")
        if self.act_order and self.method != "gptq":
            raise ValueError(f"--act-order is gptq's; {self.method} takes no column before another")
        if self.max_kl is not None and not 0 < self.max_kl < float("inf"):
            raise ValueError(f"--max-kl must be a positive number of nats, not {self.max_kl:g}")
        scheme_of(self)

    @property
    def bound(self) -> float:
        return KL_BOUNDS[self.method] if self.max_kl is None else self.max_kl


@dataclass(frozen=True)
class QuantizedFolder:
    """A finished folder, and what its certificate says."""

    folder: Path
    certificate: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) rows that describe it."""
        return [
            ("Written", str(self.folder)),
            ("Size", f"{self.certificate['bytes'] / 1e6:,.1f} MB"),
            *_measures(self.certificate),
            ("Certificate", str(self.folder / CERTIFICATE)),
        ]

    def describe(self) -> dict[str, Any]:
        """The folder as JSON values."""
        return {"folder": str(self.folder), "certificate": self.certificate}


def quantize_to_folder(
    name_or_path: str, out: Path, config: QuantizeConfig, observer: Observer | None = None
) -> QuantizedFolder:
    """Write a decoder's quantized form into the new folder `out`, certified.

    Raises BadInputError for what cannot be quantized, JourneyError where the loss is over its bound: nothing is left.
    """
    from llm_journey.checkpoint import tensor_files

    observer = observer or Observer()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInputError(f"{out}: is not empty; choose a new folder")
    source = open_model(name_or_path, precision="float32")
    texts = Texts(source, config.text, observer)
    with tensor_files.writing(out), files.new_directory(out) as temporary:
        facts = _write(source, config, texts, temporary, observer)
        certificate = _certify(source, config, texts, temporary, observer) | facts
        files.write_json(temporary / CERTIFICATE, certificate)
        files.write_text(temporary / CARD, _card(source, certificate))
    return QuantizedFolder(out, certificate)


def scheme_of(config: QuantizeConfig) -> "Scheme":
    """The format that a method writes: GPTQ's is int4's, its codes are chosen otherwise. Raises ValueError for numbers
    that no format has."""
    from llm_journey.quantization.scheme import Scheme

    if config.method in ("int4", "gptq"):
        return Scheme(bits=config.bits, group_size=config.group_size, symmetric=config.symmetric)
    return Scheme(format=config.method)  # type: ignore[arg-type]


def quantized_decoder(
    decoder: "Decoder", config: QuantizeConfig, calibration_bt: "Tensor", observer: Observer
) -> "Decoder":
    """A quantized copy of a decoder. calibration_bt: windows of ids, which GPTQ alone looks at."""
    from llm_journey.compression.calibration import quantize_by_gptq
    from llm_journey.quantization.layers import is_quantized, quantize_model

    if is_quantized(decoder):
        raise BadInputError("the model is quantized already; quantize the one that it was made from")
    result, scheme = copy.deepcopy(decoder), scheme_of(config)
    if config.method == "gptq":
        quantize_by_gptq(
            result,
            calibration_bt,
            scheme,
            act_order=config.act_order,
            on_progress=lambda done, total: observer.progress(done, total, "blocks"),
        )
    else:
        quantize_model(result, scheme)
    return result


class Texts:
    """Windows of ids of the two parts of a text: what codes may be fitted to, and what they are measured on."""

    def __init__(self, model: LanguageModel, source: str, observer: Observer) -> None:
        from llm_journey.core.paths import cache_dir
        from llm_journey.datasets.catalog import resolve
        from llm_journey.datasets.prepare import DataConfig, prepare_documents

        self.source, self._model = source, model
        data = DataConfig(source=source)
        self._prepared = cache_dir() / "prepared" / files.sha256_json(dump(data))[:16]
        observer.stage("preparing the text")
        prepare_documents(
            data,
            self._prepared,
            resolve=resolve,
            on_progress=lambda read, _: observer.progress(read, None, "documents"),
        )

    @property
    def calibration_bt(self) -> "Tensor":
        return self._windows("train", _CALIBRATION_TOKENS)

    @property
    def measured_bt(self) -> "Tensor":
        return self._windows("validation", _MEASURED_TOKENS)

    def _windows(self, split: str, num_tokens: int) -> "Tensor":
        import torch

        window = min(_WINDOW, self._model.config.context)
        ids: list[int] = []
        for document in self.documents(split):
            ids += document
            if len(ids) >= num_tokens:
                break
        count = min(len(ids), num_tokens) // window
        if not count:
            raise BadInputError(
                f"{self.source}: its {split} part has {len(ids)} tokens, fewer than one window of {window}; "
                "give more text (--text)"
            )
        return torch.tensor(ids[: count * window]).view(count, window)

    def documents(self, split: str) -> Iterator[list[int]]:
        """The ids of each document of a part ("train" or "validation"), its end token behind it."""
        from llm_journey.datasets.prepare import iterate_texts

        tokenizer = self._model.tokenizer
        end = [] if tokenizer.roles.end is None else [tokenizer.end_id]
        for text in iterate_texts(self._prepared, split):
            yield tokenizer.encode(text) + end


def _write(
    source: LanguageModel, config: QuantizeConfig, texts: Texts, folder: Path, observer: Observer
) -> dict[str, Any]:
    """The model's files; returns what the certificate says of them."""
    import torch

    from llm_journey.checkpoint.model_folder import write_model_files

    observer.stage("choosing the codes")
    fitted = config.method == "gptq"
    calibration_bt = texts.calibration_bt if fitted else torch.empty(0, 0, dtype=torch.long)
    decoder = quantized_decoder(source.decoder, config, calibration_bt, observer)
    generation = dict(source.defaults)
    if len(source.stop_ids) > 1:
        generation["eos_token_id"] = sorted(source.stop_ids)
    write_model_files(decoder, folder, tokenizer=source.tokenizer, generation=generation)
    for name in _KEPT:
        if (source.directory / name).is_file():
            shutil.copyfile(source.directory / name, folder / name)
    weights = folder / "model.safetensors"
    facts = {"bytes": weights.stat().st_size, "sha256": files.sha256_file(weights), "bits_per_weight": bits(decoder)}
    return facts | ({"calibration_tokens": calibration_bt.numel()} if fitted else {})


def bits(decoder: "Decoder") -> float:
    """Bits a weight of the matrices in a quantized decoder, scales and all, embedding and head included."""
    from llm_journey.quantization.layers import QuantizedEmbedding, QuantizedLinear

    layers = [each for each in decoder.modules() if isinstance(each, QuantizedEmbedding | QuantizedLinear)]
    return 8 * sum(layer.num_bytes for layer in layers) / sum(layer.shape[0] * layer.shape[1] for layer in layers)


def _certify(
    source: LanguageModel, config: QuantizeConfig, texts: Texts, folder: Path, observer: Observer
) -> dict[str, Any]:
    """Open the folder again, and measure it beside the source and beside its own fast form."""
    from llm_journey.checkpoint.model_folder import load_decoder

    observer.stage("measuring what it cost")
    written, _ = load_decoder(folder)
    measured_bt = texts.measured_bt
    found = compare_on_text(source.decoder, written, measured_bt, observer)
    if not found.mean_kl <= config.bound:  # NaN fails too
        raise JourneyError(
            f"the mean KL to float32 is {found.mean_kl:.3g} nats, over the bound {config.bound:g}; nothing is written: "
            "choose more bits, smaller groups or gptq, or allow more with --max-kl"
        )
    kernel_kl = kernel_difference(written, measured_bt[0])
    if not kernel_kl <= KERNEL_BOUND:
        raise JourneyError(
            f"the fast kernels differ from the readable form by a mean KL of {kernel_kl:.2e} nats, over the bound "
            f"{KERNEL_BOUND:g}; nothing is written"
        )
    return {
        "model": source.name,
        "format": "quantized",
        "method": config.method,
        "scheme": scheme_of(config).describe(),
        "act_order": config.act_order,
        "compared": f"{source.name} in float32 with this folder, on the validation part of {texts.source}",
        "positions": measured_bt.numel(),
        **found.describe(),
        "kernel_kl": kernel_kl,
        "bounds": {"mean_kl": config.bound, "kernel_kl": KERNEL_BOUND},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": lineage.versions(),
    }


def compare_on_text(
    reference: "Decoder", other: "Decoder", windows_bt: "Tensor", observer: Observer | None = None
) -> "TextComparison":
    """Both decoders on every window, one at a time."""
    import torch

    from llm_journey.evaluation.on_text import TextComparison, compare_window

    found = []
    with torch.inference_mode():
        for index, ids_t in enumerate(windows_bt):
            found.append(compare_window(ids_t, reference(ids_t[None])[0], other(ids_t[None])[0]))
            if observer is not None:
                observer.progress(index + 1, len(windows_bt), "windows")
    return TextComparison(found)


def kernel_difference(decoder: "Decoder", ids_t: "Tensor") -> float:
    """Mean KL of the form that answers, a few rows at a time as in decoding, to the readable one; same codes."""
    import torch

    from llm_journey.evaluation.agreement import compare_logits
    from llm_journey.generation.blocks import BlockPool
    from llm_journey.generation.paged_cache import PagedCache
    from llm_journey.generation.runner import Runner, Share

    ids = ids_t[:_KERNEL_TOKENS].tolist()
    runner, pool = Runner(decoder), BlockPool(_KERNEL_TOKENS, 1)
    cache = PagedCache(decoder.config, num_blocks=_KERNEL_TOKENS, block_size=1)
    table: list[int] = []
    parts = []
    for start in range(0, len(ids), _KERNEL_ROWS):
        rows = ids[start : start + _KERNEL_ROWS]
        pool.grow(table, start + len(rows))
        parts.append(runner([Share(ids=rows, start=start, table=table, all_logits=True)], cache))
    with torch.inference_mode():
        return compare_logits([(decoder(torch.tensor([ids]))[0], torch.cat(parts))]).mean_kl


def _measures(certificate: dict[str, Any]) -> list[tuple[str, str]]:
    low, high = certificate["perplexity_change_interval"]
    return [
        ("Format", f"{certificate['method']}: {certificate['scheme']}"),
        ("Bits a weight", f"{certificate['bits_per_weight']:.3f}"),
        ("Compared", certificate["compared"]),
        ("Mean KL, nats", f"{certificate['mean_kl']:.2e} (at most {certificate['bounds']['mean_kl']:g})"),
        ("Same most likely token", f"{certificate['greedy_agreement']:.2%}"),
        ("Perplexity", f"{certificate['perplexity']:.3f}, in float32 {certificate['reference_perplexity']:.3f}"),
        ("Its change", f"{certificate['perplexity_change']:+.2%} (95%: {low:+.2%} to {high:+.2%})"),
        ("Fast kernels to readable form, mean KL", f"{certificate['kernel_kl']:.2e}"),
    ]


def _card(source: LanguageModel, certificate: dict[str, Any]) -> str:
    """The certificate for people."""
    from llm_journey.core.config import to_yaml
    from llm_journey.model.cost import count_parameters

    table = "\n".join(f"| {label} | {value} |" for label, value in _measures(certificate))
    sections = [
        f"---\n{to_yaml({'tags': ['llm-journey', 'quantized']})}---",
        f"# {source.name}, {certificate['scheme']}",
        f"{count_parameters(source.config).total:,} parameters, made from {source.name} by `journey quantize --method "
        f"{certificate['method']}`. The licence is that model's.",
        '## Use\n\n```\njourney chat . "Hello"\njourney export . --to hf --out FOLDER   # dequantized\n```',
        f"## Certificate\n\n| measure | value |\n| --- | ---: |\n{table}",
    ]
    return "\n\n".join(sections) + "\n"
