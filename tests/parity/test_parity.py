"""Every claimed equality holds here, and every one of them fails once an error is planted on our side."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import Journey
from llm_journey.parity import EQUALITIES, Equality, measure, select
from llm_journey.parity.differences import largest, num_differing
from llm_journey.parity.published import MINILM, SMOLLM2

DOCUMENT = Path(__file__).parents[2] / "docs" / "parity.md"


def _identity(equality: Equality) -> str:
    return f"{equality.component}, {equality.reference}"


QUICK = [equality for equality in EQUALITIES if not equality.needs]
PUBLISHED = [equality for equality in EQUALITIES if equality.needs]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are tiny, and the machine has other things to do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check(equality: Equality) -> None:
    """Equal as it is, different with the planted error: a row that is equal either way compares nothing."""
    outcome = measure(equality)
    if outcome.verdict == "not measured":
        pytest.skip(outcome.note)
    assert (outcome.verdict, outcome.note) == ("equal", ""), outcome.describe()
    planted = measure(equality, planted=True)
    assert (planted.verdict, planted.note) == ("differs", ""), planted.describe()


@pytest.mark.parametrize("equality", QUICK, ids=_identity)
def test_equal_and_a_planted_error_is_seen(equality: Equality) -> None:
    check(equality)


@pytest.fixture(scope="module")
def pulled(pytestconfig: pytest.Config) -> Iterator[Path]:
    """A JOURNEY_HOME beside pytest's own cache, with the published models in it."""
    assert pytestconfig.cache is not None
    kept = pytestconfig.cache.mkdir("journey-home")
    environment = {**os.environ, "JOURNEY_HOME": str(kept)}
    for name in (SMOLLM2, MINILM):
        command = [sys.executable, "-m", "llm_journey", "models", "pull", name]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 0:
            pytest.skip(f"{name} cannot be pulled here: {done.stderr.strip().splitlines()[-1]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOURNEY_HOME", str(kept))
        yield kept


@pytest.mark.full
@pytest.mark.network
@pytest.mark.usefixtures("pulled")
@pytest.mark.parametrize("equality", PUBLISHED, ids=_identity)
def test_published_models_are_equal_and_a_planted_error_is_seen(equality: Equality) -> None:
    check(equality)


def test_only_what_cannot_be_installed_everywhere_is_left_unmeasured(empty_home: Path) -> None:
    """Of the development set-up llama.cpp alone may be missing: a skipped row must not hide a missing library."""
    missing = {equality.reference for equality in QUICK if measure_skips(equality)}
    assert missing <= ({"llama-cpp-python"} if importlib.util.find_spec("llama_cpp") is None else set())


def measure_skips(equality: Equality) -> bool:
    """Whether a row lacks something here; its difference is not taken."""
    from dataclasses import replace

    return measure(replace(equality, difference=lambda planted: 0.0)).verdict == "not measured"


def test_rows_are_different_claims_with_reasons() -> None:
    assert len({_identity(equality) for equality in EQUALITIES}) == len(EQUALITIES) > 100
    assert all(equality.reason and equality.compared and equality.tolerance >= 0 for equality in EQUALITIES)
    assert [equality.component for equality in select(["RMSNORM", "torch"])] == ["RMSNorm"]


def _made_up(difference: float | Exception) -> Equality:
    def measured(planted: bool) -> float:
        if isinstance(difference, Exception):
            raise difference
        return difference

    return Equality(
        component="made up", reference="torch", compared="-", tolerance=0.5, reason="-", difference=measured
    )


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (0.5, "equal"),
        (0.51, "differs"),
        (math.nan, "differs"),
        (math.inf, "differs"),
        (ValueError("no\nway"), "differs"),
    ],
)
def test_verdicts(difference: float | Exception, verdict: str) -> None:
    outcome = measure(_made_up(difference))
    assert outcome.verdict == verdict
    assert outcome.note == ("ValueError: no way" if isinstance(difference, Exception) else "")
    json.dumps(outcome.describe(), allow_nan=False)


def test_a_difference_hides_nothing() -> None:
    assert largest([torch.ones(2), 3.0], [np.array([1.0, 1.5]), 3.0]) == 0.5
    assert largest([], []) == 0.0
    for found, expected in (
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        ([1.0], [1.0, 2.0]),
        (torch.tensor([0.0, math.nan]), torch.zeros(2)),
        (torch.tensor([-math.inf]), torch.tensor([-math.inf])),
    ):
        assert largest(found, expected) == math.inf
    assert num_differing("abc", "abd") == 1 and num_differing("ab", "abcd") == 2


def test_the_command(journey: Journey, tmp_path: Path, empty_home: Path) -> None:
    outcome = journey("parity", "rmsnorm", "--json", "--markdown", tmp_path / "parity.md")
    assert outcome.code == 0, outcome.err
    (row,) = outcome.json["rows"]
    assert row["verdict"] == "equal" and row["reference"] == "torch" and row["difference"] <= row["tolerance"]
    assert (outcome.json["ok"], outcome.json["complete"]) == (True, True)
    assert "| RMSNorm | torch |" in (tmp_path / "parity.md").read_text(encoding="utf-8")
    refused = journey("parity", "nonsense")
    assert refused.code == 2 and "RMSNorm" in refused.err


def test_what_is_not_here_is_said_and_fails_where_that_is_asked_for(journey: Journey, empty_home: Path) -> None:
    before = os.environ.get("HF_HUB_OFFLINE")
    for options, code in (((), 0), (("--strict",), 1)):
        outcome = journey("parity", "minilm", "embeddings", "--json", *options)
        assert (outcome.code, outcome.json["ok"]) == (code, code == 0)
        assert (outcome.json["complete"], outcome.json["not_measured"]) == (False, 1)
        assert "all-minilm-l6-v2 is not on this machine; journey parity --pull" in outcome.err
    assert os.environ.get("HF_HUB_OFFLINE") == before


def test_what_cannot_be_pulled_is_said(journey: Journey, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_journey.core.errors import JourneyError

    def refuse(name: str, **options: object) -> Path:
        raise JourneyError(f"cannot pull {name!r}: no network")

    monkeypatch.setattr("llm_journey.datasets.pull.pull", refuse)
    outcome = journey("parity", "minilm", "embeddings", "--pull", "--json")
    assert outcome.code == 0 and outcome.json["not_measured"] == 1
    assert "cannot pull 'all-minilm-l6-v2': no network" in outcome.err


def test_a_row_that_differs_fails_the_command(
    journey: Journey, empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_journey.model import norms

    monkeypatch.setattr(norms.torch, "rsqrt", lambda x: x**-0.49)
    outcome = journey("parity", "rmsnorm")
    assert outcome.code == 1 and "differs" in outcome.out


def test_the_documents_table_is_that_of_the_code() -> None:
    """docs/parity.md has the code's rows in its order; its figures are those of the machine that wrote it."""
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    expected = [[row.component, row.reference, row.compared, f"{row.tolerance:.2g}"] for row in EQUALITIES]
    again = "journey parity --pull --markdown docs/parity.md"
    assert [[row[0], row[1], row[3], row[5]] for row in cells] == expected, again
    assert {row[6] for row in cells} == {"equal"}, again
