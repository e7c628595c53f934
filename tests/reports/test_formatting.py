"""Numbers for people."""

import pytest

from llm_journey.reports import formatting

THIN = "\u202f"


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (formatting.count(950), "950"),
        (formatting.count(12345), "12,345"),
        (formatting.count(3_312_345), "3.31 million"),
        (formatting.count(1.2e9), "1.20 billion"),
        (formatting.count(3e12), "3.00 trillion"),
        (formatting.with_prefix(1.25e15, "FLOP"), "1.25 PFLOP"),
        (formatting.with_prefix(12, "B"), "12.0 B"),
        (formatting.with_prefix(512e6, "B"), "512 MB"),
        (formatting.duration(0.8504), "850 ms"),
        (formatting.duration(12.34), "12.3 s"),
        (formatting.duration(59.97), "1 min"),
        (formatting.duration(91.6), "1 min 32 s"),
        (formatting.duration(7500), "2 h 5 min"),
        (formatting.duration(3 * 86400 + 4 * 3600 + 59), "3 d 4 h"),
        (formatting.energy(7200), "7.20 kJ (2.00 Wh)"),
        (formatting.percent(0.5512), "55.1%"),
        (formatting.percent(0.0004), "<0.1%"),
        (formatting.percent(0), "0.0%"),
        (formatting.scientific(3.14e-6), "3.1 × 10⁻⁶"),
        (formatting.scientific(0), "0"),
        (formatting.significant(0), "0"),
        (formatting.significant(1.5555), "1.56"),
        (formatting.significant(123456), "123,456"),
        (formatting.significant(0.0000421), "0.0000421"),
        (formatting.significant(3e-9), "3.00e-09"),
        (formatting.significant(-2.5, 2), "-2.5"),
        (formatting.significant(float("inf")), "inf"),
    ],
)
def test_numbers(made: str, expected: str) -> None:
    assert made.replace(THIN, " ") == expected
