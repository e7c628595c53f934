"""The model card: README.md of a model folder, filled from measured figures (Mitchell et al. 2019, "Model Cards").

A blank is an error: a card that leaves out what the model was trained on, or how well it does, is not written.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from llm_journey.core.config import to_yaml
from llm_journey.core.errors import BadInputError


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says. Every field must be filled, save that a model with `accuracies` needs no bits per byte.

    name: the model's name. architecture: family and shape in words. data: what it was trained on, in words.
    data_licence: licence of that data. licence: identifier of the weights' licence ("cc-by-sa-4.0"). parameters: their
    number. context: most tokens it reads at once. tokens_seen: training tokens, repeats counted; tokens_are: which, in
    words. bits_per_byte: on held-out text. held_out: what that text is. baselines: name -> bits per byte on the same
    text. logit_difference: largest difference from transformers in float32, or None where the model fits none of its
    families. command: makes this model again. limits: sentences on what it must not be used for or cannot do. task: the
    hub's word for what it does. accuracies: what was counted -> share of it that was right, where the objective has
    right answers.
    """

    name: str
    architecture: str
    data: str
    data_licence: str
    licence: str
    parameters: int
    context: int
    tokens_seen: int
    tokens_are: str
    bits_per_byte: float
    held_out: str
    baselines: Mapping[str, float]
    logit_difference: float | None
    command: str
    limits: tuple[str, ...]
    task: str = "text-generation"
    accuracies: Mapping[str, float] = field(default_factory=dict)


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with the metadata block that the Hugging Face hub reads. Blank fields: BadInputError."""
    spared = {"bits_per_byte", "baselines"} if facts.accuracies else {"accuracies"}
    asked = [item.name for item in fields(facts) if item.name not in spared]
    blanks = [name for name in asked if _is_blank(name, getattr(facts, name))]
    if blanks:
        raise BadInputError(f"the model card of {facts.name or 'this model'} has blanks: fill in {', '.join(blanks)}")
    metadata: dict[str, Any] = {"license": facts.licence, "pipeline_tag": facts.task, "tags": ["llm-journey"]}
    if facts.logit_difference is not None:
        metadata["library_name"] = "transformers"
    sections = [
        f"---\n{to_yaml(metadata)}---",
        f"# {facts.name}",
        f"{facts.architecture}. {facts.parameters:,} parameters, a context of {facts.context:,} tokens.",
        f"## Training\n\n{facts.data} (licence: {facts.data_licence}). "
        f"{facts.tokens_seen:,} {facts.tokens_are}, repeats counted.",
        f"Made by:\n\n```\n{facts.command}\n```",
        f"## Evaluation\n\n{_evaluation(facts)}",
        _certificate(facts.logit_difference),
        "## Limits\n\n" + "\n".join(f"- {sentence}" for sentence in facts.limits),
    ]
    return "\n\n".join(sections) + "\n"


def _evaluation(facts: CardFacts) -> str:
    if not facts.accuracies:
        return f"Bits per byte on {facts.held_out} (lower is better):\n\n{_table(facts)}"
    lines = [f"| {name} | {share:.1%} |" for name, share in facts.accuracies.items()]
    return "\n".join([f"On {facts.held_out}:", "", "| right | share |", "| --- | ---: |", *lines])


def _table(facts: CardFacts) -> str:
    """This model among its baselines, best first."""
    rows = [*facts.baselines.items(), (f"**{facts.name}**", facts.bits_per_byte)]
    lines = [f"| {name} | {value:.3f} |" for name, value in sorted(rows, key=lambda row: row[1])]
    return "\n".join(["| model | bits per byte |", "| --- | ---: |", *lines])


def _certificate(difference: float | None) -> str:
    if difference is None:
        return "This model's choices fit no family of Hugging Face transformers; it opens with llm-journey only."
    return f"Opened with transformers in float32, its logits differ from llm-journey's by at most {difference:.1e}."


def _is_blank(name: str, value: object) -> bool:
    match value:
        case None:
            return name != "logit_difference"
        case str():
            return not value.strip()
        case bool():
            return True
        case int():
            return value <= 0
        case float():
            return not math.isfinite(value) or value < 0
        case Mapping():
            return not value or any(not key.strip() or not math.isfinite(item) for key, item in value.items())
        case tuple():
            return not value or any(not str(item).strip() for item in value)
    return True
