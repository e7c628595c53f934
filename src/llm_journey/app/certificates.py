"""What every certificate of an export is made of: the texts, the comparison on them, the bounds, the words."""

import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_journey.app.find_models import GGUF_SUFFIX
from llm_journey.app.language_model import LanguageModel, open_model
from llm_journey.core import lineage
from llm_journey.core.errors import JourneyError
from llm_journey.training.observer import Observer

if TYPE_CHECKING:
    from torch import Tensor

    from llm_journey.evaluation.agreement import Agreement
    from llm_journey.model.config import TransformerConfig

# Bound of what should be equal: float32 sums taken in another order.
LOGIT_BOUND = 1e-4
TEXTS = (
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
class Source:
    """What is exported. asked: the name or path that it was asked for by; licence: what the person says of it;
    observer: is told of each part of the work."""

    path: Path
    name: str
    asked: str
    licence: str | None
    observer: Observer

    @cached_property
    def config(self) -> "TransformerConfig":
        from llm_journey.checkpoint.model_folder import load_config

        return self.model.decoder.config if self.path.suffix == GGUF_SUFFIX else load_config(self.path)

    @property
    def is_decoder(self) -> bool:
        return self.config.kind == "decoder"

    @cached_property
    def model(self) -> LanguageModel:
        """A quantized folder's weights are taken as its codes say, which is said: no other program reads the codes."""
        from llm_journey.core.console import messages
        from llm_journey.quantization.layers import dequantize_model

        model = open_model(self.asked)
        if dequantize_model(model.decoder):
            messages().print(f"{self.name}: quantized; exported as its codes say", markup=False, soft_wrap=True)
        return model


def compare(
    model: LanguageModel, reference: "Callable[[Tensor], Tensor]", other: "Callable[[Tensor], Tensor]"
) -> "Agreement":
    """The logits of two, on the fixed texts and as the same texts in a chat, cut as `model` cuts them."""
    import torch

    from llm_journey.evaluation.agreement import compare_logits

    def pairs() -> "Iterator[tuple[Tensor, Tensor]]":
        for ids in probes(model):
            ids_bt = torch.tensor([ids])
            yield reference(ids_bt)[0], other(ids_bt)[0]

    with torch.inference_mode():
        return compare_logits(pairs())


def probes(model: LanguageModel) -> Iterator[list[int]]:
    from llm_journey.tokenizer.chat_template import encode_chat

    context = model.decoder.config.context
    for text in TEXTS:
        yield model.prompt_ids(text)[:context]
        if model.tokenizer.chat_template is not None:
            yield encode_chat(model.tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)[
                :context
            ]


def require(value: float, bound: float, what: str, advice: str = "") -> None:
    if not value <= bound:  # NaN fails too
        raise JourneyError(f"{what} is {value:.2e}, over the bound {bound:.0e}; the export is not written{advice}")


def findings(compared: str, agreement: "Agreement", bounds: dict[str, float]) -> dict[str, Any]:
    return {"compared": compared, "texts": len(TEXTS), **agreement.describe(), **made(bounds)}


def made(bounds: dict[str, float]) -> dict[str, Any]:
    """The bounds that were held, when, and by which versions."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"bounds": bounds, "date": date, "versions": lineage.versions()}


def table(certificate: dict[str, Any]) -> str:
    lines = [f"| {label} | {value} |" for label, value in measures(certificate)]
    return "\n".join(["| measure | value |", "| --- | ---: |", *lines])


def measures(certificate: dict[str, Any]) -> list[tuple[str, str]]:
    """(label, value) of what was measured; an encoder's folder has fewer."""
    shown = {
        "reader_logit_difference": ("Largest logit difference between two readers of the file", ".2e"),
        "largest_logit_difference": ("Largest logit difference", ".2e"),
        "greedy_agreement": ("Same most likely token", ".2%"),
        "decided_agreement": ("The same where the lead exceeds 0.05", ".2%"),
        "mean_kl": ("Mean KL, nats", ".2e"),
        "largest_kl": ("Largest KL, nats", ".2e"),
        "cached_logit_difference": ("Largest logit difference, read after keys and values", ".2e"),
        "padded_logit_difference": ("Largest logit difference, in a padded batch", ".2e"),
        "largest_cosine_distance": ("Largest cosine distance", ".2e"),
        "same_greedy_text": ("Same text, greedily written", ".2%"),
        "runner_context": ("Tokens that the runner remembers", ",d"),
        "runner_peak_bytes": ("Peak memory of the runner with as many, bytes", ",d"),
        "same_ids": ("Same ids of a text", ".2%"),
        "same_answers": ("Same answer to a text", ".2%"),
    }
    return [
        (label, f"{certificate[key]:{form}}")
        for key, (label, form) in shown.items()
        if certificate.get(key) is not None
    ]
