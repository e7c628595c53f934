"""Every claimed equality holds here, and every one of them fails once an error is planted on our side."""

import json
from pathlib import Path

import pytest

from command_line import Journey
from llm_journey.parity import EQUALITIES, Equality, measure, select


def _identity(equality: Equality) -> str:
    return f"{equality.component}, {equality.reference}"


FAST = [equality for equality in EQUALITIES if not equality.needs]
SLOW = [equality for equality in EQUALITIES if equality.needs]


@pytest.mark.parametrize("equality", FAST, ids=_identity)
def test_equal(equality: Equality) -> None:
    outcome = measure(equality)
    if outcome.difference is None:
        pytest.skip(outcome.note)
    assert outcome.verdict == "equal", outcome.describe()


@pytest.mark.parametrize("equality", FAST, ids=_identity)
def test_a_planted_error_is_seen(equality: Equality) -> None:
    outcome = measure(equality, planted=True)
    if outcome.difference is None:
        pytest.skip(outcome.note)
    assert outcome.verdict == "differs", outcome.describe()


@pytest.mark.full
@pytest.mark.parametrize("equality", SLOW, ids=_identity)
def test_real_models_are_equal_and_a_planted_error_is_seen(equality: Equality) -> None:
    outcome = measure(equality)
    if outcome.difference is None:
        pytest.skip(outcome.note)
    assert outcome.verdict == "equal", outcome.describe()
    assert measure(equality, planted=True).verdict == "differs"


def test_rows_are_different_claims_with_reasons() -> None:
    assert len({_identity(equality) for equality in EQUALITIES}) == len(EQUALITIES)
    assert all(equality.reason and equality.tolerance >= 0 for equality in EQUALITIES)
    assert [equality.component for equality in select(["RMSNORM", "torch"])] == ["RMSNorm"]


def test_the_command(journey: Journey, tmp_path: Path, empty_home: Path) -> None:
    outcome = journey("parity", "rmsnorm", "--json", "--markdown", tmp_path / "parity.md")
    assert outcome.code == 0, outcome.err
    (row,) = outcome.json["rows"]
    assert row["verdict"] == "equal" and row["reference"] == "torch" and row["difference"] <= row["tolerance"]
    assert "| RMSNorm | torch |" in (tmp_path / "parity.md").read_text(encoding="utf-8")
    refused = journey("parity", "nonsense")
    assert refused.code == 2 and "there are: RMSNorm" in refused.err


def test_a_row_that_differs_fails_the_command(
    journey: Journey, empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_journey.model import norms

    monkeypatch.setattr(norms.torch, "rsqrt", lambda x: x**-0.49)
    outcome = journey("parity", "rmsnorm")
    assert outcome.code == 1 and "differs" in outcome.out


def test_the_documents_table_has_every_row() -> None:
    """docs/parity.md names the same rows as the code; its figures are those of the machine that wrote it."""
    text = (Path(__file__).parents[2] / "docs" / "parity.md").read_text(encoding="utf-8")
    missing = [equality.component for equality in EQUALITIES if f"| {equality.component} |" not in text]
    assert not missing, f"journey parity --markdown docs/parity.md: {json.dumps(missing)}"
    assert "differs" not in text.split("| --- |", 1)[1]
