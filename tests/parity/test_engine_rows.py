"""The rows of parity/engine.py: equal, and different with their planted errors."""

import pytest

from llm_journey.parity.engine import EQUALITIES
from llm_journey.parity.equality import Equality, measure


@pytest.mark.parametrize("equality", EQUALITIES, ids=lambda equality: equality.component)
def test_equal_and_a_planted_error_is_seen(equality: Equality) -> None:
    outcome = measure(equality)
    if outcome.verdict == "not measured":
        pytest.skip(outcome.note)
    assert (outcome.verdict, outcome.note) == ("equal", ""), outcome.describe()
    planted = measure(equality, planted=True)
    assert (planted.verdict, planted.note) == ("differs", ""), planted.describe()
