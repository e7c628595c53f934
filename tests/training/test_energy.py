"""The energy estimate: worked by hand, and its assumption says what went in."""

import pytest

from llm_journey.training.energy import estimate_energy


def test_energy_by_hand() -> None:
    estimate = estimate_energy(90.0, cores=2, memory_bytes=4e9)
    assert estimate.watts == pytest.approx(2 * 12 + 4 * 0.3725)
    assert estimate.joules == pytest.approx(90 * 25.49)
    assert estimate.assumption == "not metered; assumed 12 W for each of 2 cores, 0.3725 W/GB for 4.0 GB, " + (
        "no cooling or idle power"
    )


def test_accelerators_add_their_board_power() -> None:
    with_one = estimate_energy(10.0, cores=1, memory_bytes=0, accelerator_watts=350.0)
    assert with_one.joules == pytest.approx(10 * 362)
    assert "350 W for accelerators" in with_one.assumption
