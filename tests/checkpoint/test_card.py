"""The model card: every figure stands in it, and a blank is an error."""

import dataclasses
from typing import Any

import pytest
import yaml

from llm_journey.checkpoint.card import CardFacts, model_card
from llm_journey.core.errors import BadInputError

FACTS = CardFacts(
    name="summaries-90s",
    architecture="qwen3, 4 layers of width 128",
    data="Summaries of 9,531 English Wikipedia articles",
    data_licence="CC BY-SA 4.0",
    licence="cc-by-sa-4.0",
    parameters=1_834_567,
    context=256,
    tokens_seen=480_256,
    tokens_are="tokens seen",
    bits_per_byte=1.8123,
    held_out="502 held-out articles",
    baselines={"gzip": 3.12, "5-gram": 1.65},
    logit_difference=3.1e-6,
    command="journey quickstart",
    limits=("It writes fluent nonsense.", "It knows English only."),
)


def test_every_figure_stands_in_the_card() -> None:
    card = model_card(FACTS)
    for text in (
        "summaries-90s",
        "1,834,567",
        "480,256",
        "1.812",
        "3.120",
        "3.1e-06",
        "journey quickstart",
        "CC BY-SA",
    ):
        assert text in card
    assert "- It writes fluent nonsense.\n- It knows English only.\n" in card
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert rows[2:] == ["| 5-gram | 1.650 |", "| **summaries-90s** | 1.812 |", "| gzip | 3.120 |"]


def test_the_metadata_block_is_yaml_that_the_hub_reads() -> None:
    _, block, _ = model_card(FACTS).split("---\n", 2)
    metadata = yaml.safe_load(block)
    assert metadata["license"] == "cc-by-sa-4.0" and metadata["library_name"] == "transformers"
    own = model_card(dataclasses.replace(FACTS, logit_difference=None, licence="a: b\n---"))
    assert yaml.safe_load(own.split("\n---\n", 1)[0].removeprefix("---\n"))["license"] == "a: b\n---"
    assert "opens with llm-journey only" in own and "transformers\n" not in own.split("# ")[0]


BLANKS: list[tuple[str, Any]] = [
    *((field.name, "  ") for field in dataclasses.fields(CardFacts) if isinstance(getattr(FACTS, field.name), str)),
    *((name, 0) for name in ("parameters", "context", "tokens_seen")),
    *((name, None) for name in ("data", "parameters", "bits_per_byte", "baselines", "limits")),
    ("bits_per_byte", float("nan")),
    ("logit_difference", float("inf")),
    ("baselines", {}),
    ("baselines", {"gzip": float("nan")}),
    ("baselines", {" ": 1.0}),
    ("limits", ()),
    ("limits", ("fine", " ")),
]


@pytest.mark.parametrize(("name", "value"), BLANKS)
def test_a_blank_is_an_error_that_names_it(name: str, value: Any) -> None:
    with pytest.raises(BadInputError, match=f"has blanks: fill in {name}$"):
        model_card(dataclasses.replace(FACTS, **{name: value}))
