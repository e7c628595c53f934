"""Numbers for people: short counts, durations, sizes and energies, with thin spaces before units."""

import math

SPACE = "\N{NARROW NO-BREAK SPACE}"
_STEPS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(value: float) -> str:
    """A count: 950, 12,345, 3.31 million, 1.2 billion."""
    if abs(value) >= 1e12:
        return f"{significant(value / 1e12)}{SPACE}trillion"
    if abs(value) >= 1e9:
        return f"{significant(value / 1e9)}{SPACE}billion"
    if abs(value) >= 1e6:
        return f"{significant(value / 1e6)}{SPACE}million"
    return f"{value:,.0f}"


def with_prefix(value: float, unit: str) -> str:
    """A quantity with an SI prefix: 1.25 PFLOP, 2.29 kJ, 512 MB."""
    for size, prefix in _STEPS:
        if abs(value) >= size:
            return f"{significant(value / size)}{SPACE}{prefix}{unit}"
    return f"{significant(value)}{SPACE}{unit}"


def duration(seconds: float) -> str:
    """A time: 850 ms, 12.3 s, 1 min 32 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 1:
        return f"{1000 * seconds:.0f}{SPACE}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}{SPACE}s"
    whole = round(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next(index for index, (number, _) in enumerate(parts) if number)
    return " ".join(f"{number}{SPACE}{unit}" for number, unit in parts[first : first + 2] if number)


def energy(joules: float) -> str:
    """Joules with watt-hours beside them."""
    return f"{with_prefix(joules, 'J')} ({with_prefix(joules / 3600, 'Wh')})"


def scientific(value: float) -> str:
    """A small number in powers of ten: 3.1 × 10⁻⁶."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return "0" if value == 0 else f"{mantissa}{SPACE}×{SPACE}10{raised}"


def percent(fraction: float) -> str:
    """A fraction as a percentage with one decimal."""
    if 0 < fraction < 0.0005:
        return "<0.1%"
    return f"{100 * fraction:.1f}%"


def significant(value: float, digits: int = 3) -> str:
    """A number rounded to significant digits, without exponent where it is near one: 1.55, 12.3, 0.000042, 3e-07."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    size = math.floor(math.log10(abs(value)))
    if size < -5 or size > 14:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - size, 0)}f}"
