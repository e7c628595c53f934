"""Several models as one, by arithmetic on their weights: what `journey models merge` runs."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from llm_journey.app.language_model import LanguageModel, open_model
from llm_journey.core import files
from llm_journey.core.errors import BadInputError, JourneyError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

MergeMethod = Literal["linear", "slerp", "task-arithmetic", "ties"]
CERTIFICATE = "certificate.json"
_NEEDS_BASE = ("task-arithmetic", "ties")
_KEPT = ("LICENSE", "NOTICE")


@dataclass(frozen=True)
class MergedModel:
    """A finished folder, and what its certificate says."""

    folder: Path
    certificate: dict[str, Any]

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) rows that describe it."""
        sources = self.certificate["sources"]
        return [
            ("Written", str(self.folder)),
            ("Method", self.certificate["method"]),
            *(
                (f"From {each['model']}", f"weight {each['weight']:g}; KL to it {each['kl']:.4f} nats a token")
                for each in sources
            ),
        ]

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        return {"folder": str(self.folder), "certificate": self.certificate}


def merge_models(
    names: Sequence[str],
    out: Path,
    *,
    method: str = "linear",
    base: str | None = None,
    weights: Sequence[float] | None = None,
    density: float = 0.2,
) -> MergedModel:
    """Write the model that two or more models of one shape make together into the new folder `out`.

    method: see finetuning.merging. base: what the models were trained from, of task arithmetic and TIES. weights: one a
    model (default: linear and SLERP equal parts, else 1 each); SLERP takes the second's as its share of the way.
    density: of TIES. Raises BadInputError for models that are not of one shape and one tokenizer, for quantized ones,
    and for a method's wrong numbers.
    """
    from llm_journey.app.certificates import compare, made
    from llm_journey.checkpoint import tensor_files
    from llm_journey.checkpoint.model_folder import build, load_decoder, write_model_files
    from llm_journey.model.decoder import Decoder

    shares = _checked(names, method, base, weights)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInputError(f"{out}: is not empty; choose a new folder")
    models = [_opened(name) for name in names]
    root = None if base is None else _opened(base)
    first = models[0] if root is None else root
    for model in models:
        if model.tokenizer.fingerprint != first.tokenizer.fingerprint:
            raise BadInputError(f"{model.name} and {first.name} have different tokenizers; they cannot be merged")
        if model.config != first.config:
            raise BadInputError(f"{model.name} and {first.name} are not of one shape; they cannot be merged")
    state = _merged(method, root, models, shares, density)
    decoder = build(first.config, state.items(), Decoder)
    stops = sorted(frozenset().union(*(model.stop_ids for model in models)))
    generation = dict(first.defaults) | ({"eos_token_id": stops} if stops else {})
    with tensor_files.writing(out), files.new_directory(out) as temporary:
        write_model_files(decoder, temporary, tokenizer=first.tokenizer, generation=generation)
        for name in _KEPT:
            if first.directory.is_dir() and (first.directory / name).is_file():
                shutil.copyfile(first.directory / name, temporary / name)
        written, _ = load_decoder(temporary)
        difference = compare(first, decoder, written).largest_logit_difference
        if difference != 0:  # NaN too
            raise JourneyError(f"the folder's logits differ by {difference:.2e} from the merged model's; not written")
        sources = [
            {"model": model.name, "weight": share, "kl": compare(first, model.decoder, written).mean_kl}
            for model, share in zip(models, shares, strict=True)
        ]
        certificate: dict[str, Any] = {"method": method, "base": None if root is None else root.name}
        certificate |= {"density": density} if method == "ties" else {}
        certificate |= {"sources": sources, "largest_logit_difference": difference}
        certificate |= made({"largest_logit_difference": 0.0})
        files.write_json(temporary / CERTIFICATE, certificate)
    return MergedModel(out, certificate)


def _checked(names: Sequence[str], method: str, base: str | None, weights: Sequence[float] | None) -> list[float]:
    """The weight of each model."""
    if method not in get_args(MergeMethod):
        raise unknown_name("method", method, get_args(MergeMethod))
    if len(names) < (1 if method in _NEEDS_BASE else 2):
        raise BadInputError(f"method {method} merges two or more models; {len(names)} named")
    if method == "slerp" and len(names) != 2:
        raise BadInputError(f"slerp goes from one model to another; {len(names)} are named")
    if (base is not None) != (method in _NEEDS_BASE):
        what = "needs --base, what the models were trained from" if base is None else "takes no --base"
        raise BadInputError(f"method {method} {what}")
    if weights is None:
        return [1.0 if method in _NEEDS_BASE else 1 / len(names)] * len(names)
    if len(weights) != len(names):
        raise BadInputError(f"{len(names)} models and {len(weights)} weights; give each model one")
    if not all(math.isfinite(weight) for weight in weights):
        raise BadInputError("weights must be finite")
    if method == "slerp" and abs(sum(weights) - 1) > 1e-6:
        raise BadInputError(f"slerp's weights are shares of the way: they must add up to 1, not {sum(weights):g}")
    return list(weights)


def _opened(name: str) -> LanguageModel:
    from llm_journey.quantization.layers import is_quantized

    model = open_model(name, precision="float32")
    if is_quantized(model.decoder):
        raise BadInputError(f"{name}: is quantized; merge the models that such ones were made from, then quantize")
    return model


def _merged(
    method: str, root: LanguageModel | None, models: Sequence[LanguageModel], weights: Sequence[float], density: float
) -> "dict[str, Tensor]":
    from llm_journey.finetuning.merging import linear, slerp, task_arithmetic, ties

    states = [model.decoder.state_dict() for model in models]
    match method:
        case "linear":
            return linear(states, weights)
        case "slerp":
            return slerp(states[0], states[1], weights[1])
    assert root is not None
    start = root.decoder.state_dict()
    if method == "task-arithmetic":
        return task_arithmetic(start, states, weights)
    return ties(start, states, weights, density=density)
